"""The corruption check on every kind of network and data: metrics, evidence, figures, options, and the same result again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import audit
from audit import demo_nets
from audit.checks.base import Task
from audit.checks.corruption import CorruptionCheck, CorruptionOptions
from audit.checks.corruption_seen import names, percent
from audit.corruptions import CORRUPTIONS
from audit.errors import DataError, UsageError
from tests import realdata
from tests.stagerun import run_check

IMAGES = [name for name, c in CORRUPTIONS.items() if c.kind == "image"]
ROWS = [name for name, c in CORRUPTIONS.items() if c.kind == "columns"]


def checked(
    net: nn.Module, data: audit.Dataset, *, keep: bool = True, profile: str = "quick", task: str | None = None, **options
):
    work = Task(audit.Model(net, task=task), data, CorruptionOptions(**options), profile=profile, keep_samples=keep)
    return run_check(CorruptionCheck(), work)


def evidence(result, name: str):
    return next(e for e in result.evidence if e.id == f"corruption.{name}")


def finding(result, words: str):
    return next((f for f in result.findings if words in f.title), None)


@pytest.fixture(scope="module")
def digits(digits_net) -> tuple[nn.Module, audit.Dataset]:
    net = demo_nets.DigitsNet()
    net.load_state_dict(torch.load(digits_net / "model.pt"))
    return net.eval(), audit.Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz")


@pytest.fixture(scope="module")
def diabetes(diabetes_net) -> tuple[nn.Module, audit.Dataset]:
    net = demo_nets.TableNet()
    net.load_state_dict(torch.load(diabetes_net / "model.pt"))
    where = {"reference": diabetes_net / "train.csv", "target": "progression_above_median"}
    return net.eval(), audit.Dataset.load(diabetes_net / "test.csv", **where)


@pytest.fixture(scope="module")
def of_digits(digits):
    return checked(*digits)


@pytest.fixture(scope="module")
def of_diabetes(diabetes):
    return checked(*diabetes)


def small(net: nn.Module, data: audit.Dataset, **options):
    return checked(net, data, samples=60, **options)


# --- what it reports --------------------------------------------------------------------------------------------------


def test_images_are_measured_under_every_corruption(of_digits):
    assert of_digits.status == "measured", of_digits.reason
    assert all(e.ok for e in of_digits.evidence)
    clean = of_digits.tables[0].rows[0][5]
    assert clean > 0.95
    for name in IMAGES:
        accuracy, drop = (of_digits.metric(f"corruption.{name}.{what}") for what in ("accuracy", "drop"))
        assert accuracy.low < accuracy.value < accuracy.high
        assert drop.low <= drop.value <= drop.high
        assert drop.value == pytest.approx(clean - accuracy.value)
        assert accuracy.params["severity"] == 3
        assert accuracy.n == 200
    overall = of_digits.metric("corruption.mean_accuracy")
    assert overall.params["headline"]
    rows = [row[5] for row in of_digits.tables[0].rows[1:]]
    assert len(rows) == 5 * len(IMAGES)
    assert overall.value == pytest.approx(np.mean(rows))
    assert 0.005 < overall.high - overall.low < 0.15
    assert [row[4] for row in of_digits.tables[0].rows[1:]] > [0.0], "the mean change is told"


def test_figures_are_there_to_be_looked_at(of_digits):
    figures = {f.id: f for f in of_digits.figures}
    curves = figures["corruption.curves"]
    assert curves.kind == "small_multiples"
    assert len(curves.data["panels"]) == len(IMAGES)
    for panel in curves.data["panels"]:
        (line,) = panel["series"]
        assert line["x"] == [0, 1, 2, 3, 4, 5]
        assert all(low <= y <= high for low, y, high in zip(line["low"], line["y"], line["high"], strict=True))
    bars = figures["corruption.harm"].data
    assert bars["values"] == sorted(bars["values"])
    pictures = [f for f in of_digits.figures if f.id.startswith("corruption.examples")]
    panels = [panel for f in pictures for panel in f.data["panels"]]
    assert panels == ["clean", *(CORRUPTIONS[name].title for name in IMAGES)]
    assert all(len(f.data["panels"]) <= 7 for f in pictures)
    assert all(len(item["images"]) == len(f.data["panels"]) for f in pictures for item in f.data["items"])


def test_tables_are_measured_and_imputations_compared(of_diabetes):
    assert of_diabetes.status == "measured", of_diabetes.reason
    assert {m.id.split(".")[1] for m in of_diabetes.metrics} == {*ROWS, "mean_accuracy", "imputation"}
    gap = of_diabetes.metric("corruption.imputation.gap")
    lost = {m.id.split(".")[2]: m.value for m in of_diabetes.metrics if m.id.endswith(".lost")}
    assert set(lost) == {"mean", "median", "frequent", "knn"}
    assert gap.value == pytest.approx(max(lost.values()) - min(lost.values()))
    assert 0 <= gap.low <= gap.value <= gap.high
    assert finding(of_diabetes, "For missing values") is not None
    lines = next(f for f in of_diabetes.figures if f.id == "corruption.imputation").data["series"]
    assert len(lines) == 4
    assert all(line["x"] == [0.0, 0.05, 0.1, 0.2, 0.3, 0.5] for line in lines)
    shown = next(t for t in of_diabetes.tables if t.id == "corruption.row")
    assert len(shown.rows) == 10
    assert len(shown.columns) == 2 + len(ROWS)


def test_imputations_weigh_as_one_harm_in_the_mean(diabetes, of_diabetes):
    shares: dict[str, list[float]] = {}
    for row in of_diabetes.tables[0].rows[1:]:
        shares.setdefault("missing" if row[0].startswith("missing") else row[0], []).append(row[5])
    expected = np.mean([np.mean(group) for group in shares.values()])
    assert of_diabetes.metric("corruption.mean_accuracy").value == pytest.approx(expected)


def test_without_a_reference_part_the_test_part_fills_the_gaps_and_that_is_said(diabetes):
    net, data = diabetes
    result = small(net, audit.Dataset(data.test.x, data.test.y))
    assert "filled by the test part itself" in finding(result, "Unstated defaults").detail
    assert "from the test part" in finding(result, "For missing values").detail


def test_regression_counts_outputs_that_stay(regressor):
    result = checked(*regressor)
    assert result.status == "measured", result.reason
    kept = result.metric("corruption.mean_kept")
    assert kept.low < kept.value < kept.high
    assert {m.id.rpartition(".")[2] for m in result.metrics} == {"mean_kept", "kept", "error_growth"}
    rows = {(row[0], row[1]): row for row in result.tables[0].rows}
    name = CORRUPTIONS["shifted_columns"].title
    assert result.tables[0].columns[-1] == "root mean squared error"
    assert rows["clean inputs", 0][-1] < rows[name, 3][-1] < rows[name, 5][-1]
    stated = checked(*regressor, tolerance=1e6)
    assert stated.metric("corruption.mean_kept").value == 1


def test_sequences_are_taken_for_columns(lstm):
    result = small(*lstm)
    assert result.status == "measured", result.reason
    assert {m.id.split(".")[1] for m in result.metrics} >= set(ROWS)
    assert not any(f.kind == "gallery" for f in result.figures)
    assert any("each value of the array was taken for a column" in gap for gap in result.not_tested)


def test_transformers_over_images_are_measured(transformer):
    result = small(*transformer)
    assert result.status == "measured", result.reason
    assert {m.id.split(".")[1] for m in result.metrics} >= set(IMAGES)


def test_images_of_other_kinds_leave_out_jpeg_and_say_so():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9 * 12, 3))
    x = np.random.default_rng(0).integers(0, 256, size=(40, 2, 9, 12), dtype=np.uint8)
    with torch.no_grad():
        y = net(torch.from_numpy(x).float()).argmax(dim=1).numpy()
    result = checked(net, audit.Dataset(x, y), samples=40)
    assert "corruption.jpeg.accuracy" not in {m.id for m in result.metrics}
    assert any("JPEG holds 1 or 3 channels, and the images have 2" in gap for gap in result.not_tested)
    assert not any(f.kind == "gallery" for f in result.figures)


# --- evidence: what would make the figures lie ------------------------------------------------------------------------


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).repeat(len(x), 1)


def test_a_constant_network_survives_everything_and_is_not_believed(diabetes):
    result = small(Constant(), diabetes[1])
    assert not evidence(result, "better_than_chance").ok
    assert result.status == "incomplete"
    assert finding(result, "alone") is None


def test_a_constant_regression_is_not_believed(regressor):
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 150 + 0 * x[:, 0]

    result = small(Mean(), regressor[1], task="regression")
    assert result.metric("corruption.mean_kept").value == 1
    assert not evidence(result, "better_than_chance").ok
    assert evidence(result, "better_than_chance").one_sided


def test_a_network_that_likes_noise_is_told():
    """Right only where neighbouring pixels differ: the noisier, the better."""

    class Rough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rough = (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3))
            return torch.stack((0.05 - rough, rough - 0.05), dim=1)

    smooth = np.full((60, 1, 8, 8), 0.4) + np.linspace(0, 0.2, 8)
    x = np.concatenate((smooth[:10] + 0.2 * np.random.default_rng(0).random((10, 1, 8, 8)), smooth)).astype(np.float32)
    y = np.ones(70, dtype=np.int64)
    y[60:] = 0
    result = checked(Rough(), audit.Dataset(x, y, bounds=(0, 1)), samples=70, only=["gaussian_noise", "impulse_noise"])
    assert not evidence(result, "falls_with_severity").ok


def test_a_corruption_that_changes_nothing_is_told():
    """Images without any contrast cannot lose it."""
    level = np.linspace(0.1, 0.6, 40).astype(np.float32)
    x = np.broadcast_to(level[:, None, None, None], (40, 1, 8, 8)).copy()

    class Level(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((0.35 - x.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)) - 0.35), dim=1)

    data = audit.Dataset(x, (level > 0.35).astype(np.int64), bounds=(0, 1))
    changed = evidence(checked(Level(), data), "inputs_changed")
    assert not changed.ok
    assert changed.one_sided
    assert "low contrast" in changed.detail
    assert "Gaussian noise" not in changed.detail
    assert evidence(checked(Level(), data, only=["gaussian_noise"]), "inputs_changed").ok


def test_a_network_that_guesses_is_told(digits):
    class Guess(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = digits[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + 4 * torch.randn(len(x), 10)

    result = small(Guess(), digits[1], only=["contrast", "shift"])
    assert result.status == "incomplete"
    assert not evidence(result, "deterministic").ok
    assert not evidence(result, "repeatable").ok


def test_nan_under_corruption_is_a_finding_and_counts_as_wrong(digits):
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return digits[0](x) + torch.sqrt(0.7 - x.mean(dim=(1, 2, 3)))[:, None]

    result = small(Root(), digits[1], only=["brightness", "contrast"])
    told = finding(result, "NaN or infinity")
    assert told.severity == "high"
    assert "brightness" in told.detail
    assert "contrast" not in told.detail
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


# --- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["digits", "diabetes", "regressor"])
def test_the_result_does_not_depend_on_the_batch_size(which, request):
    net, data = request.getfixturevalue(which)
    found = []
    for size in (7, 256):
        model = audit.Model(net, batch_size=size)
        result = audit.run(model, data, checks=["corruption"], settings=["corruption.samples=50"])
        found.append({m.id: (m.value, m.low, m.high) for m in result["corruption"].metrics})
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        assert found[0][key] == pytest.approx(found[1][key], abs=0.021), "at most one answer in fifty hangs on a rounding"


def test_a_seed_of_its_own_changes_the_noise_only(digits):
    first, again, other = (
        [m.value for m in small(*digits, seed=seed, only=["gaussian_noise", "shift", "contrast"], patch=False).metrics]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[3:5] == other[3:5], "contrast has no noise"


# --- options ----------------------------------------------------------------------------------------------------------


def test_no_inputs_are_kept_where_none_may_be(digits, diabetes):
    pictures = checked(*digits, keep=False, samples=60)
    rows = checked(*diabetes, keep=False, samples=60)
    assert not any(f.kind == "gallery" for f in pictures.figures)
    assert not any(t.id == "corruption.row" for t in rows.tables)
    stages = CorruptionCheck().stages(Task(audit.Model(digits[0], classes=10), digits[1], CorruptionOptions()))
    assert not any(stage.holds_inputs for stage in stages)


def test_some_corruptions_and_severities(digits):
    result = small(*digits, only=["shift", "contrast"], severities=[1, 4, 5], patch=False)
    assert result.metric("corruption.shift.accuracy").params["severity"] == 4
    assert {m.id.split(".")[1] for m in result.metrics} == {"shift", "contrast", "mean_accuracy"}
    assert any("not asked for" in gap and "Gaussian noise" in gap for gap in result.not_tested)
    assert any("patches that turn" in gap for gap in result.not_tested)


def test_one_severity_is_enough(digits):
    result = small(*digits, only=["shift"], severities=[5])
    assert evidence(result, "falls_with_severity").ok
    assert result.metric("corruption.shift.accuracy").params["severity"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("corruption.only=['fog']", "no corruption 'fog'"),
        ("corruption.only=['shift','shift']", "once"),
        ("corruption.only=[]", "at least one"),
        ("corruption.severities=[0,1]", "some of 1, 2, 3, 4, 5"),
        ("corruption.severities=[3,1]", "in that order"),
        ("corruption.samples=0", "greater than or equal to 1"),
        ("corruption.only=['column_noise']", "it is for tables"),
    ],
)
def test_options_that_make_no_sense_are_refused(digits, options, message):
    if "column_noise" in options:
        message = "none of the corruptions asked for fits|it is for tables"
        result = audit.run(audit.Model(digits[0]), digits[1], checks=["corruption"], settings=[options])
        assert result["corruption"].status == "not_applicable"
        assert "it is for tables" in result["corruption"].reason
        return
    with pytest.raises(UsageError, match=message):
        audit.run(audit.Model(digits[0]), digits[1], checks=["corruption"], settings=[options])


def test_one_corruption_of_another_kind_among_others_is_refused(digits):
    with pytest.raises(UsageError, match="column_noise does not fit this data: it is for tables"):
        audit.run(
            audit.Model(digits[0]), digits[1], checks=["corruption"], settings=["corruption.only=['shift','column_noise']"]
        )


def test_what_makes_no_sense_is_not_applicable():
    def reason(x: np.ndarray) -> str | None:
        data = audit.Dataset(x, np.arange(len(x)) % 2)
        return CorruptionCheck().not_applicable(Task(audit.Model(Constant()), data, CorruptionOptions()))

    assert "smaller than 8×8" in reason(np.zeros((4, 1, 7, 9)))
    assert "no column varies" in reason(np.ones((4, 3)))
    assert reason(np.random.default_rng(0).random((4, 1, 8, 8))) is None


def test_images_without_a_box_are_refused(digits):
    data = audit.Dataset(digits[1].test.x * 7 - 3, digits[1].test.y)
    with pytest.raises(DataError, match="--bounds"):
        audit.run(audit.Model(digits[0]), data, checks=["corruption"])


def test_a_profile_says_how_many_samples(digits):
    for profile, n in (("quick", 200), ("standard", 599), ("thorough", 599)):
        stage = next(s for s in stages_of(digits, profile) if s.id == "corruption.shift")
        assert len(stage.select({})) == n


def test_the_plan_costs_what_the_run_costs(digits):
    model = audit.Model(digits[0])
    result = audit.run(model, digits[1], checks=["corruption"], settings=["corruption.samples=100"])
    stages = CorruptionCheck().stages(Task(model, digits[1], CorruptionOptions(samples=100)))
    planned = sum(stage.passes * len(digits[1].test) for stage in stages if stage.id.startswith("corruption"))
    parts = result["corruption"].cost.parts
    clean = sum(
        part.forwards for name, part in parts.items() if name.endswith(("mean_accuracy", "deterministic", "independent"))
    )
    assert result["corruption"].cost.forwards - clean == pytest.approx(planned, rel=0.05)


def stages_of(digits, profile: str):
    return CorruptionCheck().stages(Task(audit.Model(digits[0], classes=10), digits[1], CorruptionOptions(), profile=profile))


def test_a_table_of_two_values_takes_noise_at_every_severity():
    """Columns of 0 and 1 only: noise that is rounded to the nearest would do nothing at all."""
    x = (np.random.default_rng(0).random((400, 6)) < 0.3).astype(np.float32)

    class Votes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            votes = 2 * x[:, 0] + x[:, 1] + 2 * x[:, 2] + 0.5 * x[:, 3] - 1.2
            return torch.stack((-votes, votes), dim=1)

    with torch.no_grad():
        y = Votes()(torch.from_numpy(x)).argmax(dim=1).numpy()
    result = checked(Votes(), audit.Dataset(x, y))
    assert evidence(result, "inputs_changed").ok, evidence(result, "inputs_changed").detail
    assert result.metric("corruption.column_noise.accuracy").value < 1


# --- networks trained by others ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mnist_loses_accuracy_with_severity_under_every_corruption():
    net = realdata.LeNet5()
    weights = torch.load(realdata.shared("models/mnist_lenet5_clntrained.pt"), map_location="cpu", weights_only=True)
    net.load_state_dict(weights)
    x, y = realdata.mnist()
    result = checked(net.eval(), audit.Dataset(x, y, bounds=(0, 1)), samples=200, patch=False)
    assert result.status == "measured", result.reason
    clean = result.tables[0].rows[0][5]
    for name in IMAGES:
        curve = [clean, *(row[5] for row in result.tables[0].rows if row[0] == CORRUPTIONS[name].title)]
        assert np.polyfit(range(6), curve, 1)[0] < 0, (name, [percent(v) for v in curve])
        assert curve[5] < clean, name


def test_names_are_those_that_fit(digits, diabetes):
    assert names(Task(audit.Model(digits[0]), digits[1], CorruptionOptions())) == IMAGES
    assert names(Task(audit.Model(diabetes[0]), diabetes[1], CorruptionOptions())) == ROWS


def test_blocks_of_the_size_of_a_pattern_are_no_fault_of_the_measurement():
    """Quarters of one grey each: blocks of a quarter's size change them least, at the highest severity."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 60)
    x = 0.1 * rng.random((60, 1, 8, 8))
    for image, k in zip(x, y, strict=True):
        image[:, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.6

    class Quarters(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

    result = checked(Quarters(), audit.Dataset(x.astype(np.float32), y, bounds=(0, 1)), samples=60, only=["pixelation"])
    assert evidence(result, "inputs_changed").ok, evidence(result, "inputs_changed").detail


def test_strengths_in_the_wrong_order_are_told(digits, monkeypatch):
    monkeypatch.setattr(type(CORRUPTIONS["pixelation"]), "strengths", (0.25, 0.35, 0.5, 0.7, 0.85))
    assert not evidence(small(*digits, only=["pixelation"]), "inputs_changed").ok


def test_a_fault_that_no_network_survives_does_not_weigh_against_this_one(of_diabetes):
    told = [f for f in of_diabetes.findings if "No network survives that" in f.detail]
    assert told
    assert {f.severity for f in told} == {"low"}


@pytest.mark.parametrize(("fault", "words"), [("exact", "state one"), ("nan", "not finite")])
def test_a_regression_of_which_nothing_can_be_said_is_given_its_own_reason(fault, words):
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = x.sum(dim=1)
            return torch.where(x[:, 0] > 2, torch.nan, out) if fault == "nan" else out

    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, size=(80, 4)).astype(np.float32)
    y = x.sum(axis=1) + (0.5 * rng.normal(size=80) if fault == "nan" else 0)
    result = checked(Sum(), audit.Dataset(x, y.astype(np.float32)), samples=60, task="regression")
    assert result.status == "incomplete"
    assert words in evidence(result, "better_than_chance").detail


def test_a_tolerance_that_nothing_can_exceed_is_no_robustness(regressor):
    module, data = regressor
    with pytest.raises(audit.UsageError, match="tolerance"):
        audit.run(module, data, checks=["corruption"], settings=["corruption.tolerance=inf"])
    result = audit.run(module, data, checks=["corruption"], settings=["corruption.tolerance=1e6"])["corruption"]
    assert result.status == "incomplete"
    assert "as wide as all clean outputs" in result.reason
