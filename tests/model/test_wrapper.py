"""The Model: what the network returns is told apart, nothing in it changes, and every pass is counted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.errors import ModelError, UsageError
from audit.model.batching import BatchSize, in_batches, is_out_of_memory
from audit.model.wrapper import Model


class Ends(nn.Module):
    """A small network that ends in any function of its last layer's output."""

    def __init__(self, end: Callable[[Tensor], Tensor], outputs: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


X = torch.rand((20, 4), generator=torch.Generator().manual_seed(1)) * 4
LABELS, BINARY, REAL = np.arange(20) % 3, np.arange(20) % 2, np.linspace(0.1, 7.3, 20)


def resolved(end: Callable[[Tensor], Tensor], outputs: int, y: np.ndarray | None, **options: Any) -> tuple[Model, Tensor]:
    module = Ends(end, outputs)
    model = Model(module, device="cpu", **options)
    model.resolve(X, y)
    with torch.no_grad():
        return model, module.body(X)


# --- what the last layer returns ----------------------------------------------------------------------------------------

SOFTMAXES = {
    "module": nn.Softmax(dim=1),
    "functional": lambda z: F.softmax(z, dim=-1),
    "method": lambda z: z.softmax(1),
    "torch": lambda z: torch.softmax(z, dim=1),
    "special": lambda z: torch.special.softmax(z, 1),
    "keyword": lambda z: torch.softmax(input=z, dim=1),
    "viewed": lambda z: z[:, :, None].softmax(1).squeeze(-1),
}


@pytest.mark.parametrize("end", SOFTMAXES.values(), ids=SOFTMAXES)
@pytest.mark.parametrize("outputs", [2, 3])
def test_a_softmax_at_the_end_is_undone(end: Callable[[Tensor], Tensor], outputs: int):
    model, logits = resolved(end, outputs, LABELS % outputs)
    assert (model.output, model.task, model.classes) == ("probabilities", "classification", outputs)
    assert torch.equal(model.logits(X), logits)
    assert any("softmax" in note for note in model.notes)


SIGMOIDS = {
    "module": nn.Sigmoid(),
    "functional": F.sigmoid,
    "method": lambda z: z.sigmoid(),
    "expit": torch.special.expit,
    "in place": lambda z: z.sigmoid_(),
}


@pytest.mark.parametrize("end", SIGMOIDS.values(), ids=SIGMOIDS)
@pytest.mark.parametrize("squeeze", [False, True])
def test_a_sigmoid_at_the_end_is_undone(end: Callable[[Tensor], Tensor], squeeze: bool):
    model, z = resolved((lambda v: end(v).squeeze(1)) if squeeze else end, 1, BINARY)
    assert (model.output, model.classes) == ("binary_probability", 2)
    assert torch.equal(model.logits(X), torch.cat((torch.zeros_like(z), z), dim=1))
    assert torch.equal(model.predict(X), (z[:, 0] > 0).long())


def test_sigmoids_side_by_side_are_undone():
    model, logits = resolved(nn.Sigmoid(), 3, LABELS)
    assert torch.equal(model.logits(X), logits)
    assert any("sigmoid" in note for note in model.notes)


@pytest.mark.parametrize("end", [nn.Identity(), nn.LogSoftmax(dim=1), lambda z: F.log_softmax(z, 1), lambda z: z.relu()])
def test_logits_and_log_probabilities_are_taken_as_they_are(end: Callable[[Tensor], Tensor]):
    model, z = resolved(end, 3, LABELS)
    assert model.output == "logits"
    assert torch.equal(model.logits(X), end(z))


def test_probabilities_whose_activation_is_out_of_reach_are_audited_on_their_logarithms():
    model, z = resolved(lambda v: F.softmax(v, 1) * 1.0, 3, LABELS)
    assert model.output == "probabilities"
    assert torch.allclose(model.logits(X), z.log_softmax(1), atol=1e-5)
    assert any("out of reach" in note for note in model.notes)
    # Smoothing in place leaves the activation's memory with other values in it.
    with pytest.raises(ModelError, match="in place"):
        resolved(lambda v: F.softmax(v, 1).mul_(0.5).add_(0.5 / 3), 3, LABELS)


def test_gates_inside_a_network_are_not_taken_for_its_end():
    model, z = resolved(lambda v: v * v.sigmoid(), 3, LABELS)
    assert model.output == "logits"
    assert torch.equal(model.logits(X), z * z.sigmoid())


def test_one_number_a_sample_is_told_apart_by_labels_and_range():
    assert resolved(nn.Identity(), 1, REAL)[0].output == "regression"
    assert resolved(nn.Identity(), 1, LABELS)[0].output == "regression"
    assert resolved(lambda z: z * 9 - 3, 1, BINARY)[0].output == "binary_logit"
    assert resolved(lambda z: z * 9 - 3, 1, BINARY, task="regression")[0].output == "regression"
    with pytest.raises(UsageError, match="--output binary_logit or --output binary_probability"):
        resolved(lambda z: (z.tanh() + 1) / 2, 1, BINARY)
    with pytest.raises(UsageError, match="--task regression"):
        resolved(nn.Identity(), 1, None)
    assert resolved(lambda z: (z.tanh() + 1) / 2, 1, BINARY, output="binary_probability")[0].classes == 2


def test_what_the_user_says_wins():
    model, z = resolved(nn.Softmax(dim=1), 3, LABELS, output="logits")
    assert torch.equal(model.logits(X), z.softmax(1))
    with pytest.raises(ModelError, match="say --output logits"):
        resolved(lambda v: v * 9 - 3, 3, LABELS, output="probabilities")
    with pytest.raises(ModelError, match=r"shape \(20, 3\)"):
        resolved(nn.Identity(), 3, LABELS, output="binary_logit")
    with pytest.raises(UsageError, match="contradict"):
        Model(Ends(nn.Identity()), task="regression", output="logits")
    with pytest.raises(UsageError, match="task must be one of"):
        Model(Ends(nn.Identity()), task="clustering")
    with pytest.raises(ModelError, match="3 outputs, but 4 classes"):
        resolved(nn.Identity(), 3, LABELS, classes=4)


def test_samples_with_NaN_do_not_hide_what_the_others_show():  # noqa: N802
    def end(z: Tensor) -> Tensor:
        p = z.softmax(1)
        p.data[0] = torch.nan
        return p

    model, logits = resolved(end, 3, LABELS)
    assert model.output == "probabilities"
    assert torch.equal(model.logits(X)[1:], logits[1:])
    for outputs, y in ((3, LABELS), (1, BINARY)):
        with pytest.raises(ModelError, match="NaN or infinity"):
            resolved(lambda z: z * torch.nan, outputs, y)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda z: (z, z), "one tensor"),
        (lambda z: {"logits": z}, "dict"),
        (lambda z: z[:, :, None], r"\(20, 3, 1\)"),
        (lambda z: z.sum(), r"\(\)"),
        (lambda z: z[:5], r"\(5, 3\)"),
        (lambda z: z.argmax(1), "int64"),
        (lambda z: z @ z, "cannot take inputs"),
        (lambda z: z["logits"], "cannot take inputs"),
        (lambda z: z.no_such_attribute, "AttributeError"),
    ],
)
def test_what_cannot_be_audited_says_why(end: Callable[[Tensor], Any], words: str):
    with pytest.raises(ModelError, match=words):
        resolved(end, 3, LABELS)


def test_the_gradient_behind_a_softmax_does_not_vanish():
    sure = Ends(lambda z: (z * 1e4).softmax(1))
    model = Model(sure, device="cpu")
    model.resolve(X, LABELS)
    gradient, _ = model.gradient(lambda z: z[:, 0] - z[:, 1], X)
    assert bool((gradient.abs().sum(dim=1) > 0).all())


# --- nothing changes ----------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Changes everything that it can in forward, in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.last = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.tensor([0.0, -0.0, float("nan")]))
        self.register_buffer("kept", torch.zeros(2), persistent=False)
        self.register_buffer("lazy", None)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.mul_(-1)
        self.kept = torch.cat((self.kept, torch.ones(1)))
        self.lazy = x[0].detach().clone()
        self.register_buffer(f"new{int(self.calls)}", torch.ones(1))
        self.norm.running_mean += 1
        with torch.no_grad():
            self.last.weight.add_(1)
        if self.fails:
            raise RuntimeError("in the middle")
        return self.last(self.drop(self.norm(x)))


def state(module: nn.Module) -> dict[str, Any]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "names": list(tensors),
        "identity": {name: (id(t), t.data_ptr()) for name, t in tensors.items()},
        "bytes": {name: t.detach().numpy().tobytes() for name, t in tensors.items()},
        "training": [child.training for child in module.modules()],
        "gradients": [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()],
        "lazy": module._buffers.get("lazy", 0) is None,
    }


def restless() -> Restless:
    module = Restless().train()
    module.norm.eval()  # children in mixed modes
    module.last.bias.requires_grad_(False)
    return module


def nested(model: Model) -> None:
    with model.session(), model.session():
        model.logits(X)
        assert not any(child.training for child in model.module.modules())
        assert not any(p.requires_grad for p in model.module.parameters())


USES: dict[str, Callable[[Model], Any]] = {
    "predict": lambda m: m.predict(X),
    "logits": lambda m: m.logits(X),
    "resolve": lambda m: m.resolve(X, LABELS),
    "gradient": lambda m: m.gradient(lambda z: z.sum(dim=1), X),
    "nested sessions": nested,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("fails", [False, True])
def test_a_network_that_changes_itself_is_put_back_bit_for_bit(use: Callable[[Model], Any], fails: bool):
    module = restless()
    before = state(module)
    module.fails = fails
    model = Model(module, output="logits", device="cpu")
    if fails:
        with pytest.raises((RuntimeError, ModelError), match="in the middle"):
            use(model)
    else:
        use(model)
    after = state(module)
    assert after == before
    assert all(gradient is None for _, gradient in after["gradients"])


def test_gradients_that_were_there_before_stay():
    module = Ends(nn.Identity())
    module(X).sum().backward()
    before = copy.deepcopy([p.grad for p in module.parameters()])
    model = Model(module, device="cpu")
    model.resolve(X, LABELS)
    model.gradient(lambda z: z.sum(dim=1), X)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(module.parameters(), before, strict=True))


def test_a_network_that_refuses_evaluation_mode_is_evaluated_all_the_same():
    class Stubborn(Ends):
        def train(self, mode: bool = True) -> Stubborn:
            return super().train(True)

    module = Stubborn(nn.Dropout(0.9))
    model = Model(module, device="cpu", output="logits")
    assert torch.equal(model.logits(X), model.logits(X))
    assert module.training


# --- counting and batches -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_passes_are_counted_in_samples(n: int, batch_size: int):
    model = Model(Ends(nn.Softmax(dim=1)), device="cpu", batch_size=batch_size, output="probabilities")
    x = torch.rand(n, 4)
    model.predict(x)
    assert (model.forwards, model.backwards) == (n, 0)
    model.gradient(lambda z: z[:, 0], x)
    assert (model.forwards, model.backwards) == (2 * n, n)
    model.gradient(lambda z: torch.zeros(len(z)), x)  # nothing to go back through
    assert (model.forwards, model.backwards) == (3 * n, n)


class Small(nn.Module):
    """Has memory for eight samples."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.net, self.error, self.sizes = Ends(nn.Identity()), error, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > 8:
            raise self.error()
        return self.net(x)


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError,
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_the_batch_is_halved_when_memory_runs_out(error: Callable[[], Exception]):
    x = torch.rand(37, 4)
    module = Small(error)
    model = Model(module, device="cpu", output="logits")
    expected = Model(Ends(nn.Identity()), device="cpu", output="logits").predict(x)
    assert torch.equal(model.predict(x), expected)
    assert module.sizes[:4] == [37, 18, 9, 4]
    assert model.batch_size.current == 4
    assert model.forwards == 37, "what memory did not suffice for did not run"
    fresh = Model(Small(error), device="cpu")
    fresh.resolve(x, LABELS)
    assert fresh.output == "logits"


def test_one_sample_that_does_not_fit_is_an_error():
    def never(x: Tensor) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(never, (torch.ones(5, 2),), BatchSize(4))

    def other(x: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("another defect")

    size = BatchSize(4)
    with pytest.raises(RuntimeError, match="another defect"):
        in_batches(other, (torch.ones(5, 2),), size)
    assert size.current == 4
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(UsageError, match="at least 1"):
        Model(Ends(nn.Identity()), batch_size=0)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 30), batch_size=st.integers(1, 40))
def test_batches_join_to_the_whole(n: int, batch_size: int):
    x = torch.arange(n * 2.0).reshape(n, 2)
    whole, twice = in_batches(lambda a, b: (a + 1, b * 2), (x, x[:, 0]), BatchSize(batch_size))
    assert torch.equal(whole, x + 1)
    assert torch.equal(twice, x[:, 0] * 2)


# --- mean, std, device --------------------------------------------------------------------------------------------------


def test_mean_and_std_are_inside_the_model():
    images = torch.rand(5, 3, 2, 2)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    model = Model(module, mean=mean, std=std, device="cpu")
    scaled = (images - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model.logits(images), module(scaled))
    pixels = (images * 255).to(torch.uint8)
    assert torch.equal(
        Model(module, mean=255 * 0.5, std=255.0, device="cpu").predict(pixels),
        Model(module, mean=0.5, device="cpu").predict(pixels / 255.0),
    )
    with pytest.raises(UsageError, match="1 value or 3"):
        Model(module, mean=[0.1, 0.2], device="cpu").predict(images)
    for wrong in ({"std": 0.0}, {"std": [1.0, -1.0]}, {"mean": float("nan")}, {"mean": []}):
        with pytest.raises(UsageError):
            Model(module, **wrong)


def test_devices_are_checked():
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        Model(nn.Linear(4, 3), device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cpu"):
            Model(nn.Linear(4, 3), device="cuda")


def test_a_function_is_not_a_network():
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        Model(lambda x: x)  # type: ignore[arg-type]


def test_a_live_module_is_known_by_its_class_and_weights():
    first, same, other = (Model(Ends(nn.Identity(), seed=s)).origin for s in (0, 0, 1))
    assert first.format == "live module"
    assert first.source.endswith("Ends")
    assert first.sha256 == same.sha256 != other.sha256


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_the_device_is_restored():
    module = restless()
    before = state(module)
    Model(module, output="logits", device="cuda").predict(X)
    assert state(module) == before


# --- ART ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_art_sees_the_same_network():
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import FastGradientMethod

    images = np.random.default_rng(0).random((12, 3, 2, 2)).astype(np.float32)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(dim=1)).train()
    before = state(module)
    model = Model(module, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], bounds=(0, 1), device="cpu")
    with pytest.raises(UsageError, match="resolve"):
        model.as_art()
    y = model.predict(torch.from_numpy(images)).numpy()
    model.resolve(images, y)
    art = model.as_art()
    ours = model.logits(torch.from_numpy(images)).detach().numpy()
    assert np.allclose(art.predict(images), ours, atol=1e-6)
    forwards, backwards = model.forwards, model.backwards
    adversarial = FastGradientMethod(art, eps=0.2).generate(images, y=np.eye(3)[y])
    assert model.forwards - forwards >= 12
    assert model.backwards - backwards == 12
    assert float(np.abs(adversarial - images).max()) <= 0.2 + 1e-6
    gradient, _ = model.gradient(lambda z: F.cross_entropy(z, torch.from_numpy(y), reduction="none"), torch.from_numpy(images))
    assert np.allclose(adversarial, np.clip(images + 0.2 * gradient.sign().numpy(), 0, 1), atol=1e-6)
    assert state(module) == before, "ART switches modes; the network's own stay"


@pytest.mark.slow
def test_art_takes_regression_networks_too():
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    model = Model(Ends(nn.Identity(), 1), task="regression", device="cpu", mean=0.5)
    model.resolve(X, REAL)
    assert np.allclose(model.as_art().predict(X.numpy())[:, 0], model.values(X).detach().numpy(), atol=1e-6)
