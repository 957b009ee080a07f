"""Which pickled networks are rebuilt, that they compute what the live ones compute, and what is refused."""

from __future__ import annotations

import contextlib
import inspect
import io
import pickle
import pickletools
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune, spectral_norm, weight_norm

from audit.errors import ModelError, ModelRefused
from audit.model import pickled
from audit.model.pickled import bounded, names
from audit.model.pickled.layers import SCHEMAS
from audit.model.pickled.rebuild import _BASE, _HOOKS, same
from audit.model.wrapper import Model
from tests import hostile

WAYS = "the ways on"


def saved(content: Any, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of sources that it cannot keep
        torch.save(content, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return buffer.getvalue()


def unzipped(file: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rebuilt(content: Any, legacy: bool = False, protocol: int = 2) -> nn.Module:
    module = pickled.load(saved(content, legacy, protocol), "f.pt", WAYS, network_wanted=True)
    assert isinstance(module, nn.Module)
    return module


def weights(content: Any, legacy: bool = False) -> dict[str, Tensor]:
    found = pickled.load(saved(content, legacy), "f.pt", WAYS, network_wanted=False)
    assert isinstance(found, dict)
    return found


def _quiet(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


ROW, SEQUENCE, IMAGE = (3, 8), (3, 5, 8), (2, 8, 9, 9)
SIGNAL, VOLUME = (2, 8, 12), (2, 8, 6, 6, 6)

# Every class of the table at least once, with arguments that are not the defaults: the layer, and the shape that goes in.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Identity": (lambda: nn.Identity(54, unused=0.1), ROW),
    "Linear": (lambda: nn.Linear(8, 3), ROW),
    "Linear without bias": (lambda: nn.Linear(8, 3, bias=False), ROW),
    "NonDynamicallyQuantizableLinear": (lambda: NonDynamicallyQuantizableLinear(8, 3), ROW),
    "Conv1d": (lambda: nn.Conv1d(8, 4, 3, stride=2, padding=1, dilation=2, groups=4, padding_mode="circular"), SIGNAL),
    "Conv2d": (lambda: nn.Conv2d(8, 4, (3, 2), padding=(1, 2), bias=False, padding_mode="reflect"), IMAGE),
    "Conv2d same": (lambda: nn.Conv2d(8, 4, 3, padding="same", dilation=2), IMAGE),
    "Conv2d same, replicate": (lambda: nn.Conv2d(8, 4, 4, padding="same", padding_mode="replicate"), IMAGE),
    "Conv2d valid": (lambda: nn.Conv2d(8, 4, 3, padding="valid"), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(8, 2, 2, stride=(1, 2, 1)), VOLUME),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 4, 3, stride=2, output_padding=1), SIGNAL),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2), IMAGE),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(8, 2, 2, bias=False, dilation=2), VOLUME),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8, eps=0.1, momentum=None), ROW),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(8, affine=False), IMAGE),
    "BatchNorm2d of the batch": (lambda: nn.BatchNorm2d(8, track_running_stats=False), IMAGE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(8, momentum=0.3), VOLUME),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(8, eps=0.2), IMAGE),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(8, affine=True), SIGNAL),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(8, track_running_stats=True), IMAGE),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(8), VOLUME),
    "LayerNorm": (lambda: nn.LayerNorm((5, 8), eps=0.01), SEQUENCE),
    "LayerNorm without bias": (lambda: nn.LayerNorm(8, bias=False), SEQUENCE),
    "LayerNorm without weights": (lambda: nn.LayerNorm(8, elementwise_affine=False), SEQUENCE),
    "RMSNorm": (lambda: nn.RMSNorm(8, eps=0.01), SEQUENCE),
    "GroupNorm": (lambda: nn.GroupNorm(4, 8, eps=0.1), IMAGE),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3, alpha=0.1, beta=0.5, k=2.0), IMAGE),
    "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(3, alpha=0.1, beta=0.5, k=2), IMAGE),
    "ReLU": (lambda: nn.ReLU(inplace=True), ROW),
    "ReLU6": (lambda: nn.ReLU6(inplace=True), ROW),
    "SiLU": (lambda: nn.SiLU(inplace=True), ROW),
    "Mish": (nn.Mish, ROW),
    "Hardswish": (nn.Hardswish, ROW),
    "Hardsigmoid": (nn.Hardsigmoid, ROW),
    "SELU": (nn.SELU, ROW),
    "Sigmoid": (nn.Sigmoid, ROW),
    "Tanh": (nn.Tanh, ROW),
    "LogSigmoid": (nn.LogSigmoid, ROW),
    "Softsign": (nn.Softsign, ROW),
    "Tanhshrink": (nn.Tanhshrink, ROW),
    "Softmax2d": (nn.Softmax2d, IMAGE),
    "ELU": (lambda: nn.ELU(alpha=0.3), ROW),
    "CELU": (lambda: nn.CELU(alpha=0.3), ROW),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.3), ROW),
    "RReLU": (lambda: nn.RReLU(0.2, 0.6), ROW),
    "Hardtanh": (lambda: nn.Hardtanh(-0.2, float("inf")), ROW),
    "Threshold": (lambda: nn.Threshold(0.1, 20), ROW),
    "GELU": (lambda: nn.GELU(approximate="tanh"), ROW),
    "Softplus": (lambda: nn.Softplus(beta=2, threshold=1), ROW),
    "Hardshrink": (lambda: nn.Hardshrink(0.2), ROW),
    "Softshrink": (lambda: nn.Softshrink(0.2), ROW),
    "Softmax": (lambda: nn.Softmax(dim=0), ROW),
    "Softmin": (lambda: nn.Softmin(dim=-1), ROW),
    "LogSoftmax": (lambda: nn.LogSoftmax(dim=1), ROW),
    "GLU": (lambda: nn.GLU(dim=1), ROW),
    "PReLU": (lambda: nn.PReLU(8, init=0.4), ROW),
    "Dropout": (lambda: nn.Dropout(0.9), ROW),
    "Dropout1d": (lambda: nn.Dropout1d(0.9), SIGNAL),
    "Dropout2d": (lambda: nn.Dropout2d(0), IMAGE),
    "Dropout3d": (lambda: nn.Dropout3d(1), VOLUME),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.9), ROW),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.9), IMAGE),
    "MaxPool1d": (lambda: nn.MaxPool1d(3, stride=2, padding=1, dilation=2), SIGNAL),
    "MaxPool2d": (lambda: nn.MaxPool2d((2, 3), ceil_mode=True), IMAGE),
    "MaxPool3d": (lambda: nn.MaxPool3d(2, stride=1), VOLUME),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, padding=1, count_include_pad=False), SIGNAL),
    "AvgPool2d": (lambda: nn.AvgPool2d(2, stride=(1, 2), divisor_override=3), IMAGE),
    "AvgPool3d": (lambda: nn.AvgPool3d(2, ceil_mode=True), VOLUME),
    "LPPool1d": (lambda: nn.LPPool1d(3, 2), SIGNAL),
    "LPPool2d": (lambda: nn.LPPool2d(1.5, 3, stride=2), IMAGE),
    "LPPool3d": (lambda: nn.LPPool3d(2, 2, ceil_mode=True), VOLUME),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(5), SIGNAL),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((None, 4)), IMAGE),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d([1, 2, 3]), VOLUME),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(5), SIGNAL),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(3), IMAGE),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d((2, None, 1)), VOLUME),
    "Flatten": (lambda: nn.Flatten(2, 3), IMAGE),
    "Unflatten": (lambda: nn.Unflatten(1, (2, -1)), ROW),
    "Unflatten by size": (lambda: nn.Unflatten(1, torch.Size([4, 2])), ROW),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(3), IMAGE),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(4), IMAGE),
    "Unfold": (lambda: nn.Unfold((2, 3), dilation=2, padding=1, stride=2), IMAGE),
    "Fold": (lambda: nn.Fold((4, 5), (2, 2)), (2, 8, 12)),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d((1, 2)), SIGNAL),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d((1, 2, 3, 0)), IMAGE),
    "ReflectionPad3d": (lambda: nn.ReflectionPad3d(1), VOLUME),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d(3), SIGNAL),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(1), IMAGE),
    "ReplicationPad3d": (lambda: nn.ReplicationPad3d(1), VOLUME),
    "CircularPad1d": (lambda: nn.CircularPad1d(2), SIGNAL),
    "CircularPad2d": (lambda: nn.CircularPad2d((1, 0, 2, 0)), IMAGE),
    "CircularPad3d": (lambda: nn.CircularPad3d(1), VOLUME),
    "ZeroPad1d": (lambda: nn.ZeroPad1d(2), SIGNAL),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((-1, 2, 0, 0)), IMAGE),
    "ZeroPad3d": (lambda: nn.ZeroPad3d(1), VOLUME),
    "ConstantPad1d": (lambda: nn.ConstantPad1d(2, 3.5), SIGNAL),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(1, -1), IMAGE),
    "ConstantPad3d": (lambda: nn.ConstantPad3d(1, 0.5), VOLUME),
    "Upsample": (lambda: nn.Upsample(scale_factor=(2, 1.5), mode="bilinear", align_corners=True), IMAGE),
    "Upsample to a size": (lambda: nn.Upsample(size=20, mode="linear"), SIGNAL),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGE),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(size=(5, 4)), IMAGE),
    "RNN": (lambda: nn.RNN(8, 4, nonlinearity="relu", num_layers=2), SEQUENCE),
    "LSTM": (lambda: nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, dropout=0.5), SEQUENCE),
    "LSTM with projection": (lambda: nn.LSTM(8, 6, bias=False, proj_size=3), SEQUENCE),
    "GRU": (lambda: nn.GRU(8, 4, bidirectional=True), SEQUENCE),
    "RNNCell": (lambda: nn.RNNCell(8, 4, bias=False, nonlinearity="relu"), ROW),
    "LSTMCell": (lambda: nn.LSTMCell(8, 4), ROW),
    "GRUCell": (lambda: nn.GRUCell(8, 4), ROW),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", layer_norm_eps=0.1, batch_first=True, norm_first=True),
        SEQUENCE,
    ),
    "TransformerEncoderLayer without bias": (lambda: nn.TransformerEncoderLayer(8, 4, 16, bias=False), SEQUENCE),
    "TransformerEncoderLayer, a layer": (lambda: nn.TransformerEncoderLayer(8, 2, 4, activation=nn.ELU(0.2)), SEQUENCE),
    "TransformerEncoderLayer, a function": (
        lambda: nn.TransformerEncoderLayer(8, 2, 4, activation=functional.silu),
        SEQUENCE,
    ),
    "TransformerEncoderLayer, a function of torch's own": (
        lambda: nn.TransformerEncoderLayer(8, 2, 4, activation=torch.tanh),
        SEQUENCE,
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, norm=nn.LayerNorm(8)),
        SEQUENCE,
    ),
    "TransformerEncoder without norm": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 1, 16), 2, enable_nested_tensor=False),
        SEQUENCE,
    ),
    "Sequential": (
        lambda: nn.Sequential(OrderedDict(first=nn.Linear(8, 5), rest=nn.Sequential(nn.Tanh(), nn.Linear(5, 2)))),
        ROW,
    ),
}
# Layers that take something else than one tensor of floats: made, and asked in their own way.
OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "Bilinear": (lambda: nn.Bilinear(8, 4, 3), lambda: (torch.randn(3, 8), torch.randn(3, 4))),
    "Embedding": (lambda: nn.Embedding(9, 4, padding_idx=2, scale_grad_by_freq=True), lambda: (torch.arange(9),)),
    "Embedding renormed": (lambda: nn.Embedding(9, 4, max_norm=0.5, norm_type=1.0), lambda: (torch.arange(9),)),
    "EmbeddingBag": (
        lambda: nn.EmbeddingBag(9, 4, mode="sum", include_last_offset=True),
        lambda: (torch.arange(9), torch.tensor([0, 3, 9])),
    ),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True),
        lambda: (torch.randn(2, 3, 8),) * 3,
    ),
    "MultiheadAttention of other keys": (
        lambda: nn.MultiheadAttention(8, 4, bias=False, kdim=5, vdim=6),
        lambda: (torch.randn(3, 2, 8), torch.randn(4, 2, 5), torch.randn(4, 2, 6)),
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(8, 2, 16, activation="gelu", norm_first=True),
        lambda: (torch.randn(3, 2, 8), torch.randn(4, 2, 8)),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2, norm=nn.LayerNorm(8)),
        lambda: (torch.randn(2, 3, 8), torch.randn(2, 4, 8)),
    ),
}


def shaken(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module with random numbers in all its parameters and buffers, in evaluation mode."""
    module = _quiet(make)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(torch.rand(tensor.shape) + 0.1 if tensor.is_floating_point() else torch.full(tensor.shape, 7))
    return module.eval()


def identical(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_the_live_one_computes(name: str, legacy: bool):
    make, shape = LAYERS[name]
    live = shaken(make)
    ours = rebuilt(live, legacy)
    assert type(ours) is type(live)
    assert str(ours) == str(live).replace("torch.Size([4, 2])", "(4, 2)")
    assert not any(module.training for module in ours.modules())
    gradients, outputs = [], []
    for module in (live, ours):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        y = first(module(x * 1.0))
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad((y * torch.linspace(0, 1, y.numel()).view_as(y)).sum(), x, allow_unused=True)[0])
    identical(*outputs)
    identical(*gradients)
    with torch.no_grad():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        for parameter in [*live.parameters(), *ours.parameters()]:
            parameter.requires_grad_(False)  # as an audit asks: transformers take their fast path
        identical(first(live(x.clone())), first(ours(x.clone())))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_layer_of_other_inputs_computes_what_the_live_one_computes(name: str, legacy: bool):
    make, inputs = OTHERS[name]
    live = shaken(make)
    ours = rebuilt(live, legacy)
    torch.manual_seed(3)
    given = inputs()
    assert torch.equal(first(live(*given)), first(ours(*given)))
    assert str(ours) == str(live)


def test_every_class_of_the_table_is_tried():
    tried: set[str] = set()
    for make, _ in [*LAYERS.values(), *OTHERS.values()]:
        tried |= {f"{type(module).__module__}.{type(module).__qualname__}" for module in _quiet(make).modules()}
    assert {schema.name for schema in SCHEMAS.values()} <= tried
    assert len({schema.name for schema in SCHEMAS.values()}) >= 80


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=lambda schema: schema.kind.__name__)
def test_the_table_agrees_with_torch(schema: Any):
    """Each argument in the table is one of the constructor's, and no argument of the constructor goes by unnoticed."""
    if schema.make is not None or schema.kind in (nn.RNN, nn.LSTM, nn.GRU, nn.Identity):
        return  # made of others, or with arguments that torch passes on by position; `vars` are compared all the same
    parameters = inspect.signature(schema.kind.__init__).parameters
    live = next(
        module
        for make, _ in [*LAYERS.values(), *OTHERS.values()]
        for module in _quiet(make).modules()
        if type(module) is schema.kind
    )
    assert set(schema.arguments) <= set(parameters)
    own = {name for name in vars(live) if name not in _BASE}
    unheld = own - set(schema.arguments) - {"output_padding", "transposed", "_reversed_padding_repeated_twice"}
    assert unheld <= {"name", "value", "mode", "align_corners", "recompute_scale_factor", "min_val", "max_val"}


def test_what_a_module_holds_is_what_the_reader_knows():
    """Fails with a torch that adds something to each module, so that somebody looks who reads it."""
    known = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}
    assert known | _HOOKS == _BASE


# --- every attribute counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_an_attribute_that_contradicts_the_layer_or_is_not_there_refuses(name: str):
    """Each attribute of each class, changed or left out, gives an error, or a layer that has the changed value."""
    make = (LAYERS.get(name) or OTHERS[name])[0]
    for attribute in [key for key in vars(_quiet(make)) if key not in _BASE and key != "_flat_weight_refs"]:
        value = vars(_quiet(make))[attribute]
        for other in (object.__new__(_Class), [value], "other", 10**9, -3, 1e9, None if value is not None else 5):
            module = _quiet(make)
            object.__setattr__(module, attribute, other)
            try:
                content = saved(module)
            except (TypeError, ValueError, AttributeError):
                continue  # torch itself cannot save it
            try:
                ours = pickled.load(content, "f.pt", WAYS, network_wanted=True)
            except ModelError:
                continue
            assert same(vars(ours)[attribute], other), (attribute, other)
        schema = SCHEMAS[f"{type(module).__module__}.{type(module).__qualname__}"]
        module = _quiet(make)
        vars(module).pop(attribute)
        if attribute in schema.older or isinstance(module, nn.RNNBase):
            continue
        with pytest.raises(ModelError):
            pickled.load(saved(module), "f.pt", WAYS, network_wanted=True)


class _Class:
    """A class that no table knows."""


def _hooked(name: str) -> Callable[[nn.Module], Any]:
    return lambda module: getattr(module, name).__setitem__(0, _some_function)


def _some_function(*_: Any) -> None:
    raise AssertionError("called")


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    **{name: _hooked(name) for name in sorted(_HOOKS)},
    "forward": lambda module: module.__dict__.__setitem__("forward", _some_function),
    "state_dict": lambda module: module.__dict__.__setitem__("state_dict", _some_function),
    "_call_impl": lambda module: module.__dict__.__setitem__("_call_impl", _some_function),
    "_slow_forward": lambda module: module.__dict__.__setitem__("_slow_forward", "text"),
    "eval": lambda module: module.__dict__.__setitem__("eval", 5),
    "train": lambda module: module.__dict__.__setitem__("train", _some_function),
    "__call__": lambda module: module.__dict__.__setitem__("__call__", 1),
    "__class__": lambda module: module.__dict__.__setitem__("__class__", _Class),
    "__dict__": lambda module: module.__dict__.__setitem__("__dict__", {}),
    "_private": lambda module: module.__dict__.__setitem__("_private", 1),
    "in_features": lambda module: module.__dict__.__setitem__("in_features", _Class()),
    "notes": lambda module: module.__dict__.__setitem__("notes", [nn.ReLU]),
    "object": lambda module: module.__dict__.__setitem__("object", _Class()),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_could_change_a_layer_refuses_the_file(change: str, legacy: bool):
    module = nn.Linear(2, 2)
    CHANGES[change](module)
    with pytest.raises(ModelError) as refused:
        rebuilt(nn.Sequential(nn.ReLU(), module), legacy)
    message = str(refused.value)
    assert change in message
    assert "at 1" in message
    if change != "in_features":
        assert isinstance(refused.value, ModelRefused)
        assert WAYS in message
        assert "--arch" in message


def test_a_method_that_torch_does_not_save_is_refused_where_a_file_has_it():
    module = nn.Linear(2, 2)
    module.__dict__["_compiled_call_imp1"] = 5
    members = unzipped(saved(module))
    renamed = {name: content.replace(b"_call_imp1", b"_call_impl") for name, content in members.items()}
    with pytest.raises(ModelRefused, match="_compiled_call_impl"):
        pickled.load(hostile.zipped(renamed), "f.pt", WAYS, network_wanted=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: weight_norm(nn.Linear(2, 2)), "WeightNorm|hooks"),
        (lambda: spectral_norm(nn.Linear(2, 2)), "hooks"),
        (lambda: prune.l1_unstructured(nn.Linear(2, 2), "weight", 1), "hooks"),
        (lambda: nn.ModuleList([nn.Linear(2, 2)]), "ModuleList.*joined"),
        (lambda: nn.Sequential(nn.ModuleDict({"a": nn.Linear(2, 2)})), "at 0: a torch.*ModuleDict.*joined"),
        (lambda: nn.Sequential(nn.Module()), "joined"),
        (hostile.net, r"torch\.nn\.modules\.module\.Module.*joined"),
        (nn.CrossEntropyLoss, r"torch\.nn\.modules\.loss\.CrossEntropyLoss"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.FractionalMaxPool2d(2, 2)), "at 1: a torch.*FractionalMaxPool2d"),
        (lambda: nn.LazyLinear(3), "UninitializedParameter|LazyLinear"),
        (lambda: nn.Transformer(8, 2, 1, 1, 8), "Transformer"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_not_in_the_table_is_refused_by_name(make: Callable[[], nn.Module], words: str):
    with pytest.raises(ModelRefused, match=words) as refused:
        rebuilt(_quiet(make))
    assert WAYS in str(refused.value)


class Net(nn.Module):
    """A network of somebody's own."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 3)
        self.activation = functional.relu
        self.layer = nn.LayerNorm
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("shift", torch.zeros(1))
        self.config = _Class()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.scale + self.shift


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "inside", [lambda m: m, lambda m: {"model": m, "epoch": 3}, nn.DataParallel], ids=["alone", "in", "dp"]
)
def test_the_weights_in_a_network_of_ones_own_fill_its_architecture(
    inside: Callable[[nn.Module], Any], protocol: int, legacy: bool, tmp_path: Path
):
    live = shaken(Net)
    live.scale.fill_(1)  # no state dict holds it
    path = tmp_path / "net.pt"
    path.write_bytes(saved(inside(live), legacy, protocol))
    with pytest.raises(ModelRefused) as refused:
        Model.load(path)
    for words in ("test_pickled.Net", "--arch", "--trust-model", "weights"):
        assert words in str(refused.value)
    x = torch.randn(6, 4)
    with torch.no_grad():
        assert torch.equal(Model.load(path, arch=Net).logits(x), live(x))


class Furnished(Net):
    """A network that holds what networks of vision libraries hold beside their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_layer = partial(nn.LayerNorm, eps=1e-6)  # as torchvision's vision transformers keep it
        self.squashed = torch.tanh
        self.reduced = torch.max
        self.extra = nn.Buffer(torch.randn(3))
        self.settings = SimpleNamespace(lr=0.1)
        self.steps = range(3)
        self.head.weight.no_decay = True  # type: ignore[assignment]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_stands_beside_the_layers_of_a_network_does_not_matter(protocol: int, legacy: bool):
    live = shaken(Furnished)
    found = pickled.load(saved(live, legacy, protocol), "f.pt", WAYS, network_wanted=False)
    assert isinstance(found, dict)
    assert list(found) == list(live.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in live.state_dict().items())
    with pytest.raises(ModelRefused, match=r"test_pickled\.Furnished"):
        pickled.load(saved(live, legacy, protocol), "f.pt", WAYS, network_wanted=True)


def test_what_torch_compile_leaves_on_a_network_does_no_harm():
    live = shaken(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    live.__dict__["_is_torch_compile"] = True
    live[0].weight._dynamo_static_input_type = "unguarded"
    x = torch.randn(2, 4)
    identical(rebuilt(live)(x), live(x))
    identical(rebuilt(nn.DataParallel(live))(x), live(x))
    live[0].weight.another = "unguarded"
    with pytest.raises(ModelRefused, match="attributes of its own"):
        rebuilt(live)
    del live[0].weight.another
    live.__dict__["_is_torch_compile"] = "not a flag"
    with pytest.raises(ModelRefused, match="_is_torch_compile"):
        rebuilt(live)


def test_torch_still_leaves_what_the_reader_lets_by():
    live = nn.Sequential(nn.Linear(4, 4))
    compiled = torch.compile(live, backend="eager")
    compiled(torch.randn(2, 4))
    assert rebuilt(live)[0].weight.shape == (4, 4)
    with pytest.raises(ModelRefused, match="_orig_mod"):
        rebuilt(compiled)


def test_buffers_with_attributes_are_buffers():
    """``nn.LazyBatchNorm1d`` leaves a note on the running statistics that it makes."""
    live = _quiet(lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3)))
    live(torch.randn(5, 4))
    live.eval()
    x = torch.randn(2, 4)
    identical(rebuilt(live)(x), live(x))


def test_the_weights_in_a_network_are_those_of_its_state_dict():
    live = shaken(Net)
    expected = live.state_dict()
    found = weights(live)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ModelError, match="without weights"):
        weights(nn.ReLU())


# --- whole networks -----------------------------------------------------------------------------------------------------


def test_a_network_keeps_types_gradients_and_sharing():
    activation, tied = nn.ReLU(), nn.Linear(4, 4)
    live = nn.Sequential(nn.Linear(4, 4), activation, tied, activation, tied, nn.Linear(4, 4, dtype=torch.float64))
    live[0].weight.requires_grad_(False)
    live[0].weight = tied.weight
    live[5].bias.data = live[5].weight.data[0]  # two tensors over the same numbers
    ours = rebuilt(live)
    assert isinstance(ours, nn.Sequential)
    assert ours[1] is ours[3]
    assert ours[2] is ours[4]
    assert ours[0].weight is ours[2].weight
    assert ours[5].weight.dtype == torch.float64
    assert ours[5].bias.data_ptr() == ours[5].weight.data_ptr()
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in live.parameters()]
    assert len(list(ours.parameters())) == len(list(live.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_keeps_it(dtype: torch.dtype):
    live = shaken(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).to(dtype)
    ours = rebuilt(live)
    x = torch.randn(3, 4, dtype=dtype)
    assert torch.equal(live(x), ours(x))
    assert {name: t.dtype for name, t in ours.state_dict().items()} == {n: t.dtype for n, t in live.state_dict().items()}


@pytest.mark.parametrize("where", ["model", "net", "state_dict", "DataParallel", "twice parallel"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_is_found_where_people_put_it(where: str, protocol: int, tmp_path: Path):
    live = shaken(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    content: Any = {where: live, "optimizer": {"lr": 0.1}, "epoch": 3}
    if where == "DataParallel":
        content = nn.DataParallel(live)
    if where == "twice parallel":
        content = {"model": nn.DataParallel(nn.DataParallel(live))}
    path = tmp_path / "net.pt"
    path.write_bytes(saved(content, protocol=protocol))
    model = Model.load(path)
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(model.logits(x), live(x))
    assert model.origin.format == "pickled module"
    assert not model.origin.trusted


def test_numbers_of_numpy_are_numbers(tmp_path: Path):
    live = nn.Sequential(nn.Flatten(), nn.Linear(np.prod((2, 2)), np.int32(3)), nn.Dropout(np.float64(0.25)))
    ours = rebuilt(live)
    assert isinstance(ours, nn.Sequential)
    assert ours[1].in_features == 4
    assert ours[2].p == 0.25
    assert torch.equal(live.eval()(torch.ones(2, 4)), ours(torch.ones(2, 4)))


def test_a_note_on_a_layer_does_no_harm_and_is_told():
    live = nn.Linear(2, 2)
    live.note = "the last layer"  # type: ignore[assignment]
    live.class_names = ["cat", "dog"]  # type: ignore[assignment]
    live.index_of = {"cat": 0, "dog": 1}  # type: ignore[assignment]
    live.count = 5  # type: ignore[assignment]
    ours = rebuilt(live)
    assert not any(hasattr(ours, name) for name in ("note", "class_names", "index_of"))
    assert any("'note'" in note for note in pickled.describe(saved(live), "f.pt").notes)


def old(module: nn.Module, *without: str, **more: Any) -> nn.Module:
    """Return the module as an older version of torch would have saved it."""
    for child in module.modules():
        for name in ("_non_persistent_buffers_set", "_forward_hooks_with_kwargs", "_state_dict_pre_hooks", *without):
            vars(child).pop(name, None)
    vars(module).update(more)
    return module


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: old(nn.Conv2d(8, 2, 3), "padding_mode", "_reversed_padding_repeated_twice"), IMAGE),
        (
            lambda: old(nn.Conv2d(8, 2, 3, padding=1), "_reversed_padding_repeated_twice", _padding_repeated_twice=(1,) * 4),
            IMAGE,
        ),
        (lambda: old(nn.GELU(), "approximate"), ROW),
        (lambda: old(nn.Softmax(dim=None), "dim"), ROW),
        (lambda: old(nn.ReLU(), threshold=0, value=0), ROW),
        (lambda: old(nn.LSTM(8, 3), "proj_size", _data_ptrs=[]), SEQUENCE),
        (lambda: old(nn.AvgPool3d(2), "ceil_mode", "count_include_pad", "padding", "divisor_override"), VOLUME),
        (lambda: old(nn.TransformerEncoderLayer(8, 2, 8), "activation", "norm_first", "activation_relu_or_gelu"), SEQUENCE),
    ],
)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
def test_files_of_older_versions_are_rebuilt_as_torch_repairs_them(make: Callable[[], nn.Module], shape: tuple[int, ...]):
    live = make()
    fresh = type(live).__name__
    ours = rebuilt(live)
    assert type(ours).__name__ == fresh
    x = torch.randn(shape)
    with torch.no_grad():
        outcome = first(ours(x))
    repaired = pickle.loads(pickle.dumps(live)).eval()
    for name in (
        "approximate",
        "norm_first",
        "activation_relu_or_gelu",
        "divisor_override",
        "_reversed_padding_repeated_twice",
    ):
        # What torch's own __setstate__ leaves out was not there at the time.
        if name in vars(ours):
            vars(repaired).setdefault(name, vars(ours)[name])
    with torch.no_grad():
        assert torch.equal(outcome, first(repaired(x)))


# --- files that mean harm -----------------------------------------------------------------------------------------------


def _claims(module: nn.Module, **sizes: int) -> bytes:
    vars(module).update(sizes)
    return saved(module)


def _expanded(*size: int) -> nn.Module:
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.zeros(1).expand(size))
    module.in_features, module.out_features = size[1], size[0]
    return module


def _itself() -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module._modules["1"] = module
    return module


def _doubling(wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> nn.Module:
    module: nn.Module = nn.ReLU()
    for _ in range(40):
        module = nn.Sequential(wrap(module), wrap(module))
    return module


def _deep(depth: int) -> nn.Module:
    module: nn.Module = nn.ReLU()
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


def _many_views() -> nn.Module:
    numbers = torch.zeros(1024, 1024)
    layers = [nn.Linear(1024, 1024, bias=False) for _ in range(40)]
    for layer in layers:
        layer.weight = nn.Parameter(numbers)
        layer.weight.data = numbers
    return nn.Sequential(*layers)


HARM: dict[str, tuple[Callable[[], bytes], str]] = {
    "other size": (lambda: _claims(nn.Linear(4, 5), out_features=10), "weight of shape 5×4.*10×4"),
    "16 GB": (lambda: _claims(nn.Linear(4, 4), in_features=2**16, out_features=2**16), "weight of shape 4×4"),
    "more than there is": (lambda: _claims(nn.Linear(4, 4), in_features=2**62), "in_features = "),
    "overflow": (
        lambda: _claims(nn.Embedding(4, 4), num_embeddings=2**31 - 1, embedding_dim=2**31 - 1),
        "cannot be made|shape",
    ),
    "many layers": (lambda: _claims(nn.LSTM(2, 2), num_layers=10**9), "num_layers"),
    "layers that are not there": (lambda: _claims(nn.LSTM(2, 2), num_layers=200), "too few"),
    "negative": (lambda: _claims(nn.Linear(4, 4), in_features=-4), "in_features"),
    "flag": (lambda: _claims(nn.Linear(4, 4), in_features=True), "in_features = True"),
    "wide padding": (lambda: _claims(nn.ZeroPad2d(1), padding=(10**9,) * 4), "padding"),
    "expanded": (lambda: saved(_expanded(2**15, 2**15)), "many times"),
    "many views": (lambda: saved(_many_views()), "many times"),
    "itself": (lambda: saved(_itself()), "inside itself"),
    "doubling": (lambda: saved(_doubling()), "runs more than"),
    "doubling, wrapped": (lambda: saved(_doubling(nn.DataParallel)), "runs more than|nested"),
    "deep": (lambda: saved(_deep(150)), "deep"),
    "dtype": (lambda: saved(nn.Sequential(_whole())), "type torch.int64"),
    "other parameter": (lambda: saved(_with(nn.ReLU(), "_parameters", {"more": nn.Parameter(torch.ones(1))})), "not have"),
    "other buffer": (lambda: saved(_with(nn.ReLU(), "_buffers", {"more": torch.ones(1)})), "not have the buffer"),
    "no weight": (lambda: saved(_with(nn.Linear(2, 2), "_parameters", {"weight": None, "bias": None})), "should have"),
    "no numbers": (lambda: saved(_with(nn.Linear(2, 2), "_parameters", {"weight": 5, "bias": None})), "something else than"),
    "other layers": (lambda: saved(_with(nn.ReLU(), "_modules", {"more": nn.ReLU()})), "layers of its own: 'more'"),
    "no layer": (lambda: saved(_with(nn.Sequential(), "_modules", {"0": None})), "something else than a layer"),
    "forward as a child": (lambda: saved(_with(nn.Sequential(), "_modules", {"forward": nn.ReLU()})), "forward"),
    "not persistent": (lambda: saved(_passing()), "not saved"),
    "other weights": (lambda: _renamed(_other_flat()), "other weights"),
    "attention": (lambda: saved(_other_attention()), "another layer as linear1|sizes"),
}


def _whole() -> nn.Module:
    module = nn.Linear(2, 2)
    module._parameters["weight"] = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    return module


def _with(module: nn.Module, held: str, content: dict[str, Any]) -> nn.Module:
    vars(module)[held] = content
    return module


def _passing() -> nn.Module:
    module = nn.BatchNorm1d(2)
    module._non_persistent_buffers_set.add("running_mean")
    return module


class _Keeps(nn.LSTM):
    """Saves the list of weights that it is given."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state.pop("_flat_weight_refs")
        state["_flat_weights"] = [torch.zeros_like(weight) for weight in self._flat_weights]
        return state


def _other_flat() -> nn.Module:
    module = nn.LSTM(2, 2)
    module.__class__ = _Keeps
    return module


def _renamed(module: nn.Module) -> bytes:
    """Save a class of these tests under the name of the LSTM."""
    members = {
        name: content.replace(b"ctests.model.test_pickled\n_Keeps\n", b"ctorch.nn.modules.rnn\nLSTM\n")
        for name, content in unzipped(saved(module)).items()
    }
    return hostile.zipped(members)


def _other_attention() -> nn.Module:
    module = nn.TransformerEncoderLayer(8, 2, 4)
    module.linear2 = nn.Linear(5, 8)
    return module


@pytest.mark.parametrize("harm", HARM)
def test_a_network_that_means_harm_is_refused_at_once(harm: str):
    make, words = HARM[harm]
    content = make()
    start = time.process_time()
    with pytest.raises(ModelError, match=words):
        pickled.load(content, "f.pt", WAYS, network_wanted=True)
    assert time.process_time() - start < 2
    pickled.describe(content, "f.pt")
    assert time.process_time() - start < 4


def test_weights_of_layers_in_themselves_are_refused():
    for module in (_itself(), _doubling(), _deep(150)):
        with pytest.raises(ModelError, match=r"deeply|many"):
            weights(module)


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _again(setup: bytes, call: bytes, times: int = 100_000) -> bytes:
    """Keep what `setup` leaves on the stack and in the memory, and do something with it many times."""
    return b"\x80\x02" + setup + b"(" + call * times + b"t."


def _tensor_of_one() -> bytes:
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x01tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00))\x89}tR"


def _layer_of(modules: bytes, more: bytes = b"") -> bytes:
    held = _text("_parameters") + b"}" + _text("_buffers") + b"}" + _text("_modules") + modules + more
    return b"cown\nLayer\n)\x81}(" + held + b"ub"


MANY = b"(" + b"N" * 900_000
PAIRS = b"]" + b"(" + b"h\x02" * 300_000 + b"e\x85q\x01"
OWN = b"}q\x010" + _layer_of(b"h\x01") + b"q\x020h\x01("  # a layer whose dict of layers is filled below
LONG = [_text(letter * 10**5) + b"q" + bytes([place]) + b"0" for place, letter in enumerate("abcdefghijklmnop" * 6)]
DOUBLED = b"N" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(1, 60))
SHARED: dict[str, bytes] = {
    "a set of one list": _again(b"cbuiltins\nset\nq\x00]" + MANY + b"e\x85q\x01", b"h\x00h\x01R"),
    "a size of one list": _again(b"ctorch\nSize\nq\x00]" + MANY + b"e\x85q\x01", b"h\x00h\x01R"),
    "a dict of one list": _again(_text("k") + b"N\x86q\x02ccollections\nOrderedDict\nq\x00" + PAIRS, b"h\x00h\x01R"),
    "one tuple of arguments": _again(b"ctorch\ndevice\nq\x00" + MANY + b"tq\x01", b"h\x00h\x01R"),
    "one long key": b"\x80\x02" + MANY + b"tq\x010}" + b"h\x01Ns" * 150_000 + b".",
    "keys of one hash": b"\x80\x02}(" + b"".join(_integer(k * (2**61 - 1)) + b"N" for k in range(1, 300_000)) + b"u.",
    "tuples of one hash": b"\x80\x02}("
    + b"".join(b"(" + b"".join(_integer(-1 - (i >> k & 1)) for k in range(15)) + b"tN" for i in range(2**15))
    + b"u.",
    "one long name of a storage": _again(
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x05" + b"N" * 900_000 + b"tq\x01",
        b"h\x01Q",
    ),
    "long names of classes": b"\x80\x04" + b"".join(LONG) + b"("
    + b"".join(b"h%ch%c\x93" % (i, j) for i in range(96) for j in range(96)) + b"t.",
    "a record as a key": b"\x80\x02}cown\nLayer\n)\x81" + DOUBLED + b"b" + _tensor_of_one() + b"s.",
    "long text in many keys": b"\x80\x02}" + _text("x" * 10**7) + b"q\x010" + _tensor_of_one() + b"q\x020("
    + b"".join(b"(" + _text(str(i)) + b"h\x01" * 15 + b"th\x02" for i in range(200)) + b"u.",
    "prefixes without end": b"\x80\x02}" + _text("module." * 2_000_000) + _tensor_of_one() + b"s.",
    "layers that share layers": b"\x80\x02" + OWN + b"".join(_text(f"m{i}") + b"h\x02" for i in range(100_000)) + b"u0h\x02.",
    "layers that share nothing": b"\x80\x02" + OWN
    + b"".join(_text(f"m{i}") + b"N" for i in range(250_000))
    + _text("y") + b"h\x02" + _text("z") + b"h\x02u0h\x02.",
    "layers of long names": b"\x80\x02" + OWN + b"".join(_text(letter * 10**6) + b"h\x02" for letter in "abcdef") + b"u0h\x02.",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARED)
def test_what_a_pickle_says_once_is_not_done_a_hundred_thousand_times(case: str):
    content = hostile.zipped({"archive/data.pkl": SHARED[case], "archive/byteorder": b"little", "archive/data/0": bytes(4)})
    for wanted in (True, False):
        begun = time.process_time()
        with contextlib.suppress(ModelError):
            pickled.load(content, "f.pt", WAYS, network_wanted=wanted)
        assert time.process_time() - begun < 5
    begun = time.process_time()
    with contextlib.suppress(ModelError):
        pickled.describe(content, "f.pt")
    assert time.process_time() - begun < 5


@pytest.mark.slow
def test_a_network_whose_layers_share_one_dict_of_nothing_is_refused():
    """Each layer by itself is in order, and looks at the 200,000 names that all of them share."""
    network = nn.Sequential(*(nn.Identity() for _ in range(200)))
    shared = dict.fromkeys(map(str, range(200_000)))
    for module in network:
        module.__dict__["_parameters"] = shared
    begun = time.process_time()
    with pytest.raises(ModelError, match="attributes, weights and layers in all"):
        rebuilt(network)
    assert time.process_time() - begun < 8


AMPLIFIERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "padding": (lambda: nn.ConstantPad2d(30_000, 0.0), (1, 2, 2)),
    "convolution": (lambda: nn.Conv2d(1, 1, 1, padding=30_000), (1, 2, 2)),
    "pooling": (lambda: nn.AdaptiveAvgPool2d(2**16), (1, 2, 2)),
    "doubling sides": (lambda: nn.Sequential(*[nn.Upsample(scale_factor=2) for _ in range(20)]), (1, 2, 2)),
    "unfolding": (lambda: nn.Unfold(1, padding=30_000), (1, 2, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(1, 1, 1, stride=30_000), (1, 3, 3)),
}


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_a_network_that_makes_gigabytes_of_one_sample_is_refused_before_it_does(name: str, tmp_path: Path):
    make, shape = AMPLIFIERS[name]
    path = tmp_path / "net.pt"
    path.write_bytes(saved(nn.Sequential(make(), nn.Flatten())))
    model = Model.load(path, device="cpu")
    start = time.process_time()
    with pytest.raises(ModelError, match="exhaust the machine"):
        model.logits(torch.zeros((2, *shape)))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", LAYERS)
def test_each_operation_of_each_layer_tells_the_size_of_its_result(name: str, monkeypatch: pytest.MonkeyPatch):
    """Where one could not tell, it would run unasked."""
    make, shape = LAYERS[name]
    module = shaken(make)
    told = []
    monkeypatch.setattr(bounded, "size", lambda returned, real=bounded.size: told.append(real(returned)) or told[-1])
    with torch.no_grad(), bounded._Asks() as asks:
        module(torch.randn(shape))
    assert len(told) == asks.operations


# --- checkpoints --------------------------------------------------------------------------------------------------------

LIGHTNING = (
    b"\x80\x02}(X\x09\x00\x00\x00callbacks}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}s"
    b"X\x10\x00\x00\x00hyper_parameterscpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81(X\x02\x00\x00\x00lrG?"
    b"\x50\x62\x4d\xd2\xf1\xa9\xfcX\x04\x00\x00\x00kindcomegaconf.base\nMetadata\n)\x81}X\x08\x00\x00\x00ref_type"
    b"ctyping\nAny\nsbu"
)


def lightning(content: dict[str, Tensor]) -> bytes:
    """Return a checkpoint with what older Lightning puts beside the weights: classes as keys, dicts and settings of its own."""
    members = unzipped(saved(content))
    name = next(member for member in members if member.endswith("data.pkl"))
    members[name] = LIGHTNING + b"X\x0a\x00\x00\x00state_dict" + members[name][2:-1] + b"u."
    pickletools.dis(members[name], out=io.StringIO())  # well formed
    return hostile.zipped(members)


def test_weights_are_found_in_lightning_checkpoints():
    expected = {"model.a": torch.ones(2), "model.b": torch.zeros(3)}
    found = pickled.load(lightning(expected), "f.pt", WAYS, network_wanted=False)
    assert isinstance(found, dict)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_are_found_beside_what_training_scripts_keep():
    """A whole optimizer has parameters as keys; Lightning keeps what hydra made, partial classes too."""
    live = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(live.parameters())
    live(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    hydra = {"optimizer": partial(torch.optim.Adam, lr=0.1), "net": nn.Sequential(nn.Linear(5, 5))}
    for legacy in (False, True):
        content = {"state_dict": live.state_dict(), "optimizer": optimizer, "hyper_parameters": hydra, "span": range(3)}
        found = weights(content, legacy)
        assert list(found) == ["weight", "bias"]
        assert torch.equal(found["weight"], live.weight)


def test_keys_of_dicts_are_not_written_out():
    """A record of tuples of tuples takes for ever to write."""
    pairs = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40))  # a pair of the pair before, 40 times
    key = b"cmypackage\nThing\n" + pairs + b"\x85\x81"
    weight = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    weight += b"X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89}tR"
    start = time.process_time()
    with contextlib.suppress(ModelError):
        pickled.load(hostile.torch_zip(b"\x80\x02}" + key + weight + b"s."), "f.pt", WAYS, network_wanted=False)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "os.system"),
        (b"}X\x01\x00\x00\x00acsubprocess\nPopen\n)\x81}bs.", "subprocess.Popen"),
        (b"cfunctools\npartial\ncbuiltins\neval\n\x85R.", "builtins.eval"),
        (b"cmypackage\nrun\n)R.", "mypackage.run"),
        (b"cfunctools\npartial\nctorch.hub\nload\n\x85R)R.", "functools.partial"),
        (b"cbuiltins\ngetattr\nctorch\nhub\nX\x04\x00\x00\x00load\x86R.", "builtins.getattr"),
        (b"cbuiltins\ngetattr\nctorch._C\n_VariableFunctionsClass\nX\x09\x00\x00\x00from_file\x86R)R.", "torch.from_file"),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n)"
            b"}X\x07\x00\x00\x00forwardcbuiltins\nprint\nstR.",
            "torch._tensor._rebuild_from_type_v2",
        ),
        (b"ctorch.jit\nload\nX\x01\x00\x00\x00a\x85R.", "torch.jit.load"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch.nn\nLinear\n)}tR.", "torch._tensor._rebuild_from_type_v2"),
        (b"ccopyreg\n_reconstructor\n)R.", "copyreg._reconstructor"),
        (b"c\nsystem\n.", "system"),
    ],
)
@pytest.mark.parametrize("wanted", [False, True])
def test_names_that_no_honest_file_uses_refuse_it(program: bytes, name: str, wanted: bool):
    file = hostile.torch_zip(b"\x80\x02" + program)
    with pytest.raises(ModelRefused, match="asks for") as refused:
        pickled.load(file, "f.pt", WAYS, network_wanted=wanted)
    assert name in str(refused.value)
    described = pickled.describe(file, "f.pt")
    assert name in described.refused
    assert any(name in executed for executed in described.executes)


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        (b"cbuiltins\ngetattr\nctorch._dynamo.eval_frame\nOptimizedModule\n)R.", "model._orig_mod"),
        (b"(X\x07\x00\x00\x00storagectorch\nQInt8Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.", "quantised"),
    ],
)
def test_a_refusal_says_what_to_save_instead(program: bytes, advice: str):
    file = hostile.torch_zip(b"\x80\x02" + program)
    with pytest.raises(ModelRefused, match=advice):
        pickled.load(file, "f.pt", WAYS, network_wanted=True)
    assert advice in pickled.describe(file, "f.pt").refused


def test_a_class_of_the_table_that_is_called_is_refused():
    with pytest.raises(ModelRefused, match=r"Linear"):
        pickled.load(
            hostile.torch_zip(b"\x80\x02ctorch.nn.modules.linear\nLinear\nK\x02K\x02\x86R."), "f", WAYS, network_wanted=True
        )


def test_no_name_of_python_passes_unless_it_is_listed():
    for listed in names.BESIDE_WEIGHTS:
        assert listed not in {
            f"builtins.{name}" for name in ("eval", "exec", "getattr", "__import__", "open", "compile", "map")
        }


# --- descriptions -------------------------------------------------------------------------------------------------------


def test_a_network_is_described_without_its_numbers():
    live = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
    live[3].weight = nn.Parameter(torch.zeros(10, 8))
    described = pickled.describe(saved(live), "f.pt")
    assert described.format == "pickled module"
    assert described.parameters == sum(p.numel() for p in live.parameters())
    assert [layer.kind for layer in described.layers] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert [layer.name for layer in described.layers] == ["0", "1", "2", "3"]
    assert described.inputs[0].shape == ("batch", 3, "height", "width")
    assert described.outputs[0].shape == ("batch", 10)
    assert described.refused == ""
    assert not described.needs_arch
    assert "torch.nn.modules.conv.Conv2d" in described.executes


def test_weights_and_refused_networks_are_described():
    described = pickled.describe(saved({"state_dict": {"a.weight": torch.ones(2, 3)}}), "f.pt")
    assert described.needs_arch
    assert described.parameters == 6
    assert described.executes == ()
    own = pickled.describe(saved(Net()), "f.pt")
    assert "test_pickled.Net" in own.refused
    assert any("test_pickled.Net" in name for name in own.executes)
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(_some_function)
    described = pickled.describe(saved(hooked), "f.pt")
    assert "_forward_hooks" in described.refused
    assert any("_some_function" in name for name in described.executes)


# --- damage -------------------------------------------------------------------------------------------------------------

WHOLE = {
    legacy: saved(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LSTM(8, 2), nn.Linear(2, 2)), legacy)
    for legacy in (False, True)
}


@settings(max_examples=200, deadline=None)
@given(legacy=st.booleans(), at=st.integers(0, 10**6), byte=st.integers(0, 255), wanted=st.booleans())
def test_a_damaged_network_is_an_error_of_ours_or_loads(legacy: bool, at: int, byte: int, wanted: bool):
    content = bytearray(WHOLE[legacy])
    content[at % len(content)] = byte
    for read in (
        lambda: pickled.load(bytes(content), "f.pt", WAYS, network_wanted=wanted),
        lambda: pickled.describe(bytes(content), "f"),
    ):
        with contextlib.suppress(ModelError):
            read()


def test_nothing_of_torch_that_unpickles_is_reached(monkeypatch: pytest.MonkeyPatch):
    def unsafe(*_: Any, **__: Any) -> None:
        raise AssertionError("an unsafe reader was called")

    content = saved(shaken(lambda: nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 4))))
    for owner, name in ((torch, "load"), (pickle, "loads"), (pickle, "load"), (pickle.Unpickler, "find_class")):
        if owner is not pickle.Unpickler:
            monkeypatch.setattr(owner, name, unsafe)
    monkeypatch.setattr(nn.Module, "__setstate__", unsafe)
    assert isinstance(pickled.load(content, "f.pt", WAYS, network_wanted=True), nn.Sequential)


def test_the_transpose_of_a_large_weight_is_no_large_value(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first linear layer of VGG-16 has more weights than any value may have numbers.
    monkeypatch.setattr(bounded, "MOST_NUMBERS", 1000)
    bounded.check(nn.Linear(100, 40), torch.zeros(1, 100))
    with pytest.raises(ModelError, match="at most 1,000"):
        bounded.check(nn.Upsample(size=(40, 40)), torch.zeros(1, 1, 10, 10))
    with pytest.raises(ModelError, match="at most 1,000"):
        bounded.check(nn.ReflectionPad1d(500), torch.zeros(1, 1, 600))
