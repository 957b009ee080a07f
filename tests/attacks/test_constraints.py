"""What changed rows of a table keep to: rules as text, projections, and attacks under them, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audit.attacks import ATTACKS, FGSM, PGD, Square, ThreatModel, UniformNoise
from audit.attacks.constraints import LONGEST, Constraints, parse
from audit.attacks.geometry import NORMS, movable, violations
from audit.errors import UsageError
from audit.model.wrapper import Model

COLUMNS = ["a", "b", "capital-gain", "capital loss", "total", "x.1", "2", "é"]


# --- rules as text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a + 2*b <= 3", lambda v: v["a"] + 2 * v["b"] <= 3),
        ("capital-gain - 'capital loss' >= 0", lambda v: v["capital-gain"] - v["capital loss"] >= 0),
        ("capital-gain-a >= 1e-1", lambda v: v["capital-gain"] - v["a"] >= 0.1),
        ("total == a + b", lambda v: v["total"] == v["a"] + v["b"]),
        ("3 >= -(a - 2*(b + 1)) / 4 - .5", lambda v: -(v["a"] - 2 * (v["b"] + 1)) / 4 - 0.5 <= 3),
        ('`2` * 2 <= "x.1" * -1 + é', lambda v: v["2"] * 2 <= v["x.1"] * -1 + v["é"]),
        ("a + a <= 2*b + a", lambda v: v["a"] <= 2 * v["b"]),
    ],
)
def test_rules_say_what_they_say(text, says):
    rule = parse(text, COLUMNS)
    rng = np.random.default_rng(0)
    for draw in rng.integers(-4, 5, (300, len(COLUMNS))):
        values = dict(zip(COLUMNS, draw.tolist(), strict=True))
        total = sum(factor * draw[column] for column, factor in rule.terms)
        assert (rule.low - 1e-12 <= total <= rule.high + 1e-12) == says(values), draw


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aa + tota <= 3", "no input column 'aa'"),
        ("tota <= 3", "did you mean 'total'"),
        ("a * b <= 3", "two columns are multiplied"),
        ("a / b <= 3", "divides by numbers"),
        ("a / 0 <= 3", "divides by numbers"),
        ("a < 3", "write <= for <"),
        ("a = 3", "== for ="),
        ("0 <= a <= 3", "two constraints for two"),
        ("a + b", "got the end"),
        ("a + <= 3", "expected a column or a number"),
        ("(a <= 3", "never closed"),
        ("'a <= 3", "a quote is opened"),
        ("a - a <= 3", "names no column"),
        ("3 <= 4", "names no column"),
        ("1e999 * a <= 4", "too large"),
        ("a <= 4; import os", "means nothing here"),
        ("__import__('os').system('ls') <= 1", "no input column '__import__'"),
        ("a ** 2 <= 1", "expected a column or a number"),
        ("a\x1b[31m <= 1", "means nothing here"),
        ("(" * 5000 + "a" + ")" * 5000 + " <= 1", "characters long|brackets or signs"),
        ("-" * 5000 + "a <= 1", "brackets or signs"),
        ("a" * (LONGEST + 1), "characters long"),
    ],
)
def test_what_is_no_rule_is_an_error_that_says_why(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(text, COLUMNS)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.text("ab+-*/()<>=. 12'\"`_eé\x00", max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_rule_or_a_usage_error(text):
    try:
        rule = parse(text, COLUMNS)
    except UsageError:
        return
    assert rule.terms


# --- projections --------------------------------------------------------------------------------------------------------

# Columns: 0, 1 whole numbers, 2 a real one, 3 to 5 one category, 6, 7 another, 8 the sum of 0 and 1, 9 real.
TABLE = ["n", "m", "r", "c0", "c1", "c2", "d0", "d1", "sum", "s"]
RULES = Constraints(
    integer=(0, 1, 8),
    one_hot=((3, 4, 5), (6, 7)),
    linear=tuple(parse(text, TABLE) for text in ("sum == n + m", "r + s <= 1.5", "r - 0.2 * n >= -2")),
    increase_only=(2,),
    max_category_changes=1,
)
LOW = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=float)
HIGH = np.array([9, 9, 1, 1, 1, 1, 1, 1, 18, 1], dtype=float)
SCALE = np.array([2, 3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 4, 0.4])
RADII = {"linf": 0.8, "l2": 1.4, "l1": 2.0, "l0": 4.0}


def rows(n: int = 40, seed: int = 0, *, wild: bool = False) -> torch.Tensor:
    """Return rows that keep `RULES`; some break them where `wild`."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 10))
    x[:, :2] = rng.integers(0, 10, (n, 2))
    x[:, 2], x[:, 9] = rng.uniform(0, 0.75, (2, n))
    x[np.arange(n), 3 + rng.integers(0, 3, n)] = 1
    x[np.arange(n), 6 + rng.integers(0, 2, n)] = 1
    x[:, 8] = x[:, 0] + x[:, 1]
    if wild:
        x[::3, 8] -= 1
        x[1::3, 0] += 0.5
        x[2::3, 3:6] = 0.5
        x[::4, [2, 9]] = 1.0
    return torch.tensor(x, dtype=torch.float32)


def threat(norm="linf", **changes) -> ThreatModel:
    given_ = {"low": LOW, "high": HIGH, "scale": SCALE, "constraints": RULES, **changes}
    return ThreatModel(norm, RADII[norm], **given_)


def broken_rules(x: np.ndarray, z: np.ndarray, norm: str) -> list[str]:
    """Say what one changed row of `RULES` breaks, in plain Python; what the clean row breaks itself counts as kept."""
    out = []
    for c in (0, 1, 8):
        if z[c] != round(z[c]) and z[c] != x[c]:
            out.append("integer")
    changed = 0
    for group in ([3, 4, 5], [6, 7]):
        if (z[group] != x[group]).any():
            changed += 1
            if sorted(z[group]) != [0] * (len(group) - 1) + [1]:
                out.append("one-hot")
    out += ["changes"] if changed > 1 else []
    out += ["rise"] if z[2] < x[2] else []
    for row, low, high in (((1, 1, 0, 0, -1), 0, 0), ((0, 0, 1, 1, 0), -99, 1.5), ((-0.2, 0, 1, 0, 0), -2, 99)):
        columns = [0, 1, 2, 9, 8]
        before, after = float(np.dot(row, x[columns])), float(np.dot(row, z[columns]))
        if not min(low, before) - 1e-5 <= after <= max(high, before) + 1e-5:
            out.append(f"linear {row}")
    out += ["box"] if (z < np.minimum(LOW, x)).any() or (z > np.maximum(HIGH, x)).any() else []
    inside = [0, 1, 2, 8, 9]
    delta = (z - x)[inside] / SCALE[inside]
    size = {"linf": abs(delta).max(), "l2": np.linalg.norm(delta), "l1": abs(delta).sum(), "l0": (delta != 0).sum()}[norm]
    return [*out, "radius"] if size > RADII[norm] + 1e-5 else out


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.3, 1.0, 5.0, 100.0]), wild=st.booleans())
@settings(max_examples=15, deadline=None)
def test_projected_points_keep_everything(norm, seed, spread, wild):
    x = rows(20, seed, wild=wild)
    region = threat(norm).on(x).around(x)
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * spread * torch.tensor(SCALE).float()
    point = region.project(far)
    found = [broken_rules(*(v.double().numpy() for v in pair), norm) for pair in zip(x, point, strict=True)]
    assert not any(found), next(each for each in found if each)
    assert violations(threat(norm), x, point) == 0
    part = torch.tensor([3, 11])
    assert torch.equal(region.take(part).project(far[part]), point[part])
    assert bool(region.ball.allows(x, x).all())


@pytest.mark.parametrize("norm", NORMS)
def test_projected_points_are_not_the_sample_again(norm):
    """A projection that always gave up would keep everything, too."""
    x = rows(200)
    region = threat(norm).on(x).around(x)
    point = region.random(torch.arange(200), seed=0, purpose="test")
    assert violations(threat(norm), x, point) == 0
    moved = (point != x).double()
    assert float(moved.any(dim=1).double().mean()) > 0.9
    if norm != "l0":
        assert float(moved.mean(dim=0)[[2, 3, 9]].min()) > 0.1
        assert float(moved.mean(dim=0)[[0, 1, 8]].min()) > 0.1, "the whole numbers that a rule ties together never moved"


@pytest.mark.parametrize("breaks", ["integer", "one-hot", "changes", "rise", "linear", "box", "radius", "fixed"])
def test_violations_are_counted_anew(breaks):
    x = rows(5)
    x[:, 0], x[:, 1], x[:, 8] = 4.0, 4.0, 8.0
    bad = x.clone()
    change = {
        "integer": {0: 4.5, 1: 3.5},
        "one-hot": {3: 1.0, 4: 1.0, 5: 1.0},
        "changes": {},
        "rise": {2: -0.1},
        "linear": {0: 5.0},
        "box": {9: -0.01},
        "radius": {0: 6.0, 1: 2.0},
        "fixed": {9: 0.5},
    }[breaks]
    for column, value in change.items():
        bad[:, column] = value
    if breaks == "changes":
        bad[:, 3:6], bad[:, 6:8] = bad[:, 3:6].roll(1, dims=1), bad[:, 6:8].roll(1, dims=1)
    mutable = np.arange(10) != 9 if breaks == "fixed" else None
    assert violations(threat(mutable=mutable), x, bad) == 5
    assert violations(threat(mutable=mutable), x.numpy(), x.numpy()) == 0


def test_in_linf_whole_numbers_go_to_the_nearest_that_is_allowed():
    rules = Constraints(integer=(0, 1))
    one = ThreatModel("linf", 2.3, np.array([0.0, 0.0]), np.array([9.0, 9.0]), constraints=rules)
    x = torch.tensor([[4.0, 8.0]]).repeat(500, 1)
    far = x + torch.randn((500, 2), generator=torch.Generator().manual_seed(0)) * 3
    point = one.on(x).around(x).project(far)
    grid = torch.tensor(list(itertools.product(range(2, 7), range(6, 10))), dtype=torch.float32)
    best = torch.cdist(far, grid, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    assert torch.allclose((far - point).norm(dim=1), best, atol=1e-5)


def test_a_rule_alone_gets_the_nearest_point():
    """Of one inequality the sweep is the projection itself, but for the little that it aims inside."""
    rules = Constraints(linear=(parse("a + 2*b <= 1", ["a", "b"]),))
    one = ThreatModel("linf", 10.0, np.full(2, -10.0), np.full(2, 10.0), constraints=rules)
    x = torch.zeros((1, 2))
    point = one.on(x).around(x).project(torch.tensor([[2.0, 2.0]]))
    assert torch.allclose(point, torch.tensor([[1.0, 0.0]]), atol=0.02)


def test_without_constraints_nothing_is_done():
    x = rows(3)
    region = threat(constraints=None).on(x).around(x)
    assert region.ball.rules is None
    assert region.settle(x) is x
    assert threat(constraints=Constraints()).on(x).rules is None


def test_which_columns_a_radius_can_change():
    can = ThreatModel("linf", 0.4, LOW, HIGH, SCALE, constraints=RULES).can_change((10,))
    assert can.tolist() == [False, True, True, *[True] * 5, True, True]
    fewer = Constraints(integer=(0,), one_hot=((3, 4, 5),))
    can = ThreatModel("linf", 0.4, LOW, HIGH, SCALE, constraints=fewer).can_change((10,))
    assert can.tolist() == [False, True, True, False, False, False, True, True, True, True]
    whole = Constraints(integer=tuple(range(10)))
    one = ThreatModel("linf", 0.25, LOW, HIGH, SCALE, constraints=whole)
    x = rows()
    x[:, [2, 9]] = 0.0
    assert movable(one, x).tolist() == [True] * 40  # the sum, by one
    assert movable(one, x, 3.0).tolist() == [False] * 40


# --- attacks ------------------------------------------------------------------------------------------------------------


def planted(weights: dict[int, float], bias: float = 0.0) -> Model:
    """Return a linear network that says 1 where the weighted columns exceed `bias`."""
    net = nn.Linear(10, 2)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([bias, 0.0]))
        for column, weight in weights.items():
            net.weight[1, column] = weight
    return Model(net, device="cpu", task="classification", output="logits")


def test_small_steps_add_up_to_a_whole_number():
    """Steps of a tenth are rounded away each by each; what is rounded away joins the next one."""
    x = rows(30)
    x[:, 0], x[:, 1], x[:, 8] = 4.0, 4.0, 8.0
    rules = Constraints(integer=(0,))
    one = ThreatModel("linf", 1.0, LOW, HIGH, SCALE, constraints=rules)
    model, y = planted({0: 1.0}, 5.5), torch.zeros(30, dtype=torch.long)
    attack = PGD("linf", 1.0, steps=25, step_size=0.05, random_start=False)  # a tenth of a step of the column
    out = attack(model, x, y, threat=one)
    assert bool(out.success.all())
    assert bool((out.x_adv[:, 0] == 6).all())
    beyond = attack(planted({0: 1.0}, 6.5), x, y, threat=one)
    assert not bool(beyond.success.any())


MAKERS = {
    "pgd": lambda norm: PGD(norm, RADII[norm], steps=12, restarts=2),
    "fgsm": lambda norm: FGSM(norm, RADII[norm]),
    "square": lambda norm: Square(norm, RADII[norm], queries=60),
    "noise": lambda norm: UniformNoise(norm, RADII[norm], draws=40),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("weights", [{8: 1.0}, {3: 1.0, 4: -1.0}, {2: 1.0, 9: 0.5}], ids=["whole", "category", "real"])
def test_attacks_find_examples_that_keep_everything(name, norm, weights):
    x = rows(60)
    model = planted(weights)
    score = model.logits(x)[:, 1].detach()
    with torch.no_grad():
        model.module.bias[0] = score.median() + 0.25
    y = model.predict(x)
    out = MAKERS[name](norm)(model, x, y, threat=threat(norm))
    assert int(out.success.sum()) > 0
    assert violations(threat(norm), x[out.success], out.x_adv[out.success]) == 0
    again = MAKERS[name](norm)(
        Model(model.module, device="cpu", batch_size=23, task="classification"), x, y, threat=threat(norm)
    )
    assert torch.equal(out.success, again.success)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"square"}))
def test_no_attack_reports_an_example_that_breaks_a_rule(name):
    attack = ATTACKS[name]
    norm = next(each for each in ("linf", "l2", "l1", "l0") if each in attack.norms)
    x, model = rows(12), planted({8: 1.0, 3: 4.0, 2: 3.0}, 9.0)
    out = attack(norm, RADII[norm])(model, x, model.predict(x), threat=threat(norm))
    assert violations(threat(norm), x[out.success], out.x_adv[out.success]) == 0


def test_pgd_finds_what_enumeration_finds():
    """A table of three whole numbers with a rule between them: all rows that could exist are looked at."""
    torch.manual_seed(0)
    names = ["a", "b", "t"]
    rules = Constraints(integer=(0, 1, 2), linear=(parse("t == a + b", names),))
    one = ThreatModel("linf", 2.0, np.zeros(3), np.array([9.0, 9.0, 18.0]), constraints=rules)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        net[0].weight *= 0.5
        net[0].bias.copy_(-(net[0].weight @ torch.tensor([4.5, 4.5, 9.0])))
    model = Model(net, device="cpu", task="classification")
    pairs = torch.tensor(list(itertools.product(range(10), range(10))), dtype=torch.float32)
    x = torch.cat((pairs, pairs.sum(dim=1, keepdim=True)), dim=1)
    with torch.no_grad():
        gap = net(x)[:, 1] - net(x)[:, 0]
        net[2].bias[0] += gap.median()
    y = model.predict(x)
    near = torch.cdist(x, x, p=torch.inf) <= 2
    truth = (near & (y[None] != y[:, None])).any(dim=1)
    out = PGD("linf", 2.0, steps=30, restarts=4)(model, x, y, threat=one)
    assert 5 < int(truth.sum()) < 95, "the truth decides nothing here"
    assert not bool((out.success & ~truth).any())
    assert int(out.success.sum()) >= 0.9 * int(truth.sum())


def test_categories_outside_the_radius_flip_and_those_inside_do_not():
    x, model = rows(60), planted({3: 1.0}, 0.5)
    y = model.predict(x)
    inside = Constraints(one_hot=RULES.one_hot)
    attack = PGD("linf", 0.8, steps=20, restarts=2)
    free = attack(model, x, y, threat=threat())
    assert bool(free.success.all())
    assert not bool(attack(model, x, y, threat=threat(constraints=inside)).success.any())
    covered = ThreatModel("linf", 2.0, LOW, HIGH, SCALE, constraints=inside)  # 2 standard deviations of 0.5 are a flip
    assert bool(attack(model, x, y, threat=covered).success.all())


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name in ("pgd", "apgd", "fab") for norm in ("linf", "l2", "l1") if norm in ATTACKS[name].norms],
)
def test_a_category_flips_whatever_the_slope_of_the_clean_one(name, norm):
    """Of the three columns one raises the score, one lowers it, one does neither: a single flip breaks every row."""
    x = rows(60)
    for bias in (-0.5, 0.5):
        model = planted({3: 1.0, 4: -1.0}, bias)
        out = ATTACKS[name](norm, RADII[norm], steps=20)(model, x, model.predict(x), threat=threat(norm))
        assert bool(out.success.all())
        assert violations(threat(norm), x, out.x_adv) == 0


def test_a_plain_description_and_errors():
    text = "\n".join(threat(mutable=np.arange(10) != 9).describe(TABLE))
    for part in ("L∞: radius 0.8 standard", "n 0 to 9", "never changed: s", "whole numbers: n, m, sum", "may only rise: r"):
        assert part in text
    assert "exactly one is 1: c0, c1, c2" in text
    assert "between columns: sum == n + m" in text
    x = rows(3)
    for rules, message in [
        (Constraints(integer=(10,)), "but the inputs have 10"),
        (Constraints(one_hot=((1, 2), (2, 3))), "two one-hot groups"),
        (Constraints(one_hot=((1,),)), "two columns or more"),
        (Constraints(integer=(1,), max_category_changes=1), "none is named"),
    ]:
        with pytest.raises(UsageError, match=message):
            PGD("linf", 0.8)(planted({0: 1.0}), x, torch.zeros(3), threat=threat(constraints=rules))
    pictures = ThreatModel("linf", 0.1, np.asarray(0.0), np.asarray(1.0), constraints=Constraints(integer=(0,)))
    with pytest.raises(UsageError, match="for tables"):
        pictures.check((1, 4, 4))


# --- options ------------------------------------------------------------------------------------------------------------


def task(**options):
    from audit import Dataset
    from audit.checks.base import Task
    from audit.checks.robustness import Robustness
    from audit.config import validate

    data = Dataset(rows().numpy(), np.zeros(40, dtype=np.int64), columns=TABLE)
    return Task(planted({0: 1.0}), data, validate(Robustness.Options, options, "robustness"), seed=0)


def test_options_make_the_threat_model():
    from audit.checks.robustness import threat_model

    made = threat_model(
        task(
            immutable=["s"],
            column_bounds={"n": [-5, 50]},
            integer="auto",
            one_hot=[["c0", "c1", "c2"], ["d0", "d1"]],
            constraints="sum == n + m",
            increase_only=["r"],
            max_category_changes=1,
            eps=0.3,
            eps_unit="sd",
        ),
        "linf",
    )
    assert made.mutable is not None
    assert np.flatnonzero(~made.mutable).tolist() == [9]
    assert (made.low[0], made.high[0]) == (-5, 50)
    assert made.scale is not None
    assert made.constraints is not None
    assert made.constraints.integer == (0, 1, 8)
    assert made.constraints.linear[0].text == "sum == n + m"
    assert (made.constraints.increase_only, made.constraints.max_category_changes) == ((2,), 1)
    assert threat_model(task(), "linf").constraints is None


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({}, "no bounds were stated, so the range of each column was taken"),
        ({"n": [-5, 50]}, "no bounds but column_bounds were stated, so the range of each other column was taken"),
        ({name: [-100, 100] for name in TABLE}, ""),
    ],
)
def test_what_is_said_of_bounds_is_what_was_stated(bounds: dict[str, list[float]], said: str):
    from audit.checks.robustness import _unstated

    findings = _unstated(task(column_bounds=bounds, eps=0.3))
    assert (said in findings[0].detail) if said else not findings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"immutable": ["nn"]}, "robustness.immutable: no input column 'nn'; did you mean 'n'"),
        ({"immutable": TABLE}, "names all columns"),
        ({"mutable": ["n"], "immutable": ["n"]}, "in mutable and in immutable"),
        ({"column_bounds": {"q": [0, 1]}}, "robustness.column_bounds: no input column 'q'"),
        ({"column_bounds": {"n": [3, 1]}}, "lowest value 3 above 1"),
        ({"integer": ["sums"]}, "did you mean 'sum'"),
        ({"one_hot": [["c0", "c9"]]}, "robustness.one_hot: no input column 'c9'"),
        ({"constraints": ["sum == n * m"]}, "two columns are multiplied"),
        ({"decrease_only": ["\x1b[2J"]}, "no input column"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message):
    from audit.checks.robustness import threat_model

    with pytest.raises(UsageError, match=message) as caught:
        threat_model(task(**options), "linf")
    assert "\x1b" not in str(caught.value)


def test_findings_say_what_was_assumed_and_what_clean_rows_break():
    from audit.checks import robustness_table as table
    from audit.checks.robustness import threat_model

    one = task(integer="auto", constraints=["sum <= 10"])
    titles = {each.title: each for each in table.findings(one, threat_model(one, "linf"))}
    over = int((rows()[:, 8] > 10).sum())
    assert f"{over} of 40 break sum <= 10" in titles["Clean rows break stated constraints"].detail
    assert "n, m, c0" in titles["Columns taken for whole numbers"].detail
    assert "n" in titles["Whole numbers that the radius cannot change"].detail
