"""Attacks of minimum norm: known answers of linear networks, the box, the batch, other tasks, scales and fixed columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.attacks import DDN, FMN, SigmaZero, Tabu, ThreatModel, verify
from audit.attacks.boundary import runs_of, smallest, within
from audit.attacks.geometry import size_of
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.model.wrapper import Model

CASES = [("linf", FMN), ("l2", FMN), ("l1", FMN), ("l0", FMN), ("l2", DDN), ("l0", SigmaZero), ("l1", SigmaZero), ("l0", Tabu)]
IDS = [f"{kind.name}-{norm}" for norm, kind in CASES]
NORMS = ["linf", "l2", "l1", "l0"]


def linear(classes: int = 4, inputs: int = 12, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, classes)


def samples(net: nn.Module, n: int = 24, inputs: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.rand((n, inputs), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return x, net(x).argmax(dim=1)


def model_of(net: nn.Module, bounds=(-5.0, 5.0), **more) -> Model:
    return Model(net, bounds=bounds, device="cpu", **more)


def known(net: nn.Linear, x: Tensor, y: Tensor, norm: str, reach: float) -> Tensor:
    """Return the distance of the nearest of the boundaries to the other classes, by the dual norm; in L0 greedily."""
    with torch.no_grad():
        w, b = net.weight.double(), net.bias.double()
        z = x.double() @ w.T + b
        out = torch.full((len(x),), torch.inf, dtype=torch.float64)
        for j in range(len(w)):
            direction = w[j] - w[y]
            gap = (z.gather(1, y[:, None])[:, 0] - z[:, j]).clamp_min(0.0)
            if norm == "l0":
                gain = (direction * torch.where(direction > 0, reach - x, -reach - x)).sort(dim=1, descending=True).values
                distance = (gain.cumsum(dim=1) <= gap[:, None]).sum(dim=1) + 1.0
            else:
                distance = gap / torch.linalg.vector_norm(direction, ord={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
            out = torch.where(y == j, out, torch.minimum(out, distance))
    return out


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_linear_network_is_broken_at_the_known_distance(norm: str, kind, classes: int):
    net = linear(classes)
    x, y = samples(net)
    more = {"targets": 3, "restarts": 1} if kind is FMN else {}
    out = kind(norm, steps=60, **more)(model_of(net), x, y)
    truth = known(net, x, y, norm, 5.0)
    assert bool(out.success.all())
    if norm == "l0":
        assert bool((out.distance >= truth).all())
        assert float((out.distance == truth).float().mean()) >= (0.9 if classes == 2 else 0.6)
    else:
        assert bool((out.distance >= truth * (1 - 1e-5)).all()), "closer than the boundary: the distance is not what it says"
        assert float((out.distance / truth).median()) < 1.01
        # Of several classes, without a target, the margin may lead to one whose boundary is further away.
        if classes == 2 or kind is FMN:
            assert float((out.distance / truth).max()) < (1.3 if norm == "l1" else 1.02)


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
@given(seed=st.integers(0, 50), high=st.floats(0.6, 3.0))
@settings(max_examples=5, deadline=None)
def test_examples_lie_in_the_box_and_break(norm: str, kind, seed: int, high: float):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand((10, 6), generator=torch.Generator().manual_seed(seed)) * 0.6
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    model = model_of(net, (0.0, high))
    out = kind(norm, steps=12)(model, x, y)
    assert bool((out.x_adv >= 0).all())
    assert bool((out.x_adv <= torch.tensor(high)).all())
    assert torch.equal(torch.isfinite(out.distance), out.success)
    with torch.no_grad():
        assert torch.equal(net(out.x_adv).argmax(dim=1) != y, out.success)
    assert torch.allclose(size_of(out.x_adv.double() - x.double(), norm)[out.success], out.distance[out.success])


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
def test_success_is_within_the_radius_and_the_example_is_kept_beyond_it(norm: str, kind):
    net = linear()
    x, y = samples(net)
    low, high = (0.0, 1.0) if norm == "l0" else (-5.0, 5.0)
    model = model_of(net, (low, high))
    far = kind(norm, steps=20)(model, x, y)
    eps = 1.0 if norm == "l0" else float(far.distance.median())
    out = kind(norm, eps, steps=20)(model, x, y)
    assert torch.equal(out.distance, far.distance)
    assert torch.equal(out.success, out.distance <= eps * (1 + 1e-6))
    assert 0 < int(out.success.sum()) < len(x)
    threat = ThreatModel(norm, eps, np.array(low), np.array(high))
    assert torch.equal(verify(model, x, y, out.x_adv, threat), out.success)


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
def test_results_belong_to_ids_whatever_the_batch(norm: str, kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    x, y = samples(net.float(), 16)
    net, x, ids = net.double(), x.double(), torch.arange(120, 136)
    more = {"restarts": 3} if kind in (FMN, Tabu) else {}
    whole = kind(norm, steps=15, **more)(model_of(net, (0.0, 1.0)), x, y, ids=ids)
    for size in (1, 5):
        other = kind(norm, steps=15, **more)(model_of(net, (0.0, 1.0), batch_size=size), x, y, ids=ids)
        assert torch.allclose(whole.distance, other.distance, rtol=1e-6)


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
def test_a_step_costs_one_forward_and_one_backward(norm: str, kind):
    net = linear()
    x, y = samples(net, 10)
    out = kind(norm, steps=13)(model_of(net), x, y)
    assert (out.forwards, out.backwards) == (10 * (13 + 2), 10 * 13)  # and the clean look and the re-check


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
def test_regression_is_moved_up_or_down_by_just_the_tolerance(norm: str, kind):
    torch.manual_seed(0)
    net = nn.Linear(5, 1)
    x = torch.rand((8, 5), generator=torch.Generator().manual_seed(0))
    model = Model(nn.Sequential(net, nn.Flatten(0)), task="regression", bounds=(-9.0, 9.0), device="cpu")
    out = kind(norm, steps=80)(model, x, torch.zeros(8), tolerance=1.0)
    assert bool(out.success.all())
    with torch.no_grad():
        moved = (net(out.x_adv) - net(x)).abs()[:, 0]
    assert bool((moved > 1.0).all())
    if norm != "l0":
        dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
        truth = 1.0 / float(torch.linalg.vector_norm(net.weight.detach()[0], ord=dual))
        assert float(out.distance.median()) == pytest.approx(truth, rel=0.02)
    else:
        assert bool((out.distance == 1).all())


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
def test_distances_are_in_units_of_the_scale_and_fixed_columns_stay(norm: str, kind):
    net = linear(2, 4)
    x, y = samples(net, 12, 4)
    scale = np.array([1.0, 10.0, 0.0, 0.1])
    threat = ThreatModel(norm, 2.0, np.full(4, -50.0), np.full(4, 50.0), scale=scale)
    out = kind(norm, steps=60)(model_of(net, (-50.0, 50.0)), x, y, threat=threat)
    assert bool(torch.isfinite(out.distance).all())
    assert torch.equal(out.x_adv[:, 2], x[:, 2])
    delta = (out.x_adv.double() - x.double())[:, [0, 1, 3]] / torch.tensor(scale[[0, 1, 3]])
    assert torch.allclose(size_of(delta, norm), out.distance)
    if norm in ("linf", "l2"):
        truth = torch.stack([_stretched(net, x[i], int(y[i]), scale, norm) for i in range(len(x))])
        assert float((out.distance / truth).median()) < 1.01
        assert bool((out.distance >= truth * (1 - 1e-4)).all())


def _stretched(net: nn.Linear, x: Tensor, y: int, scale: np.ndarray, norm: str) -> Tensor:
    with torch.no_grad():
        z, w = net(x).double(), net.weight.double() * torch.tensor(scale)
    dual = 1 if norm == "linf" else 2
    others = [j for j in range(len(w)) if j != y]
    return torch.stack([(z[y] - z[j]) / torch.linalg.vector_norm(w[j] - w[y], ord=dual) for j in others]).min()


@pytest.mark.parametrize(("norm", "kind"), CASES, ids=IDS)
def test_a_network_without_a_gradient_is_not_broken_and_says_so(norm: str, kind):
    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x[:, :2]

    x = torch.rand((5, 4), generator=torch.Generator().manual_seed(0))
    out = kind(norm, steps=9)(model_of(Deaf(), (0.0, 1.0)), x, torch.zeros(5).long())
    assert not bool(out.success.any())
    assert bool(out.grad_zero.all())
    assert torch.equal(out.x_adv, x)


@pytest.mark.parametrize("kind", [FMN, DDN, SigmaZero])
def test_wrong_settings_are_refused(kind):
    with pytest.raises(UsageError, match="steps"):
        kind(kind.norms[0], steps=0)
    with pytest.raises(UsageError, match="walk"):
        kind(kind.norms[0], walk=1.0)


def test_restarts_must_fit_into_the_steps():
    with pytest.raises(UsageError, match="restarts"):
        FMN("l2", steps=5, restarts=6)


def test_tabu_search_finds_the_fewest_of_all_subsets_of_inputs():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    net[0].weight.data.mul_(3)
    x = (torch.rand((40, 8), generator=torch.Generator().manual_seed(2)) > 0.5).float()
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    with torch.no_grad():
        y, classes = net(x).argmax(dim=1), net(corners).argmax(dim=1)
    changed = (x[:, None] != corners[None]).sum(dim=2).double()
    truth = changed.where(classes[None] != y[:, None], torch.inf).amin(dim=1)
    out = Tabu(steps=100)(model_of(net, (0.0, 1.0)), x, y)
    assert bool((out.distance >= truth).all())
    assert float((out.distance == truth).float().mean()) >= 0.95
    greedy = Tabu(steps=8, restarts=1)(model_of(net, (0.0, 1.0)), x, y)
    assert float(out.distance.sum()) <= float(greedy.distance.sum())


def test_a_tabu_search_of_one_column_does_not_stand_still():
    net = nn.Linear(1, 2)
    net.weight.data, net.bias.data = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    out = Tabu(steps=6)(model_of(net, (-1.0, 1.0)), torch.tensor([[0.5], [-0.5]]), torch.tensor([0, 1]))
    assert out.distance.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_closer_example_behind_a_wall_is_found_from_random_places(norm: str):
    class Walled(nn.Module):
        """At the origin the gradient leads up, to a boundary at 0.9; the closest is at -0.3, behind a slope that leads away."""

        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0]
            up = first - 0.9
            down = torch.where(first > -0.2, -1.0 + 0.1 * first, -20 * first - 6.02)
            return torch.stack([torch.zeros_like(first), torch.maximum(up, down)], dim=1)

    x = torch.zeros((20, 2))
    model, y = model_of(Walled(), (-1.0, 1.0)), torch.zeros(20).long()
    one = FMN(norm, steps=100, restarts=1)(model, x, y)
    many = FMN(norm, steps=100)(model, x, y)
    assert float(one.distance.median()) == pytest.approx(0.9, abs=0.01)
    assert float(many.distance.min()) == pytest.approx(0.301, abs=0.01)
    assert float(many.distance.min()) >= 0.301 * (1 - 1e-6)


@pytest.mark.parametrize(("steps", "norm"), [(20, "l2"), (50, "l2"), (100, "l1"), (500, "l2"), (60, "linf"), (130, "linf")])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_runs_use_up_the_steps_and_the_first_is_the_longest(steps: int, norm: str, task: str):
    attack = FMN(norm, steps=steps)
    runs = runs_of(Goal(task, torch.zeros(1)), steps, attack.restarts, 0, attack.lead)
    assert sum(run.steps for run in runs) == steps
    assert min(run.steps for run in runs) >= 10
    assert [run.number for run in runs] == list(range(len(runs)))
    assert not runs[0].random
    if task == "classification":
        assert runs[0].steps == max(run.steps for run in runs)


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_smallest_change_is_as_small_as_a_linear_programme_says(norm: str, seed: int):
    from scipy.optimize import linprog, minimize

    rng = np.random.default_rng(seed)
    d = 5
    g, low, high = rng.normal(size=d), -rng.uniform(0, 1, d), rng.uniform(0, 1, d)
    most = np.maximum(g * low, g * high).sum()
    need = float(rng.uniform(0.05, 0.95) * most)
    tensors = [torch.tensor(v)[None] for v in (g, low, high)]
    u = smallest(tensors[0], torch.tensor([need], dtype=torch.float64), tensors[1], tensors[2], norm)[0].numpy()
    assert g @ u >= need - 1e-6
    assert bool((u >= low - 1e-12).all())
    assert bool((u <= high + 1e-12).all())
    size = float(size_of(torch.tensor(u)[None], norm))
    if norm == "l2":
        best = minimize(lambda v: v @ v, np.where(g > 0, high, low), bounds=list(zip(low, high, strict=True)),
                        constraints={"type": "ineq", "fun": lambda v: g @ v - need})  # fmt: skip
        truth = float(np.sqrt(best.fun))
    elif norm == "l0":
        gains = np.sort(np.maximum(g * low, g * high))[::-1]
        truth = int((gains.cumsum() < need).sum()) + 1
    else:
        # Up and down moves apart; in L∞ one more unknown above them all.
        cost = np.concatenate([np.ones(2 * d), [0]]) if norm == "l1" else np.concatenate([np.zeros(2 * d), [1]])
        a = [np.concatenate([-g, g, [0]])]
        b = [-need]
        if norm == "linf":
            for i in range(2 * d):
                row = np.zeros(2 * d + 1)
                row[i], row[-1] = 1, -1
                a.append(row)
                b.append(0.0)
        bounds = [(0, h) for h in high] + [(0, -v) for v in low] + [(0, None)]
        truth = float(linprog(cost, A_ub=np.array(a), b_ub=b, bounds=bounds).fun)
    assert size == pytest.approx(truth, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_each_sample_is_brought_within_a_radius_of_its_own(norm: str):
    delta = torch.randn((30, 9), generator=torch.Generator().manual_seed(0))
    radius = torch.linspace(0.0, 4.0, 30).floor() if norm == "l0" else torch.linspace(0.0, 4.0, 30)
    near = within(delta, norm, radius)
    assert bool((size_of(near, norm) <= radius + 1e-5).all())
    inside = size_of(delta, norm) <= radius
    assert torch.allclose(near[inside], delta[inside])
