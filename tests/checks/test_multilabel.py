"""Networks that tell several labels at once: how they are read, judged and attacked, and what does not apply to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, hamming_loss, precision_score, recall_score
from torch import Tensor, nn

import audit
from audit.attacks import APGD, FGSM, FMN, PGD, Square, ThreatModel, UniformNoise, registry, verify
from audit.attacks.goal import Goal, fixed_loss
from audit.attacks.sanity import gradient_correlation
from audit.certificates.certify import certify
from audit.checks.base import Task
from audit.checks.performance import Performance
from audit.data.base import Dataset
from audit.errors import AuditError, DataError, ModelError, UsageError
from audit.explain import explain
from audit.hardening import harden
from audit.model.outputs import label_sets, right_answers
from audit.model.wrapper import Model
from tests.realdata import mnist
from tests.stagerun import run_check

NETS = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 3))
"""


class Logits(nn.Module):
    """Takes the logits straight from the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Tanh(nn.Module):
    """Ends in sigmoids that are not called so."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (1 + (x / 2).tanh())


def told(n: int = 300, labels: int = 4, noise: float = 0.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels that they mostly tell."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, labels)) < np.linspace(0.2, 0.6, labels)).astype(np.int64)
    return (2 * y - 1 + noise * rng.normal(size=(n, labels))).astype(np.float32), y


def judged(x: np.ndarray, y: np.ndarray, module: nn.Module | None = None, **data):
    model = Model(module or Logits(), device="cpu", batch_size=64, task="multilabel")
    dataset = Dataset(x, y, **data)
    model.resolve(x, dataset.test.y)
    return run_check(Performance(), Task(model=model, data=dataset, options=Performance.Options()))


# --- what is right ----------------------------------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn():
    x, y = told()
    result, predicted = judged(x, y, classes=["a", "b", "<c>", "b "]), (x > 0).astype(int)
    assert result.status == "measured"
    assert result.metric("performance.accuracy").value == pytest.approx(accuracy_score(y, predicted))
    assert result.metric("performance.accuracy").params["headline"] is True
    assert result.metric("performance.hamming_accuracy").value == pytest.approx(1 - hamming_loss(y, predicted))
    assert (result.outcomes.bits("performance.correct") == (predicted == y).all(axis=1)).all()
    (table,) = result.tables
    columns = {
        name: [row[table.columns.index(name)] for row in table.rows] for name in ("recall", "precision", "F1", "accuracy")
    }
    assert columns["recall"] == pytest.approx(recall_score(y, predicted, average=None))
    assert columns["precision"] == pytest.approx(precision_score(y, predicted, average=None))
    assert columns["F1"] == pytest.approx(f1_score(y, predicted, average=None))
    assert columns["accuracy"] == pytest.approx((y == predicted).mean(axis=0))


def test_every_metric_is_documented_and_holds_its_value():
    x, y = told()
    result = judged(x, y, reference=(x + 1e-3, y))
    known = {doc.id for doc in Performance.metrics}
    for metric in result.metrics:
        end = metric.id.rpartition(".")[2]
        documented = {"recall": "performance.<class>.recall", "label_accuracy": "performance.<label>.label_accuracy"}
        assert documented.get(end, metric.id) in known
        assert metric.low <= metric.value <= metric.high
    assert len({metric.id for metric in result.metrics}) == len(result.metrics)
    assert result.metric("performance.overfitting_gap").value is not None


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_sample_is_right_where_all_its_labels_are(n: int, labels: int, seed: int):
    rng = np.random.default_rng(seed)
    logits, y = rng.normal(size=(n, labels)).astype(np.float32), rng.integers(0, 2, (n, labels))
    logits[rng.random((n, labels)) < 0.05] = 0.0  # not above 0: absent
    logits[rng.random((n, labels)) < 0.05] = np.nan
    by_hand = np.asarray(
        [all(np.isfinite(z) and (z > 0) == bool(t) for z, t in zip(*rows, strict=True)) for rows in zip(logits, y, strict=True)]
    )
    assert (right_answers(logits, y) == by_hand).all()
    assert (~Goal("multilabel", torch.from_numpy(y)).broken(torch.from_numpy(logits)).numpy() == by_hand).all()


def test_constant_answers_are_found_out_and_honest_ones_not():
    x, y = told(n=400)
    honest = judged(x, y)
    assert not [f for f in honest.findings if f.severity in ("high", "medium")]
    always = judged(np.where(np.arange(4) == 1, x, -1.0).astype(np.float32), y)
    titles = [f.title for f in always.findings]
    assert "3 of 4 labels are told no better than by a constant answer" in titles
    silent = judged(np.full_like(x, -1.0), y)
    assert "Accuracy is no better than always answering one set of labels" in [f.title for f in silent.findings]


def test_samples_that_all_have_the_same_labels_say_nothing():
    x, _ = told(n=50)
    result = judged(x, np.tile([1, 0, 0, 1], (50, 1)))
    assert result.status == "incomplete"
    assert "performance.more_than_one_class" in result.reason


def test_a_test_part_that_was_trained_on_is_found_out():
    x, y = told(n=200)
    leaked = judged(x[:100], y[:100], reference=(x, y))
    assert not {e.id: e.ok for e in leaked.evidence}["performance.test_unseen"]
    fresh = judged(x[:100], y[:100], reference=(x[100:], y[100:]))
    assert {e.id: e.ok for e in fresh.evidence}["performance.test_unseen"]


def test_a_network_that_draws_its_answers_is_found_out():
    class Drunk(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.3 * torch.randn_like(x)

    x, y = told(n=100)
    result = judged(x, y, Drunk())
    assert not {e.id: e.ok for e in result.evidence}["performance.deterministic"]


def test_a_sign_that_turns_with_the_batch_is_found_out_though_no_class_would():
    class Herd(nn.Module):
        """Shifts one label by what stands in the batch: by less than its spread allows, so that the sign alone shows it."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x[:, :1], x[:, 1:2] - 1e-6 * (len(x) > 1)), dim=1)

    x = np.stack([np.linspace(-9, 9, 64), np.full(64, 5e-7)], axis=1).astype(np.float32)
    result = judged(x, (x > 0).astype(int), Herd())
    (seen,) = [e for e in result.evidence if e.id == "performance.batch_independent"]
    assert not seen.ok


# --- what the network returns -----------------------------------------------------------------------------------------


def test_labels_of_two_dimensions_tell_the_task():
    x, y = told()
    model = Model(Logits(), device="cpu")
    model.resolve(x, y)
    assert (model.task, model.output, model.classes) == ("multilabel", "multilabel_logits", 4)
    assert torch.equal(model.predict(x), torch.from_numpy((x > 0).astype(np.int64)))


def test_sigmoids_are_undone():
    x, y = told()
    model = Model(nn.Sequential(Logits(), nn.Sigmoid()), device="cpu")
    model.resolve(x, y)
    assert model.output == "multilabel_probabilities"
    far = torch.tensor([[-60.0, 60.0, 1.0, -1.0]])
    assert torch.equal(model.logits(far), far), "a sigmoid of 60 is 1 in float32: only what stands before it tells"


def test_sigmoids_out_of_sight_are_asked_for_and_brought_to_log_odds():
    x, y = told()
    with pytest.raises(UsageError, match="--output multilabel_logits or --output multilabel_probabilities"):
        Model(Tanh(), device="cpu").resolve(x, y)
    model = Model(Tanh(), device="cpu", output="multilabel_probabilities")
    model.resolve(x, y)
    assert model.task == "multilabel"
    assert torch.allclose(model.logits(torch.from_numpy(x)), torch.from_numpy(x), atol=1e-4)
    assert any("out of reach" in note for note in model.notes)


@pytest.mark.parametrize("output", [None, "multilabel_probabilities"])
def test_a_softmax_is_none_of_labels(output: str | None):
    x, y = told()
    with pytest.raises(ModelError, match="ends in a softmax"):
        Model(nn.Sequential(Logits(), nn.Softmax(dim=1)), device="cpu", task="multilabel", output=output).resolve(x, y)


def test_what_does_not_fit_together_says_how_to_mend_it():
    x, y = told()
    with pytest.raises(UsageError, match=r"contradict.*multilabel_logits, multilabel_probabilities"):
        Model(Logits(), task="multilabel", output="logits")
    with pytest.raises(UsageError, match="say --task multilabel"):
        Model(Logits(), task="classification").resolve(x, y)
    with pytest.raises(UsageError, match="--output multilabel_logits"):
        Model(Logits(), output="logits").resolve(x, y)
    with pytest.raises(UsageError, match=r"labels of shape \(samples, labels\)"):
        Model(Logits(), task="multilabel").resolve(x, y[:, 0])
    with pytest.raises(ModelError, match="binary_logit"):
        Model(nn.Linear(4, 1), task="multilabel").resolve(x, y)
    with pytest.raises(ModelError, match="5 labels were stated"):
        Model(Logits(), task="multilabel", classes=5).resolve(x, y)


def test_one_hot_classes_are_not_taken_for_labels():
    x, y = told()
    hot = np.eye(4, dtype=np.int64)[y.sum(axis=1) % 4]
    with pytest.raises(UsageError, match=r"y\.argmax\(axis=1\)"):
        Model(Logits()).resolve(x, hot)
    with pytest.raises(UsageError, match=r"y\.argmax\(axis=1\)"):
        Model(Logits(), task="classification").resolve(x, hot)
    stated = Model(Logits(), task="multilabel")
    stated.resolve(x, hot)
    assert stated.output == "multilabel_logits"


def test_each_set_of_labels_has_a_number_of_its_own():
    every = torch.cartesian_prod(*[torch.tensor([0, 1])] * 6)
    assert len(label_sets(every).unique()) == 64
    many = (torch.rand((500, 80), generator=torch.Generator().manual_seed(0)) > 0.5).long()
    many[250:] = many[:250]
    codes = label_sets(many)
    assert torch.equal(codes[250:], codes[:250])
    assert len(codes.unique()) == 250
    assert int(codes.min()) >= 0


# --- data -------------------------------------------------------------------------------------------------------------


def test_labels_are_kept_as_they_are_and_drawn_by_sets():
    x, y = told(n=600)
    data = Dataset(x, y.astype(bool))
    assert (data.test.y.dtype, data.test.y.shape) == (np.int64, (600, 4))
    flipped = y.copy()
    flipped[7, 2] ^= 1
    assert data.test.sha256() == Dataset(x, y.astype(np.float32)).test.sha256() != Dataset(x, flipped).test.sha256()
    drawn = data.sample(150, seed=3)
    assert (drawn.test.y == y[drawn.test.ids]).all()
    sets, counts = np.unique(y, axis=0, return_counts=True)
    for labels, count in zip(sets, counts, strict=True):
        taken = int((drawn.test.y == labels).all(axis=1).sum())
        assert abs(taken - count / 4) < 1
    assert len(data.sample(5, seed=0)) == 5, "more sets of labels than samples"


def test_a_label_that_a_draw_misses_is_told():
    x, y = told(n=200)
    y[:, 3] = 0
    y[17, 3] = 1
    note = "of the 20 samples drawn none has label 3"
    assert any(note in text for seed in range(4) for text in Dataset(x, y).sample(20, seed).notes)
    assert not any("none has label 1" in text for text in Dataset(x, y).sample(20, 0).notes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: y * 2, r"got 2 in row \d+, column \d"),
        (lambda y: y - 0.5, "should hold 1 for each label"),
        (lambda y: y[:-1], r"y should have shape \(300,\), one label a sample, or \(300, labels\)"),
        (lambda y: y[:, :, None], "y should have shape"),
        (lambda y: y[:, :0], "y should have shape"),
        (lambda y: np.where(y > 0, np.nan, y), "NaN or infinity"),
    ],
)
def test_labels_that_are_no_marks_are_refused(change, match: str):
    x, y = told()
    with pytest.raises(DataError, match=match):
        Dataset(x, change(y))


def test_a_reference_part_must_have_the_same_labels():
    x, y = told()
    with pytest.raises(DataError, match="0 or 1 for each of 4 labels, got 0 or 1 for each of 3 labels"):
        Dataset(x, y, reference=(x, y[:, :3]))
    with pytest.raises(DataError, match="got one a sample"):
        Dataset.load({"x": x, "y": y}, reference={"x": x, "y": y[:, 0]})


def test_text_in_two_dimensions_is_refused():
    x, y = told(n=10)
    with pytest.raises(DataError, match="one column a label"):
        Dataset.load({"x": x, "y": np.where(y > 0, "yes", "no")}, classes=["no", "yes"])


def test_marked_rows_and_loaders_keep_their_labels():
    x, y = told(n=30)
    marks = np.arange(30) % 10 == 0
    marked = Dataset.load({"x": x, "y": y, "anomaly": marks})
    assert (marked.test.y == y[~marks]).all()
    assert len(marked.anomalies) == 3
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    assert (Dataset.load(pairs).test.y == y).all()
    assert (Dataset.load(torch.utils.data.DataLoader(pairs, batch_size=7)).test.y == y).all()


def table(n: int = 40) -> pd.DataFrame:
    x, y = told(n=n, labels=2)
    return pd.DataFrame({"u": x[:, 0], "wet": y[:, 0].astype(bool), "v": x[:, 1], "cold": y[:, 1], "g,h": 1 - y[:, 0]})


def test_several_target_columns_are_labels(tmp_path: Path):
    frame = table()
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, tmp_path / "t.csv"):
        data = Dataset.load(source, target="cold, wet", inputs=["v", "u"])
        assert (data.test.y == frame[["cold", "wet"]].to_numpy()).all()
        assert data.classes == ("cold", "wet")
    assert Dataset.load(frame, target="wet,cold").columns == ("u", "v", "g,h"), "no label may go in"
    assert Dataset.load(frame, target="g,h").test.y.shape == (40,), "a column may have a comma in its name"


def test_target_columns_that_are_no_labels_are_refused():
    frame = table()
    with pytest.raises(DataError, match="no column 'hot'"):
        Dataset.load(frame, target="wet,hot")
    with pytest.raises(UsageError, match="names a column twice"):
        Dataset.load(frame, target="wet,wet")
    with pytest.raises(UsageError, match="the network would be given the answer"):
        Dataset.load(frame, target="wet,cold", inputs=["u", "cold"])
    with pytest.raises(DataError, match="column 'cold' holds text"):
        Dataset.load(frame.assign(cold="no"), target="wet,cold")
    with pytest.raises(DataError, match=r"'cold' \(the target\) is missing in 1 rows"):
        Dataset.load(frame.assign(cold=frame.cold.where(frame.index != 3).astype("Int64")), target="wet,cold")


# --- attacks ----------------------------------------------------------------------------------------------------------


def planted(n: int = 12, seed: int = 0) -> tuple[Model, Tensor, Tensor, dict[str, Tensor]]:
    """Return a linear network of five labels, samples in the middle of the box, and the distance of the nearest flip.

    Logit l is w_l · x + b_l, so that the nearest point that flips it lies |z_l| / ‖w_l‖₁ away in L∞ and |z_l| / ‖w_l‖₂ in L2
    (Hölder), as long as the box does not bind; the sample's distance is the least of them.
    """
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(20, 5)
    with torch.no_grad():
        net.weight.copy_(torch.randn((5, 20), generator=generator))
        net.bias.copy_(-net.weight.sum(dim=1) / 2)
    x = 0.5 + 0.1 * (torch.rand((n, 20), generator=generator) - 0.5)
    with torch.no_grad():
        z = net(x)
    dual = {"linf": net.weight.abs().sum(dim=1), "l2": net.weight.norm(dim=1), "l1": net.weight.abs().amax(dim=1)}
    distances = {norm: z.abs() / size for norm, size in dual.items()}
    model = Model(net, device="cpu", bounds=(0, 1), task="multilabel", output="multilabel_logits")
    return model, x, (z > 0).long(), {norm: d.detach().amin(dim=1) for norm, d in distances.items()}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_nearest_label_is_flipped_just_beyond_its_distance_and_not_before(norm: str):
    model, x, y, distances = planted(n=6)
    for i, d in enumerate(distances[norm].tolist()):
        at = (x[i : i + 1], y[i : i + 1])
        # Each label in turn: the nearest may not be the one with the smallest logit, which the loss alone goes for.
        assert bool(APGD(norm, 1.02 * d, steps=20, targets=5, loss="margin")(model, *at).success.all())
        assert bool(PGD(norm, 1.5 * d, steps=30, restarts=2)(model, *at).success.all())
        for attack in (PGD(norm, 0.98 * d, steps=30), FGSM(norm, 0.98 * d), Square(norm, 0.98 * d, queries=50)):
            assert not bool(attack(model, *at).success.any())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_closest_example_lies_where_the_nearest_label_flips(norm: str):
    model, x, y, distances = planted()
    ratio = FMN(norm, steps=200)(model, x, y).distance / distances[norm].double()
    assert float(ratio.min()) > 0.999
    assert float(ratio.median()) < 1.1


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_attack_runs_and_keeps_box_and_radius(name: str):
    model, x, y, distances = planted(n=6)
    attack = registry()[name]
    norm = attack.norms[0]
    eps = 3.0 if norm == "l0" else 2 * float(distances[norm].max())
    out = attack(norm, eps)(model, x, y)
    ball = ThreatModel(norm, eps, np.asarray(0.0), np.asarray(1.0)).on(x)
    assert bool(ball.allows(x[out.success], out.x_adv[out.success]).all())
    assert not bool((model.predict(out.x_adv[out.success]) == y[out.success]).all(dim=1).any())


def test_the_margin_loss_goes_for_the_nearest_label_and_ce_does_not_underflow():
    goal = Goal("multilabel", torch.tensor([[1, 0, 1]]))
    z = torch.tensor([[3e4, -2e4, 9e4]], requires_grad=True)
    assert goal.loss(z, kind="margin").item() == -2e4
    for kind in ("ce", "margin", "dlr"):
        (gradient,) = torch.autograd.grad(goal.loss(z, kind=kind).sum(), z)
        assert gradient.abs().argmax() == 1
        assert gradient[0, 1] > 0
    naive = torch.nn.functional.binary_cross_entropy_with_logits(z, goal.y.float())
    (gradient,) = torch.autograd.grad(naive, z)
    assert not bool(gradient.any()), "the textbook loss has no gradient here"


@given(st.integers(0, 99), st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_margins_are_above_0_where_a_sample_is_broken_and_scaled_losses_do_not_know_the_scale(seed: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    z, y = torch.randn((8, 4), generator=generator), torch.randint(0, 2, (8, 4), generator=generator)
    goal = Goal("multilabel", y)
    assert torch.equal(goal.loss(z * scale, kind="margin") > 0, goal.broken(z * scale))
    for kind in ("ce", "dlr"):
        assert torch.allclose(goal.loss(z * scale, kind=kind), goal.loss(z, kind=kind), rtol=1e-3, atol=1e-4)
    assert torch.allclose(fixed_loss(goal, z)(z), goal.loss(z, kind="ce"))


def test_the_batch_changes_nothing_and_examples_are_verified():
    model, x, y, distances = planted(n=30)
    eps = float(distances["linf"].median())
    threat = ThreatModel("linf", eps, np.asarray(0.0), np.asarray(1.0))
    outs = []
    for size in (256, 7):
        again = Model(model.module, device="cpu", bounds=(0, 1), task="multilabel", batch_size=size)
        outs.append(PGD("linf", eps, steps=10)(again, x, y))
    assert torch.equal(outs[0].success, outs[1].success)
    assert torch.allclose(outs[0].x_adv, outs[1].x_adv)
    assert 0 < int(outs[0].success.sum()) < 30
    assert torch.equal(verify(model, x, y, outs[0].x_adv, threat), outs[0].success)
    clean = UniformNoise("linf", 0.0, draws=2)(model, x, 1 - y)
    assert bool(clean.success.all()), "wrong already"
    correlation = gradient_correlation(model, x, y, torch.arange(30), threat, seed=0)
    assert float(correlation.median()) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_certificates_hold_for_all_labels_up_to_the_nearest_flip(norm: str, sigmoid: bool):
    model, x, y, distances = planted()
    if sigmoid:
        model = Model(nn.Sequential(model.module, nn.Sigmoid()), device="cpu", bounds=(0, 1), task="multilabel")
    for i, d in enumerate(distances[norm].tolist()[:6]):
        for eps, held in ((0.98 * d - 1e-6, True), (1.02 * d + 1e-6, False)):
            threat = ThreatModel(norm, eps, np.asarray(0.0), np.asarray(1.0))
            assert bool(certify(model, x[i : i + 1], y[i : i + 1], threat).certified.all()) == held


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "status"), [(1.0, "measured"), (200.0, "incomplete")])
def test_probabilities_rounded_to_0_and_1_are_no_robustness(factor: float, status: str):
    class Rounded(nn.Module):
        """Returns probabilities whose sigmoid is out of sight, so that a large factor leaves no gradient."""

        def __init__(self, linear: nn.Module) -> None:
            super().__init__()
            self.linear, self.last = linear, Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(factor * self.linear(x))

    linear = planted()[0].module
    x = torch.rand((80, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = (linear(x) > 0).long().numpy()
    model = audit.Model(Rounded(linear), bounds=(0, 1), output="multilabel_probabilities", device="cpu")
    data = Dataset(x.numpy(), y, bounds=(0, 1))
    result = audit.run(model, data, checks=["robustness"], profile="quick", settings=["robustness.eps=[0.02]"])
    assert result["robustness"].status == status


# --- what does not apply ----------------------------------------------------------------------------------------------


def test_what_is_for_one_answer_refuses_plainly():
    model, x, y, _ = planted(n=40)
    with pytest.raises(UsageError, match="logit of one of them"):
        explain(model, x, method="integrated_gradients")
    model.resolve(x, y.numpy())
    with pytest.raises(UsageError, match="ART takes the largest"):
        model.as_art()
    data = Dataset(x.numpy(), y.numpy(), reference=(x.numpy(), y.numpy()), bounds=(0, 1))
    with pytest.raises(UsageError, match="multilabel network: no way of hardening"):
        harden(model, data, method="trades", norm="linf", eps=0.01)


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a network that tells of a digit whether it is even, above 4, and has a loop, with its data."""
    folder = tmp_path_factory.mktemp("multilabel")
    (folder / "nets.py").write_text(NETS)
    images, classes = mnist("t10k")
    y = np.stack([classes % 2 == 0, classes > 4, np.isin(classes, (0, 6, 8, 9))], axis=1).astype(np.int64)
    space: dict = {}
    exec(NETS, space)  # noqa: S102  (the architecture above)
    torch.manual_seed(0)
    net = space["make"]()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    x, labels = torch.from_numpy(images[:4000].copy()), torch.from_numpy(y[:4000]).float()
    for _ in range(8):
        for rows in torch.randperm(4000).split(100):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(x[rows]), labels[rows]).backward()
            optimiser.step()
    torch.save(net.state_dict(), folder / "model.pt")
    np.savez(
        folder / "test.npz", x=images[5000:5120], y=y[5000:5120], sensitive_thick=images[5000:5120].sum(axis=(1, 2, 3)) > 100
    )
    np.savez(folder / "train.npz", x=images[:600], y=y[:600])
    (folder / "labels.txt").write_text("even\nabove 4\nloop <b>\n")
    return folder


def asked(folder: Path, *more: str) -> list[str]:
    arch, data = f"{folder / 'nets.py'}:make", str(folder / "test.npz")
    return [str(folder / "model.pt"), "--arch", arch, "--data", data, "--classes", str(folder / "labels.txt"), *more]


@pytest.mark.slow
def test_an_audit_from_the_command_line_ends_measured(digits: Path, call, tmp_path: Path):
    out = tmp_path / "out"
    more = ["--reference", str(digits / "train.npz"), "--eps", "0.02", "--skip", "anomaly", "--profile", "quick"]
    code, said, err = call("run", *asked(digits, *more, "--samples", "100", "--expect-accuracy", "0.85", "--out", str(out)))
    assert code == 0, err + said
    result = audit.Result.load(out)
    assert {c.id: c.status for c in result.checks} == {
        "performance": "measured",
        "robustness": "measured",
        "corruption": "measured",
        "explanation": "not_applicable",
        "fairness": "not_applicable",
    }
    assert (result.model.task, result.model.output, result.model.classes) == ("multilabel", "multilabel_logits", 3)
    accuracy = result["robustness"].metric("robustness.linf.accuracy").value
    clean = result["performance"].metric("performance.accuracy").value
    assert 0 < accuracy < clean < 1
    assert result["corruption"].metric("corruption.mean_accuracy").value < clean
    assert result["performance"].metric("performance.above_4.recall").params["label"] == "above 4"
    page = (out / "report.html").read_text()
    assert "3 labels right" in page
    assert "loop <b>" not in page, "a label's name is hostile"
    data = Dataset.load(digits / "test.npz", classes=str(digits / "labels.txt"))
    model = Model.load(digits / "model.pt", arch=f"{digits / 'nets.py'}:make", bounds=(0, 1))
    replay = audit.replay(out, model, data)
    assert replay.n > 0
    assert not replay.failed


def test_commands_that_do_not_apply_end_in_one_line(digits: Path, call, tmp_path: Path):
    train = ["--reference", str(digits / "train.npz")]
    code, _, err = call("harden", *asked(digits, *train, "--method", "trades", "--eps", "0.1", "--out", str(tmp_path / "h")))
    assert (code, err.count("\n") <= 2) == (2, True)
    assert "multilabel" in err
    code, _, err = call("explain", *asked(digits, "--index", "3", "--out", str(tmp_path / "e.html")))
    assert code == 2
    assert "one for each of several labels" in err


def test_wrong_numbers_of_labels_and_names_are_told_before_any_work(digits: Path, call, tmp_path: Path):
    with np.load(digits / "test.npz") as held:
        np.savez(tmp_path / "two.npz", x=held["x"], y=held["y"][:, :2])
        np.savez(tmp_path / "twos.npz", x=held["x"], y=held["y"] * 2)
    command = ["run", str(digits / "model.pt"), "--arch", f"{digits / 'nets.py'}:make", "--out", str(tmp_path / "out")]
    code, _, err = call(*command, "--data", str(tmp_path / "two.npz"))
    assert code == 3
    assert "one column for each of the network's 3 outputs, got 2" in err
    code, _, err = call(*command, "--data", str(tmp_path / "twos.npz"))
    assert code == 3
    assert "got 2 in row" in err
    (tmp_path / "names.txt").write_text("a\nb\n")
    code, _, err = call(*command, "--data", str(digits / "test.npz"), "--classes", str(tmp_path / "names.txt"))
    assert code == 3
    assert "2 labels are named" in err
    code, _, err = call(*command, "--data", str(digits / "test.npz"), "--task", "classification")
    assert code == 2
    assert "--task multilabel" in err
    assert issubclass(UsageError, AuditError)
