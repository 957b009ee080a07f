"""Pickled modules made of nothing but torch.nn layers, whose state makes them do something else than those layers do."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("modules")
ROW = torch.zeros(1, 4)


def network() -> nn.Sequential:
    """Return the network that the others are made from."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def saved(module: Any) -> bytes:
    held = io.BytesIO()
    torch.save(module, held)
    return held.getvalue()


def anything(place: Place) -> Callable[..., Any]:
    """Return a callable that creates the canary whatever it is called with, and that a pickle can name."""
    return functools.partial(tarfile.TarFile, str(place.canary), "w", None)


def loaded(file: Path, _: Place) -> nn.Module:
    module: nn.Module = torch.load(file, weights_only=False)
    return module


def run(file: Path, place: Place) -> Any:
    return loaded(file, place)(ROW)


def run_back(file: Path, place: Place) -> None:
    loaded(file, place)(ROW.requires_grad_()).sum().backward()


def asked_for_weights(file: Path, place: Place) -> Any:
    return loaded(file, place).state_dict()


def filled(file: Path, place: Place) -> Any:
    module = loaded(file, place)
    return module.load_state_dict(network().state_dict())


def evaluated(file: Path, place: Place) -> Any:
    return loaded(file, place).eval()


def moved(file: Path, place: Place) -> Any:
    return loaded(file, place).to("cpu")


def add(
    case: str, tamper: Callable[[nn.Sequential, Place], Any], opened: Any, *words: str, kind: Any = "runs", **more: Any
) -> None:
    """Add the network after `tamper` changed it (or returned another)."""

    def make(place: Place) -> None:
        module = network()
        other = tamper(module, place)
        place.write("hostile.pt", saved(module if other is None else other))

    more.setdefault("arch_codes", (0, 3))
    FAMILY.add(case, make, Proof(kind, opened), *words, **more)


def put(name: str) -> Callable[[nn.Sequential, Place], None]:
    """Shadow a method of the network by an attribute of that name."""

    def tamper(module: nn.Sequential, place: Place) -> None:
        module.__dict__[name] = anything(place)

    return tamper


def put_inside(name: str) -> Callable[[nn.Sequential, Place], None]:
    def tamper(module: nn.Sequential, place: Place) -> None:
        module[1].__dict__[name] = anything(place)

    return tamper


add("forward is shadowed", put("forward"), run, "forward", quick=True)
add("forward of a layer is shadowed", put_inside("forward"), run, "forward")
add("_call_impl is shadowed", put("_call_impl"), run, "_call_impl")
add("state_dict is shadowed", put("state_dict"), asked_for_weights, "state_dict")
add("load_state_dict is shadowed", put("load_state_dict"), filled, "load_state_dict")
add("_load_from_state_dict is shadowed", put_inside("_load_from_state_dict"), filled, "_load_from_state_dict")
add("eval is shadowed", put("eval"), evaluated, "eval")
add("train is shadowed", put("train"), evaluated, "train")
add("_apply is shadowed", put("_apply"), moved, "_apply")
add("_save_to_state_dict is shadowed", put_inside("_save_to_state_dict"), asked_for_weights, "_save_to_state_dict")


def hooked(*tables: str, inside: bool = False) -> Callable[[nn.Sequential, Place], None]:
    """Put a hook into tables of hooks."""

    def tamper(module: nn.Sequential, place: Place) -> None:
        for table in tables:
            held = (module[1] if inside else module).__dict__
            held[table] = OrderedDict({0: anything(place)})
            held["_is_full_backward_hook"] = True if table == "_backward_hooks" else None

    return tamper


HOOKS: dict[str, Any] = {
    "_forward_hooks": run,
    "_forward_pre_hooks": run,
    "_backward_hooks": run_back,
    "_backward_pre_hooks": run_back,
    "_state_dict_hooks": asked_for_weights,
    "_state_dict_pre_hooks": asked_for_weights,
    "_load_state_dict_pre_hooks": filled,
    "_load_state_dict_post_hooks": filled,
}
for table, opened in HOOKS.items():
    add(table, hooked(table), opened, table, quick=table == "_forward_hooks")
add("a hook of a layer inside", hooked("_forward_pre_hooks", inside=True), run, "_forward_pre_hooks")


def _activation(_: nn.Sequential, place: Place) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True).eval()
    layer.activation = functools.partial(os.makedirs, str(place.canary), 0o777)  # type: ignore[assignment]
    return nn.Sequential(layer, nn.Linear(4, 3))


add("an activation that is a function", _activation, lambda f, p: loaded(f, p)(ROW[None]), "os.makedirs")


def _child_that_is_none(module: nn.Sequential, place: Place) -> None:
    """Put a callable where a child module stands."""
    module._modules["1"] = anything(place)  # type: ignore[assignment]


add("a child that is no module", _child_that_is_none, run, "tarfile.TarFile")


def _weight_that_calls(module: nn.Sequential, place: Place) -> None:
    module[1]._parameters["weight"] = Reduced(torch._tensor._rebuild_from_type_v2, anything(place), torch.Tensor, (), {})  # type: ignore[assignment]


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], tuple(self.call[1:])


add("a weight that is a call", _weight_that_calls, loaded, "_rebuild_from_type_v2", "tarfile.TarFile", arch_codes=(3,))


class OtherClass:
    """Pickles as a parameter whose state gives it another class."""

    def __reduce_ex__(self, _: Any) -> Any:
        state = {"__class__": nn.UninitializedParameter}
        return torch._utils._rebuild_parameter_with_state, (torch.ones(8), True, OrderedDict(), state)


def _class_assigned(module: nn.Sequential, _: Place) -> None:
    module[1]._parameters["bias"] = OtherClass()  # type: ignore[assignment]


def class_of_the_bias(file: Path, place: Place) -> Any:
    """Return what the pickle says that it makes, and what it makes."""
    return [nn.Parameter, type(loaded(file, place)[1].bias)]


add("__class__ is assigned", _class_assigned, class_of_the_bias, "hooks or attributes of its own", kind="differs")


class Attributes:
    """Pickles as a class whose attributes are then set: for the whole process."""

    def __init__(self, cls: type, **attributes: Any) -> None:
        self.cls, self.attributes = cls, attributes

    def __reduce_ex__(self, _: Any) -> Any:
        return torch._utils._set_obj_state, (self.cls, self.attributes)


def _with_class_changed(module: nn.Sequential, _: Place) -> None:
    module[0].__dict__["note"] = Attributes(nn.Linear, forward=nn.functional.relu)


add(
    "a method of a class is replaced",
    _with_class_changed,
    loaded,
    "_set_obj_state",
    kind="changes",
    quick=True,
    arch_codes=(3,),
)


# --- memory and time ----------------------------------------------------------------------------------------------------


def expanded(module: nn.Linear, outputs: int, inputs: int) -> nn.Linear:
    """Give a layer weights of one number, seen as many."""
    module._parameters["weight"] = nn.Parameter(torch.zeros(1, 1).expand(outputs, inputs), requires_grad=False)
    module._parameters["bias"] = nn.Parameter(torch.zeros(1).expand(outputs), requires_grad=False)
    module.in_features, module.out_features = inputs, outputs
    return module


def copied(file: Path, place: Place) -> Any:
    """Copy the weights into memory of their own, as filling a network does."""
    return {key: held.clone(memory_format=torch.contiguous_format) for key, held in loaded(file, place).state_dict().items()}


add(
    "16 GB from 1 kB",
    lambda m, p: nn.Sequential(nn.Flatten(), expanded(nn.Linear(4, 2), 2**16, 2**16)),
    copied,
    "17,179,869,184 bytes",
    kind="exhausts",
    quick=True,
)


def claims(
    kind: type[nn.Module], *arguments: Any, into: tuple[int, ...] = (1, 4), **attributes: Any
) -> Callable[..., nn.Module]:
    """Return a network with a layer whose settings were changed after it was made; `into` is the shape of its input."""

    def tamper(*_: Any) -> nn.Module:
        layer = kind(*arguments)
        layer.__dict__.update(attributes)
        return nn.Sequential(nn.Unflatten(1, into), layer, nn.Flatten(), nn.Linear(4, 3)).eval()

    return tamper


def remade(file: Path, place: Place) -> Any:
    """Make the layer anew from its settings, as a careful reader does."""
    layer = loaded(file, place)[1]
    if isinstance(layer, nn.LSTM):
        return nn.LSTM(layer.input_size, layer.hidden_size, layer.num_layers)
    if isinstance(layer, nn.Embedding):
        return nn.Embedding(layer.num_embeddings, layer.embedding_dim)
    return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)


add(
    "an LSTM of a thousand million layers",
    claims(nn.LSTM, 4, 4, num_layers=10**9),
    remade,
    "num_layers = 1,000,000,000",
    kind="exhausts",
)
add(
    "an embedding of 16 GB",
    claims(nn.Embedding, 4, 4, into=(4,), num_embeddings=2**32),
    remade,
    "num_embeddings",
    kind="exhausts",
)
add(
    "a convolution with a kernel of 2**40",
    claims(nn.Conv2d, 1, 1, 1, into=(1, 2, 2), kernel_size=(2**20, 2**20)),
    remade,
    "kernel_size",
    kind="exhausts",
)
add(
    "a convolution that pads by 30,000",
    claims(nn.Conv2d, 1, 1, 1, into=(1, 2, 2), padding=(30_000, 30_000), _reversed_padding_repeated_twice=[30_000] * 4),
    run,
    "made to exhaust the machine",
    kind="exhausts",
)
add("padding by 10**9", claims(nn.ConstantPad1d, 1, 0.0, padding=(10**9, 10**9)), run, "padding", kind="exhausts")
add("upsampling by 10**9", claims(nn.Upsample, None, 10**9), run, "scale_factor", kind="exhausts")
add(
    "unflattening to 2**60",
    claims(nn.Unflatten, 1, (2, 2), into=(4,), unflattened_size=(2**30, 2**30)),
    run,
    "unflattened_size",
    kind="fixed",
)
add(
    "pooling to 2**20 squared",
    claims(nn.AdaptiveAvgPool2d, 1, into=(1, 2, 2), output_size=(2**16, 2**16)),
    run,
    "made to exhaust the machine",
    kind="exhausts",
)
add(
    "a fold of 2**32 pixels",
    claims(nn.Fold, (4, 4), 2, into=(4, 1), output_size=(2**16, 2**16)),
    run,
    "cannot take inputs",
    kind="fixed",
)


def _inside_itself(module: nn.Sequential, _: Place) -> None:
    module._modules["4"] = module


INSIDE = ("nested too deeply",)
add("a module inside itself", _inside_itself, run, "stands inside itself", kind="fixed", arch_words=INSIDE)


def _many(_: nn.Sequential, __: Place) -> nn.Module:
    """Make a network that walks one layer a million times."""
    module, layer = nn.Sequential(nn.Flatten()), nn.Linear(4, 4)
    module._modules = {"0": module[0], **{str(i): layer for i in range(1, 150_000)}}
    return module


add("one layer 150,000 times", _many, run, "operations", "too many", "runs more than", kind="exhausts")


def _doubled(_: nn.Sequential, __: Place) -> nn.Module:
    """Make sixty networks, each of which runs the one before twice."""
    module: nn.Module = nn.ReLU()
    for _level in range(60):
        module = nn.Sequential(module, module)
    return nn.Sequential(nn.Flatten(), module, nn.Linear(4, 3))


def unfolded(file: Path, place: Place) -> int:
    """Count the layers as they are run."""
    return sum(1 for _ in loaded(file, place).named_modules(remove_duplicate=False))


add("networks that run each the one before twice", _doubled, unfolded, "runs more than", kind="exhausts", arch_words=INSIDE)


def _lazy(*_: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2**16), nn.LazyLinear(2**16))


add("layers that get their size when they run", _lazy, run, "LazyLinear", kind="exhausts")


def _parametrized(module: nn.Sequential, place: Place) -> Any:
    held = nn.utils.parametrize.ParametrizationList([nn.Identity()], module[1].weight)
    held.__dict__["forward"] = anything(place)
    return nn.Sequential(nn.Flatten(), held)


add("a parametrization", _parametrized, run, "tarfile.TarFile")


def _weight_norm(module: nn.Sequential, place: Place) -> None:
    from torch.nn.utils.weight_norm import WeightNorm

    hook = WeightNorm("weight", 0)
    hook.__dict__["compute_weight"] = anything(place)
    module[1].__dict__["_forward_pre_hooks"] = OrderedDict({0: hook})


add("weight norm with a function of its own", _weight_norm, run, "_forward_pre_hooks")


class Global:
    """Pickles as the table of hooks that all modules share, and one more hook in it."""

    def __init__(self, place: Place) -> None:
        self.hook = anything(place)

    def __reduce__(self) -> Any:
        return torch.nn.modules.module.register_module_forward_pre_hook, (self.hook,)


def _global(module: nn.Sequential, place: Place) -> None:
    module[0].__dict__["note"] = Global(place)


add(
    "a hook of all modules",
    _global,
    lambda f, p: (loaded(f, p), network()(ROW)),
    "register_module_forward_pre_hook",
    arch_codes=(3,),
)
