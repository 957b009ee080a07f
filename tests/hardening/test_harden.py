"""The training loop: what it learns from, what it leaves alone, and that a killed training ends in the same bits."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.errors import DataError, ModelError, UsageError
from audit.hardening import METHODS, HardeningOptions, harden, robust_accuracy
from audit.hardening.base import learning_rate
from audit.hardening.network import trainee_of
from audit.hardening.pgd import AdversarialTraining
from audit.hardening.saved import saved
from audit.hardening.validation import split, training_data
from tests.hardening.nets import WithBatchNorm, bare, bits, digits, trained

QUICK = {"eps": 0.1, "epochs": 2, "attack_steps": 2, "validation_steps": 3, "lr": 0.005}
ENOUGH = {**QUICK, "eps": 0.2, "epochs": 4}  # the given network withstands so little that an epoch is surely better


@pytest.fixture(scope="module")
def data() -> audit.Dataset:
    return digits()


# --- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("method", "beta"), [("pgd", 6.0), ("trades", 2.0)])
def test_each_method_makes_the_network_withstand_more_of_the_test_part(data, method, beta):
    given = audit.Model(trained(), bounds=(0, 1))
    hardened, history = harden(
        given, data, method=method, eps=0.1, epochs=12, attack_steps=4, lr=0.01, batch_size=32, beta=beta
    )
    threat = audit_threat(0.1)
    _, before = robust_accuracy(given, data.test, threat, steps=20, seed=1)
    clean, after = robust_accuracy(hardened, data.test, threat, steps=20, seed=1)
    assert after > before + 0.15
    assert clean > 0.9
    assert history.ended == "epochs"
    assert history.best.robust == max(epoch.robust for epoch in history.epochs)
    assert history.forwards > history.backwards > 12 * history.n_train * 4


def audit_threat(eps: float):
    from audit.attacks import ThreatModel

    return ThreatModel("linf", eps, np.asarray(0.0), np.asarray(1.0))


def test_every_method_is_documented():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source
        assert method.__doc__


def test_the_weights_that_are_returned_are_those_of_the_best_epoch(data):
    model = audit.Model(trained(), bounds=(0, 1))
    hardened, history = harden(model, data, method="pgd", **{**QUICK, "epochs": 4})
    _, validation = split(training_data(data), 0.1, 0)
    clean, robust = robust_accuracy(hardened, validation, audit_threat(0.1), steps=3, seed=0)
    assert (clean, robust) == (history.best.clean, history.best.robust)


def test_fresh_weights_are_those_of_the_seed(data):
    given = trained()
    one, _ = harden(given, data, method="pgd", from_scratch=True, seed=3, **QUICK)
    torch.manual_seed(99)
    two, _ = harden(trained(1), data, method="pgd", from_scratch=True, seed=3, **QUICK)
    assert bits(one.module) == bits(two.module)
    three, _ = harden(given, data, method="pgd", seed=3, **QUICK)
    assert bits(one.module) != bits(three.module)


def test_a_layer_that_cannot_be_reset_is_named(data):
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 10))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    with pytest.raises(ModelError, match=r"the network \(Stubborn\) has none"):
        harden(Stubborn(), data, from_scratch=True, **QUICK)


# --- what it leaves alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_given_network_stays_as_it_was_bit_for_bit(data, training):
    network = WithBatchNorm().train(training)
    network.layers[0].weight.requires_grad_(False)
    before, grads = bits(network), [p.requires_grad for p in network.parameters()]
    hardened, _ = harden(network, data, method="pgd", **QUICK)
    assert bits(network) == before
    assert [p.requires_grad for p in network.parameters()] == grads
    assert all(p.grad is None for p in network.parameters())
    assert all(m.training == training for m in network.modules())
    assert bits(hardened.module) != before
    assert [p.requires_grad for p in hardened.module.parameters()] == grads
    assert all(m.training == training for m in hardened.module.modules())


def test_a_frozen_layer_is_not_trained_but_a_network_frozen_whole_is(data):
    network = trained()
    network[1].weight.requires_grad_(False)
    hardened, _ = harden(network, data, method="pgd", **ENOUGH)
    assert torch.equal(hardened.module[1].weight, network[1].weight)
    assert not torch.equal(hardened.module[3].weight, network[3].weight)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    hardened, _ = harden(network, data, method="pgd", **ENOUGH)
    assert not torch.equal(hardened.module[1].weight, network[1].weight)


def test_a_script_is_copied_and_trained_and_its_weights_are_written(data, tmp_path):
    network = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), tmp_path / "net.pt")
    model = audit.Model.load(tmp_path / "net.pt", trust=True)
    before = bits(model.module)
    hardened, _ = harden(model, data, method="pgd", **ENOUGH)
    assert bits(model.module) == before != bits(hardened.module)
    file = saved(hardened, model)
    assert (file.name, file.opens) == ("hardened.pt", "its weights alone: they need --arch FILE.py:FACTORY")
    network.load_state_dict(torch.load(io.BytesIO(file.content), weights_only=True))
    assert bits(network) == bits(hardened.module)


def test_the_test_part_is_not_seen(data):
    other = audit.Dataset(
        1 - data.test.x, (data.test.y + 1) % 10, reference=(data.reference.x, data.reference.y), bounds=(0.0, 1.0)
    )
    one, _ = harden(trained(), data, **QUICK)
    two, _ = harden(trained(), other, **QUICK)
    assert bits(one.module) == bits(two.module)


def test_the_box_of_a_table_is_that_of_the_samples_it_trains_on():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    table = audit.Dataset(10 * x, y, reference=(x, y))
    low, high = training_data(table).box()
    assert np.array_equal(low, x.min(axis=0))
    assert np.array_equal(high, x.max(axis=0))


def test_the_random_state_of_the_caller_is_not_touched(data):
    network = WithBatchNorm()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    harden(network, data, **QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_an_attack_in_training_moves_no_running_statistics_and_leaves_the_mode():
    trainee = trainee_of(audit.Model(WithBatchNorm(), classes=10, output="logits", bounds=(0, 1)))
    trainee.learn(freeze_batch_norm=False)
    before = bits(trainee.module)
    x = torch.rand(8, 1, 8, 8)
    with trainee.attacked():
        trainee.gradient(lambda z: z.logsumexp(dim=1), x)
        assert not any(m.training for m in trainee.module.modules())
        assert not any(p.requires_grad for p in trainee.module.parameters())
    assert bits(trainee.module) == before
    assert all(m.training for m in trainee.module.modules())
    assert all(p.requires_grad for p in trainee.module.parameters())
    trainee.logits(x)
    assert bits(trainee.module) != before, "training mode does move them"


def test_frozen_batch_normalisation_keeps_its_statistics(data):
    network = WithBatchNorm()
    kept, _ = harden(network, data, method="pgd", freeze_batch_norm=True, **QUICK)
    moved, _ = harden(network, data, method="pgd", **QUICK)
    assert torch.equal(kept.module.layers[1].running_mean, network.layers[1].running_mean)
    assert not torch.equal(moved.module.layers[1].running_mean, network.layers[1].running_mean)
    assert not torch.equal(kept.module.layers[1].weight, network.layers[1].weight)


# --- kinds of networks ------------------------------------------------------------------------------------------------


class Ending(nn.Module):
    def __init__(self, width: int, end: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, width), end)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("width", "end", "output"),
    [
        (10, nn.Softmax(dim=1), "probabilities"),
        (1, nn.Identity(), "binary_logit"),
        (1, nn.Sigmoid(), "binary_probability"),
    ],
)
def test_whatever_the_last_layer_returns_it_can_be_hardened(data, width, end, output):
    binary = width == 1
    y, y_ref = (data.test.y > 4, data.reference.y > 4) if binary else (data.test.y, data.reference.y)
    given = audit.Dataset(
        data.test.x, y.astype(np.int64), reference=(data.reference.x, y_ref.astype(np.int64)), bounds=(0.0, 1.0)
    )
    model = audit.Model(Ending(width, end), output=output, bounds=(0, 1))
    hardened, history = harden(model, given, **{**QUICK, "epochs": 6, "lr": 0.02})
    assert hardened.output == output
    assert history.best.clean > (0.7 if binary else 0.5)
    x = hardened.to_input(given.test.x[:5])
    with hardened.session(), torch.no_grad():
        raw = hardened.outputs(x)
    assert raw.shape == ((5, 10) if not binary else (5, 1))


def test_mean_and_std_hold_in_training_as_in_use(data):
    """A network that normalises itself, and one whose Model does, are trained to the same weights."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = trained()

        def forward(self, x):
            return self.layers((x - 0.25) / 0.5)

    inside, _ = harden(audit.Model(trained(), bounds=(0, 1), mean=0.25, std=0.5), data, **QUICK)
    own, _ = harden(audit.Model(Own(), bounds=(0, 1)), data, **QUICK)
    for a, b in zip(inside.module.parameters(), own.module.layers.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_networks_of_other_kinds_can_be_hardened(kind, request):
    module, data = request.getfixturevalue(kind)
    _, history = harden(module, data, eps=0.05, epochs=3, attack_steps=3, validation_steps=5, beta=1.0, lr=0.003)
    assert history.ended == "epochs"
    assert history.best.robust > history.epochs[0].robust
    assert history.best.clean > 0.8
    assert [layer.name for layer in history.epochs[-1].layers]


def test_a_regression_network_is_trained_on_the_worst_squared_error(regressor):
    module, data = regressor
    threat = standard_deviations(data, 0.3)
    hardened, history = harden(
        module, data, method="pgd", threat=threat, epochs=10, attack_steps=4, lr=0.02, validation=0.3, batch_size=64
    )
    assert history.measure == "mean absolute error"
    assert history.best.robust < 0.97 * history.epochs[0].robust
    assert hardened.task == "regression"


def standard_deviations(data, eps):
    from audit.attacks import ThreatModel

    low, high = data.box()
    return ThreatModel("linf", eps, low, high, scale=data.scale())


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_in_plain_words(data, regressor):
    module, table = regressor
    without = audit.Dataset(data.test.x, data.test.y, bounds=(0.0, 1.0))
    shifted = audit.Dataset(data.test.x, data.test.y, reference=(data.reference.x, data.reference.y + 1), bounds=(0.0, 1.0))
    few = audit.Dataset(data.test.x, data.test.y, reference=(data.reference.x[:100], data.reference.y[:100]), bounds=(0.0, 1.0))
    cases = [
        (lambda: harden(trained(), without, eps=0.1), UsageError, "--reference"),
        (lambda: harden(trained(), few, eps=0.1), UsageError, "at least 20 validation samples"),
        (lambda: harden(module, table, eps=0.1), UsageError, "--method pgd"),
        (lambda: harden(trained(), data, method="traids", eps=0.1), UsageError, "did you mean 'trades'"),
        (lambda: harden(trained(), data), UsageError, "eps=0.3"),
        (lambda: harden(trained(), data, eps=8.0), UsageError, "between 0 and the width of the box"),
        (lambda: harden(trained(), data, eps=0.1, epocs=3), UsageError, "did you mean 'epochs'"),
        (lambda: harden(trained(), data, eps=0.1, norm="l7"), UsageError, "no norm 'l7'"),
        (lambda: harden(trained(), shifted, eps=0.1), DataError, "between 0 and 9, got 1 to 10"),
        (lambda: harden(trained().half(), data, eps=0.1), ModelError, "float32 or float64"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_a_network_without_parameters_is_refused(data):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    with pytest.raises(ModelError, match="no parameters to train"):
        harden(audit.Model(Fixed(), output="logits"), data, eps=0.1)


def test_options_read_fractions_and_times():
    assert HardeningOptions(eps="8/255").eps == pytest.approx(8 / 255)
    assert [HardeningOptions(max_time=t).max_time for t in ("10m", "90s", "1.5h", "30", 12)] == [600, 90, 5400, 30, 12]
    for wrong in ({"max_time": "soon"}, {"eps": "a/b"}, {"epochs": 0}, {"validation": 1.0}):
        with pytest.raises(ValueError, match="validation error"):
            HardeningOptions(**wrong)


# --- how it ends ------------------------------------------------------------------------------------------------------


class Diverges(AdversarialTraining):
    name = "diverges"
    after = 9

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = 0

    def loss(self, network, x, x_adv, y):
        self.calls += 1
        return super().loss(network, x, x_adv, y) * (float("nan") if self.calls > self.after else 1.0)


def test_a_loss_that_is_no_number_stops_training_with_the_last_good_weights(data):
    hardened, history = harden(trained(), data, method=Diverges, **QUICK)
    assert history.ended == "not_finite"
    assert "epoch 2" in history.reason
    assert all(torch.isfinite(p).all() for p in hardened.module.parameters())
    assert history.epochs[-1].epoch == 1


def test_the_clock_stops_training_and_says_so(data):
    _, history = harden(trained(), data, **{**QUICK, "epochs": 10_000}, max_time=0.5)
    assert history.ended == "time"
    assert "the schedule did not come to its end" in history.reason


def test_patience_counts_epochs_at_the_full_radius_only(data):
    _, history = harden(trained(), data, method="pgd", **{**QUICK, "lr": 1e-9, "epochs": 12}, patience=3, warm_up=0.5)
    assert history.ended == "patience"
    assert history.kept == 0
    assert len(history.epochs) - 1 == 6 + 3 - 1  # the sixth epoch ends at the full radius and is the first that counts


def test_the_schedules_rise_and_fall():
    rates = [learning_rate(1.0, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.2
    assert rates[-1] < 0.02
    assert np.argmax(rates) == 9
    assert (np.diff(rates[9:]) <= 0).all()


def test_the_radius_grows_over_the_warm_up(data):
    _, history = harden(trained(), data, method="pgd", **{**QUICK, "epochs": 4}, warm_up=0.5)
    assert [round(epoch.eps, 4) for epoch in history.epochs] == [0.0, 0.05, 0.1, 0.1, 0.1]


# --- killed and taken up again ----------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class BreaksOff(AdversarialTraining):
    """Training that breaks off at given steps, counted over all runs."""

    name = "breaks_off"
    at: tuple[int, ...] = ()
    steps = 0

    def maximise(self, network, x, y, ascend):
        type(self).steps += 1
        if self.steps in self.at:
            raise Killed
        return super().maximise(network, x, y, ascend)


@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_was_broken_off_ends_in_the_same_bits(data, tmp_path, seed, monkeypatch):
    monkeypatch.setattr("audit.hardening.base.STORE_EVERY", 0.0 if seed else 1e9)  # after each step, or each epoch
    options = {**QUICK, "epochs": 3, "batch_size": 100, "seed": seed}
    network = WithBatchNorm()  # with running statistics and dropout
    BreaksOff.at, BreaksOff.steps = (), 0
    whole, history = harden(network, data, method=BreaksOff, **options)
    BreaksOff.at, BreaksOff.steps = tuple(np.random.default_rng(seed).choice(np.arange(1, 22), 3, replace=False)), 0
    runs = 0
    while True:
        try:
            resumed, again = harden(network, data, method=BreaksOff, out=tmp_path / "training", **options)
            break
        except Killed:
            runs += 1
    assert runs == 3
    assert bits(resumed.module) == bits(whole.module)
    timeless = [[e.model_copy(update={"seconds": 0}) for e in h.epochs] for h in (history, again)]
    assert timeless[0] == timeless[1]


class Remembers(nn.Module):
    """Adds a running mean of its answers, kept in a buffer that no state dict holds."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()
        self.register_buffer("mean", torch.zeros(10), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * logits.detach().mean(dim=0))
        return logits + self.mean


def test_buffers_that_no_state_dict_holds_are_taken_up_again(data, tmp_path, monkeypatch):
    from audit.hardening import base

    def harden_it(out=None):
        torch.manual_seed(0)
        return harden(audit.Model(Remembers(), bounds=(0, 1)), data, out=out, **QUICK)[0].module

    whole, step = harden_it(), base._Loop._one_step
    monkeypatch.setattr(base, "STORE_EVERY", 0.0)
    monkeypatch.setattr(base._Loop, "_one_step", lambda self: _stop() if self.at.step == 4 else step(self))
    with pytest.raises(KeyboardInterrupt):
        harden_it(tmp_path / "training")
    monkeypatch.setattr(base._Loop, "_one_step", step)
    resumed = harden_it(tmp_path / "training")
    assert torch.equal(resumed.mean, whole.mean)
    assert bool(whole.mean.any())
    assert bits(resumed) == bits(whole)


def _stop() -> None:
    raise KeyboardInterrupt


CHILD = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from audit.hardening import base, harden
from tests.hardening.nets import digits, trained
base.STORE_EVERY = 0.0
harden(trained(), digits(), eps=0.1, epochs=6, attack_steps=3, validation_steps=3, out=Path(sys.argv[1]), say=print)
"""


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_shows(data, tmp_path):
    whole, _ = harden(trained(), data, eps=0.1, epochs=6, attack_steps=3, validation_steps=3)
    folder = tmp_path / "training"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"}  # noqa: PTH109
    for kill_after in (1, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), str(folder)], env=environment, stdout=subprocess.PIPE, text=True
        )
        seen = 0
        for line in child.stdout:
            seen += line.startswith("epoch")
            if seen > kill_after:
                break
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    resumed, history = harden(trained(), data, eps=0.1, epochs=6, attack_steps=3, validation_steps=3, out=folder)
    assert history.ended == "epochs"
    assert bits(resumed.module) == bits(whole.module)


def test_a_finished_training_is_not_made_again_and_another_one_is(data, tmp_path):
    folder = tmp_path / "training"
    said: list[str] = []
    one, first = harden(trained(), data, out=folder, **QUICK)
    two, second = harden(trained(), data, out=folder, say=said.append, **QUICK)
    assert bits(one.module) == bits(two.module)
    assert first == second
    assert not any(line.startswith("epoch") for line in said)
    for change in ({"eps": 0.11}, {"seed": 1}, {"fresh": True}):
        said.clear()
        harden(trained(), data, out=folder, say=said.append, **{**QUICK, **change})
        assert sum(line.startswith("epoch") for line in said) == 3, change
    said.clear()
    harden(trained(1), data, out=folder, say=said.append, **QUICK)
    assert any(line.startswith("epoch") for line in said), "another network"


def test_a_damaged_checkpoint_is_made_anew(data, tmp_path):
    folder = tmp_path / "training"
    one, _ = harden(trained(), data, out=folder, **QUICK)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x80\x04not a checkpoint"):
        file.write_bytes(damaged)
        two, _ = harden(trained(), data, out=folder, **QUICK)
        assert bits(one.module) == bits(two.module)


def test_a_checkpoint_that_was_tampered_with_is_made_anew(data, tmp_path):
    """Tensors of other shapes are spread over whole layers by a copy that does not look; other numbers end in a crash."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = tmp_path / "training"
    one, _ = harden(trained(), data, out=folder, **QUICK)
    (file,) = folder.iterdir()
    with safe_open(file, framework="pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    state = json.loads(metadata["state"])
    best = next(name for name in tensors if name.startswith("best/"))
    changes = [
        ({best: torch.zeros(1)}, {}),
        ({best: torch.full_like(tensors[best], torch.nan)}, {}),
        ({}, {"passes": "many"}),
        ({}, {"epochs": [{"epoch": "<b>"}]}),
        ({}, {"progress": {**state["progress"], "kept": 99}}),
        ({}, {"progress": {**state["progress"], "ended": "<b>"}}),
    ]
    for other, numbers in changes:
        save_file({**tensors, **other}, file, {**metadata, "state": json.dumps({**state, **numbers})})
        said: list[str] = []
        two, _ = harden(trained(), data, out=folder, say=said.append, **QUICK)
        assert bits(one.module) == bits(two.module)
        assert "damaged" in said[0], (other.keys(), numbers)
    save_file({k: v for k, v in tensors.items() if k != best}, file, metadata)
    assert bits(one.module) == bits(harden(trained(), data, out=folder, **QUICK)[0].module)


def test_bare_networks_learn_too(data):
    _, history = harden(bare(), data, method="pgd", **{**QUICK, "epochs": 4, "lr": 0.02, "batch_size": 32})
    assert history.best.clean > 0.8
    assert history.epochs[0].clean < 0.4
