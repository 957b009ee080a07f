"""Certificates: never crossed by any point, the same for every batch, absent with the layer's name where there is no bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import audit
from audit.attacks import PGD
from audit.certificates import Network, NoBound, bounds_of, certify
from audit.certificates.activations import Maximum
from audit.certificates.bounds import Bounds
from audit.certificates.certify import margin_rows
from audit.certificates.inputs import Inputs
from audit.errors import UsageError
from tests.certificates.networks import NETWORKS, Mixed, Residual, mlp, network, pooled, samples, threat

RADII = {"linf": 0.03, "l2": 0.15, "l1": 0.4, "l0": 2.0}


def _margins(model: audit.Model, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model.logits(x)
    return (logits.gather(1, y[:, None]) - logits).double().scatter(1, y[:, None], torch.inf)


def _points(model: audit.Model, x: Tensor, y: Tensor, norm: str, eps: float, seed: int) -> list[Tensor]:
    """Return allowed points: random ones, corners that change most, and what PGD finds."""
    ball = threat(eps, norm).on(x)
    region = ball.around(x)
    generator = torch.Generator().manual_seed(seed)
    found = [x, region.project(x + 10 * eps * torch.randn(x.shape, generator=generator))]
    for draw in range(6):
        found.append(region.random(torch.arange(len(x)), seed=seed, purpose="test", draw=draw))
        found.append(region.project(x + eps * torch.randn(x.shape, generator=generator).sign()))
    if norm in PGD.norms:
        found.append(PGD(norm, eps, steps=10)(model, x, y).x_adv)
    return [point for point in found if bool(ball.allows(x, point).all())]


@pytest.mark.parametrize("norm", RADII)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(name=st.sampled_from(list(NETWORKS)), seed=st.integers(0, 10_000), share=st.floats(0.02, 2.0))
def test_no_point_crosses_a_bound(name: str, seed: int, share: float, norm: str) -> None:
    _hold_at_points(name, seed, share, norm)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 2.0), norm=st.sampled_from(list(RADII)))
def test_no_point_crosses_a_bound_of_any_network(name: str, seed: int, share: float, norm: str) -> None:
    _hold_at_points(name, seed, share, norm)


def _hold_at_points(name: str, seed: int, share: float, norm: str) -> None:
    model = network(name, seed)
    x, _ = samples(seed)
    y = model.predict(x)
    eps = max(1.0, round(RADII[norm] * share)) if norm == "l0" else RADII[norm] * share
    net = Network.of(model, x, dtype=torch.float32)
    found = {method: certify(model, x, y, threat(eps, norm), method=method, network=net) for method in ("ibp", "crown")}
    found["alpha"] = certify(model, x, y, threat(eps, norm), alpha_steps=3, network=net)
    found["parts"] = certify(model, x, y, threat(eps, norm), parts=12, network=net)
    fine = certify(model, x, y, threat(eps, norm), network=Network.of(model, x, dtype=torch.float64))
    # Never looser, but for the rounding of the bounds' own type: tighter intervals round otherwise.
    size = 1e-6 * found["ibp"].lower.abs().nan_to_num(posinf=0.0) + 1e-7
    assert bool((found["crown"].lower >= found["ibp"].lower - size).all())
    assert bool((found["alpha"].lower >= found["crown"].lower - size).all())
    assert bool((found["parts"].lower >= found["crown"].lower).all())
    points = _points(model, x, y, norm, eps, seed)
    assert len(points) > 4
    for point in points:
        margin = _margins(model, point, y)
        for certificate in (*found.values(), fine):
            assert bool((margin >= certificate.lower).all())
            assert not bool((certificate.certified & (margin <= 0).any(dim=1)).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_of_every_value_hold_at_a_point_and_close_in_on_it(name: str, dtype: torch.dtype) -> None:
    """Over a box without width the bounds are the network's own outputs, but for rounding."""
    model = network(name, 3)
    x, _ = samples(3)
    y = model.predict(x)
    certificate = certify(model, x, y, threat(0.0), network=Network.of(model, x, dtype=dtype))
    margin = _margins(model, x, y)
    assert bool((certificate.lower <= margin).all())
    assert torch.allclose(certificate.lower, margin, atol=2e-3)
    assert bool(certificate.certified.all())


@pytest.mark.parametrize("norm", RADII)
def test_a_linear_network_is_bounded_exactly(norm: str) -> None:
    torch.manual_seed(0)
    model = audit.Model(
        nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Linear(4, 3)), bounds=(0, 1), device="cpu", output="logits"
    )
    x, _ = samples(1, 3)
    y = torch.tensor([0, 1, 2])
    rows, add = model.module[2].weight @ model.module[1].weight, model.module[2](model.module[1].bias)
    eps = RADII[norm] * 2
    for method in ("ibp", "crown"):
        lower = certify(model, x, y, threat(eps, norm), method=method).lower
        for sample in range(3):
            for other in set(range(3)) - {sample}:
                a = (rows[sample] - rows[other]).detach().double().numpy()
                value = a @ x[sample].double().flatten().numpy() + float((add[sample] - add[other]).detach())
                gain = _largest_gain(a, x[sample].double().flatten().numpy(), norm, eps)
                assert float(lower[sample, other]) == pytest.approx(value - gain, abs=1e-3)
                assert float(lower[sample, other]) <= value - gain + 1e-7


def _largest_gain(a: np.ndarray, x: np.ndarray, norm: str, eps: float) -> float:
    """Return how far a · x can be brought down, by an independent route: a convex solver, or sorting."""
    from scipy.optimize import linprog, minimize

    room = np.where(a > 0, x, 1 - x)
    rate = np.abs(a)
    if norm == "linf":
        return float(rate @ np.minimum(room, eps))
    if norm == "l0":
        return float(np.sort(rate * room)[::-1][: int(eps)].sum())
    if norm == "l1":
        return float(
            -linprog(-rate, A_ub=np.ones((1, len(a))), b_ub=[eps], bounds=list(zip(np.zeros_like(room), room, strict=True))).fun
        )
    start = np.minimum(room, eps / 20)
    best = minimize(
        lambda d: -rate @ d,
        start,
        jac=lambda d: -rate,
        bounds=list(zip(np.zeros_like(room), room, strict=True)),
        constraints={"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return float(-best.fun)


def test_branching_certifies_what_is_nearly_certified_and_costs_passes() -> None:
    gained = 0
    for seed in range(4):
        model = network("mlp", seed)
        x, _ = samples(seed)
        y = model.predict(x)
        net = Network.of(model, x)
        plain, parted = (certify(model, x, y, threat(0.04), network=net, parts=parts) for parts in (0, 40))
        assert bool((parted.certified | ~plain.certified).all())
        assert bool((parted.lower >= plain.lower).all())
        assert "branching" in parted.method
        changed = (parted.lower > plain.lower).any(dim=1)
        assert parted.passes - plain.passes >= 80 * int(changed.sum())
        gained += int(parted.certified.sum()) - int(plain.certified.sum())
    assert gained > 0


@pytest.mark.parametrize("norm", RADII)
def test_a_function_without_coefficients_is_nothing(norm: str) -> None:
    x = torch.rand(2, 5)
    inputs = Inputs.around(x, threat(RADII[norm], norm).on(x), torch.float64)
    rows = torch.zeros((2, 2, 5), dtype=torch.float64)
    rows[:, 1, 2] = 1e-200
    lowest = inputs.lowest(rows, bisections=16)
    assert lowest[:, 0].tolist() == [0.0, 0.0]
    assert bool((lowest[:, 1].abs() < 1e-199).all())


def test_a_limit_is_what_the_networks_own_type_makes_of_it() -> None:
    """0.7 in float32 is a little less than in float64, in which bounds are computed."""
    model = audit.Model(nn.Hardtanh(-0.5, 0.7), output="logits", bounds=(-1, 1), device="cpu")
    x = torch.tensor([[0.9, 0.2, -0.9], [-0.8, 0.95, 0.1]])
    low, high = Bounds.intervals(Network.of(model, x, dtype=torch.float64), x.double(), x.double()).output()
    with torch.no_grad():
        given = model.logits(x).double()
    assert float(given.max()) != 0.7
    assert bool(((low <= given) & (given <= high)).all())
    assert float((high - low).max()) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slope_is_what_the_networks_own_type_makes_of_it(dtype: torch.dtype) -> None:
    turn = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        turn.weight.copy_(-torch.eye(3))
    model = audit.Model(nn.Sequential(turn, nn.LeakyReLU(0.1)).to(dtype), output="logits", bounds=(0, 1), device="cpu")
    x = torch.rand((4, 3), dtype=dtype)
    low, high = Bounds.intervals(Network.of(model, x), x.double(), x.double()).output()
    with torch.no_grad():
        given = model.logits(x).double()
    assert bool(((low <= given) & (given <= high)).all())
    assert float((high - low).max()) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_in_a_formula_is_what_the_networks_own_type_makes_of_it(dtype: torch.dtype) -> None:
    class Formula(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(0.3 - x * 0.7, x + 0.1, alpha=0.9) / 1.3 - 0.6

    model = audit.Model(nn.Sequential(nn.Linear(3, 3), Formula()).to(dtype), output="logits", bounds=(0, 1), device="cpu")
    x = torch.rand((4, 3), dtype=dtype)
    low, high = Bounds.intervals(Network.of(model, x), x.double(), x.double()).output()
    with torch.no_grad():
        given = model.logits(x).double()
    assert bool(((low <= given) & (given <= high)).all())
    assert float((high - low).max()) < 256 * torch.finfo(dtype).eps


def test_windows_that_share_an_input_are_bounded_with_the_rounding_of_their_sum() -> None:
    """Forty-nine windows hold the same largest input: their coefficients are added up, in another order than the network's."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(49, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.max_pool2d(x, 7, stride=1).flatten(1))

    for seed in range(20):
        torch.manual_seed(seed)
        module = Pooled()
        with torch.no_grad():
            module.head.weight.normal_(0, 100)
        model = audit.Model(module, output="logits", bounds=(0, 1), device="cpu")
        x = torch.rand(3, 1, 13, 13) / 2
        x[:, :, 6, 6] = 0.9
        y = model.predict(x)
        network = Network.of(model, x, dtype=torch.float32)
        lower = certify(model, x, y, threat(0.0), network=network).lower
        with torch.no_grad():
            weight, bias = module.head.weight.double(), module.head.bias.double()
            exact = nn.functional.max_pool2d(x.double(), 7, stride=1).flatten(1) @ weight.T + bias
        margin = (exact.gather(1, y[:, None]) - exact).scatter(1, y[:, None], torch.inf)
        assert bool((lower <= margin).all())
        assert bool((lower <= _margins(model, x, y)).all())
        assert Maximum([7, 7], [1, 1], [0, 0], [1, 1], ceil=False).shared == 49


@pytest.mark.parametrize("ending", [nn.Softmax(dim=1), nn.Sigmoid()], ids=["softmax", "sigmoids"])
def test_what_is_certified_is_the_class_of_the_probabilities_as_they_are_computed(ending: nn.Module) -> None:
    """The larger logit need not be the larger probability: near ties, and where sigmoids side by side are all 1."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.zero_()
    model = audit.Model(nn.Sequential(layer, ending), output="probabilities", bounds=(0, 1), device="cpu")
    x, y = torch.full((1, 2), 0.5), torch.ones(1, dtype=torch.long)
    lost = kept = 0
    for low in (-100.0, -3.0, 0.0, 8.0, 16.0, 60.0):
        for gap in (1e-8, 1.3e-7, 1e-5, 1.0, 40.0):
            with torch.no_grad():
                layer.bias.copy_(torch.tensor([low, low + gap]))
            if int(model.predict(x)) != 1:
                continue
            with torch.no_grad():
                said = int(model.module(x).argmax(dim=1))
            certified = bool(certify(model, x, y, threat(0.1)).certified)
            assert not certified or said == 1
            lost += said != 1
            kept += certified
    assert lost >= 1
    assert kept >= 7


def test_one_probability_is_certified_on_its_side_of_a_half() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.zero_()
    model = audit.Model(nn.Sequential(layer, nn.Sigmoid()), output="binary_probability", bounds=(0, 1), device="cpu")
    x = torch.full((1, 2), 0.5)
    for bias, expected in ((1e-8, False), (-1e-8, False), (1e-4, True), (-1e-4, True)):
        with torch.no_grad():
            layer.bias.fill_(bias)
        assert bool(certify(model, x, torch.tensor([int(bias > 0)]), threat(0.1)).certified) == expected


def test_bounds_do_not_depend_on_the_batch() -> None:
    model = network("residual", 5)
    x, _ = samples(5, 9)
    y = model.predict(x)
    whole = certify(model, x, y, threat(0.02))
    parts = [certify(model, x[rows], y[rows], threat(0.02), batch_size=2) for rows in (slice(0, 4), slice(4, 9))]
    assert torch.allclose(torch.cat([part.lower for part in parts]), whole.lower, atol=1e-4)
    assert bool((torch.cat([part.certified for part in parts]) == whole.certified).all())


def test_certifying_counts_its_own_passes_and_no_forwards() -> None:
    model = network("mlp", 1)
    x, _ = samples(1)
    y = model.predict(x)
    net = Network.of(model, x)
    before = model.forwards
    certificate = certify(model, x, y, threat(0.05), network=net)
    assert model.forwards == before
    assert certificate.passes >= 3 * len(x)
    assert certificate.seconds > 0


def test_a_regression_network_is_certified_within_its_tolerance() -> None:
    torch.manual_seed(2)
    model = audit.Model(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)), task="regression", bounds=(0, 1), device="cpu"
    )
    x = torch.rand(6, 5)
    with torch.no_grad():
        clean = model.values(x)
    near, far = (certify(model, x, clean, threat(eps), tolerance=0.1) for eps in (0.001, 0.9))
    assert bool(near.certified.all())
    assert not bool(far.certified.any())
    certificate = certify(model, x, clean, threat(0.05), tolerance=0.1)
    assert bool(certificate.certified.any())
    for _ in range(50):
        with torch.no_grad():
            moved = model.values((x + 0.05 * (2 * torch.rand(x.shape) - 1)).clamp(0, 1))
        assert not bool((certificate.certified & ((moved - clean).abs() > 0.1)).any())
    with pytest.raises(UsageError, match="tolerance"):
        certify(model, x, clean, threat(0.1))


def test_interval_bounds_inside_are_said_by_layer() -> None:
    model = network("residual", 0)
    x, _ = samples(0)
    y = model.predict(x)
    certificate = certify(model, x, y, threat(0.05), most=0)
    assert "intervals" in certificate.method
    assert "add" in certificate.note
    assert bool((certify(model, x, y, threat(0.05)).lower >= certificate.lower - 1e-6).all())


class Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3].mul(8).round()


class Multiplies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * x.flatten(1)[:, 3:6]


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + torch.randn(3)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] if bool(x.mean() > 0.5) else -x.flatten(1)[:, :3]


class Hidden(nn.Module):
    """Does outside torch what no record shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + torch.from_numpy(np.round(x.detach().numpy())).flatten(1)[:, :3]


class Listed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + torch.tensor(x.detach().tolist()).round().flatten(1)[:, :3]


class Flips(nn.Module):
    """Looks for noise, and answers otherwise where there is some."""

    def forward(self, x: Tensor) -> Tensor:
        rough = (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3), keepdim=True)
        z = x.flatten(1)[:, :3]
        return torch.where(rough[:, :, 0, 0] > 0.5, -z, z)


class Changes(nn.Module):
    """Gives another answer at every pass, by a number that torch does not see."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)[:, :3] * float(self.calls)


class Mixes(nn.Module):
    """One sample's output depends on the others."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] - x.flatten(1)[:, :3].mean(dim=0)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Rounds, "round"),
        (Multiplies, "multiplied"),
        (Noisy, "random"),
        (Decides, "values"),
        (Hidden, "numpy"),
        (Listed, "tolist"),
        (Flips, "hidden"),
        (Changes, "changes"),
        (Mixes, "samples of a batch"),
    ],
)
def test_a_layer_without_a_bound_is_named_and_never_certified(kind: type[nn.Module], words: str) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = kind()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.hidden(x))

    model = audit.Model(Holder(), classes=3, output="logits", bounds=(0, 1), device="cpu")
    x, _ = samples(0)
    with pytest.raises(NoBound, match=words) as refused:
        certify(model, x, torch.zeros(4, dtype=torch.long), threat(0.01))
    assert kind is Changes or "hidden" in str(refused.value) or kind is Decides


def test_a_network_left_in_training_mode_is_certified_as_it_is_deployed() -> None:
    model = network("residual", 1)
    model.module.train()
    x, _ = samples(1)
    y = model.predict(x)
    certificate = certify(model, x, y, threat(0.0))
    assert bool(certificate.certified.all())
    assert model.module.training


def test_half_precision_is_refused() -> None:
    model = audit.Model(
        nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).to(torch.bfloat16), output="logits", bounds=(0, 1), device="cpu"
    )
    with pytest.raises(NoBound, match="float32"):
        certify(model, samples(0)[0], torch.zeros(4, dtype=torch.long), threat(0.1))


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        pytest.param(build, kind, id=f"{kind}-{name}")
        for name, build in {"pooled": pooled, "tanh": lambda: mlp(nn.Tanh), "residual": Residual, "mixed": Mixed}.items()
        for kind in ("pickled", "pt2", "onnx")
        if kind != "pickled" or name in ("pooled", "tanh")  # plain layers alone are read from pickles
    ],
)
def test_networks_out_of_files_are_certified_as_the_live_ones(build: type[nn.Module], kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build().eval()
    x, _ = samples(0, 5)
    path = tmp_path / {"pickled": "net.pt", "pt2": "net.pt2", "onnx": "net.onnx"}[kind]
    if kind == "pickled":
        torch.save(module, path)
    elif kind == "pt2":
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    else:
        _to_onnx(module, x, path)
    live = audit.Model(module, output="logits", bounds=(0, 1), device="cpu")
    read = audit.Model.load(path, output="logits", bounds=(0, 1), device="cpu")
    y = live.predict(x)
    if kind == "onnx" and build is Mixed:
        # Its pads are computed in the file, which no record without values follows.
        with pytest.raises(NoBound, match="operations without values"):
            certify(read, x, y, threat(0.02))
        return
    expected, got = (certify(model, x, y, threat(0.02)).lower for model in (live, read))
    assert torch.allclose(got, expected, atol=1e-4)


def _to_onnx(module: nn.Module, x: Tensor, path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})


def test_a_split_bounds_the_inputs_that_obey_it_and_no_others() -> None:
    model = network("mlp", 7)
    x, _ = samples(7, 2)
    y = model.predict(x)
    net = Network.of(model, x, dtype=torch.float64)
    region = threat(0.2)
    bounds = bounds_of(net, x, region)
    first = bounds.activations()[0]
    rows, _, own = margin_rows(net, y)
    generator = torch.Generator().manual_seed(0)
    points = (x[:1] + 0.2 * (2 * torch.rand((400, *x.shape[1:]), generator=generator) - 1)).clamp(0, 1)
    with torch.no_grad():
        all_before = model.module[1](model.normalise(points).flatten(1))
    neuron = int(((all_before > 0).float().mean(dim=0) - 0.5).abs().argmin())
    before = all_before[:, neuron]
    assert bool(bounds.unstable(first)[0, neuron])
    margins = _margins(model, points, y[:1].expand(400))
    for sign in (1, -1):
        splits = {first: torch.zeros_like(bounds.low[first], dtype=torch.int8)}
        splits[first][:, neuron] = sign
        half = bounds_of(net, x, region, splits=splits)
        lower, at_input = half.lowest(rows)
        beta = {first: torch.full_like(half.low[first], 0.3)}
        tighter, _ = half.lowest(rows, multipliers=beta)
        obeys = before * sign >= 0
        assert bool(obeys.any())
        for bound in (lower, tighter):
            assert bool((margins[obeys] >= bound[0].masked_fill(own[0], -torch.inf)).all())
        corner = half.inputs.corner(at_input[:, 1])
        assert bool(((corner - x).abs() <= 0.2 + 1e-5).all())
        assert not bool(half.impossible().any())


def test_a_network_that_rounds_to_a_coarser_type_inside_has_no_bound():
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6).double(), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu().float()).double()

    model = audit.Model(Rounds(), output="logits", bounds=(0, 1), device="cpu")
    x = torch.rand(2, 4, dtype=torch.float64)
    with pytest.raises(NoBound, match=r"rounds numbers from torch\.float64"):
        certify(model, x, torch.zeros(2, dtype=torch.long), threat(0.1))


def test_arrays_are_taken_as_tensors_are_and_labels_are_counted():
    model = audit.Model(mlp(), output="logits", bounds=(0, 1), device="cpu")
    x, y = torch.rand(5, 72), torch.zeros(5, dtype=torch.long)
    from_arrays = certify(model, x.numpy(), y.numpy(), threat(0.1))
    assert torch.equal(from_arrays.lower, certify(model, x, y, threat(0.1)).lower)
    with pytest.raises(UsageError, match="expected one label a sample, got 6 labels for 5 samples"):
        certify(model, x, torch.zeros(6, dtype=torch.long), threat(0.1))
