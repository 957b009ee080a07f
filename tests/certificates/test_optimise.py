"""Free slopes: every line of a fan bounds its activation, and bounds tightened by slopes of their own stay true."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import audit
from audit.certificates import Network, bounds_of
from audit.certificates.activations import Fan, Kink
from audit.certificates.bounds import Bounds
from audit.certificates.branching import branch
from audit.certificates.certify import margin_rows, margins
from audit.certificates.operations import Convolution
from audit.certificates.optimise import tighten
from audit.certificates.rounding import Rounding
from tests.certificates.networks import network, samples, threat

KINKS = {
    "relu": Kink(0.0, 1.0),
    "leaky": Kink(0.1, 1.0),
    "abs": Kink(-1.0, 1.0),
    "top": Kink(1.0, 0.0, at=0.7, value=0.7),
    "bottom": Kink(0.0, 1.0, at=-0.5, value=-0.5),
    "both ways": Kink(torch.tensor([0.2, 1.5, 1.0]), 1.0),
}


@pytest.mark.parametrize("kind", KINKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_line_of_a_fan_bounds_its_activation(kind: str, dtype: torch.dtype) -> None:
    kink = KINKS[kind]
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn((2, 50, 3), generator=generator, dtype=dtype) * 2
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    rounding = Rounding.of(dtype, dtype, torch.device("cpu"))
    first, last = (kink.lines(low, high, rounding, torch.full_like(low, end)) for end in (0.0, 1.0))
    fan = Fan.between(first, last, through_zero=kink.at == 0)
    slopes = torch.rand((50, 7, 3), generator=generator, dtype=dtype)
    slopes[:, 0], slopes[:, 1], slopes[:, 2] = 0.0, 1.0, 7.0  # a slope beyond the ends is brought back
    lines = fan.at(slopes)

    def shaped(side: Tensor) -> Tensor:
        return (side if side.ndim == 3 else side[:, None]).expand(50, 7, 3).double()

    for share in torch.linspace(0, 1, 21, dtype=dtype):
        x = low + share * (high - low)
        value, x = shaped(kink(x)), shaped(x)
        slack = 4 * torch.finfo(dtype).eps * (x.abs() + 1)  # of this test's own sums
        assert bool((shaped(lines.low_slope) * x + shaped(lines.low_offset) <= value + slack).all())
        assert bool((shaped(lines.high_slope) * x + shaped(lines.high_offset) >= value - slack).all())
    alone = kink.lines(low, high, rounding, slopes[:, 3])
    for side in ("low_slope", "low_offset", "high_slope", "high_offset"):
        assert torch.allclose(shaped(getattr(lines, side))[:, 3], getattr(alone, side).double(), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mlp", "residual", "mixed", *(pytest.param(one, marks=pytest.mark.slow) for one in ("leaky", "pooled", "tanh"))]
)
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_tightened_bounds_hold_at_every_value_and_are_never_looser(name: str, norm: str) -> None:
    model = network(name, 5)
    x, _ = samples(5)
    y = model.predict(x)
    region = threat({"linf": 0.06, "l2": 0.3}[norm], norm)
    net = Network.of(model, x)
    root, plain = (bounds_of(net, x, region) for _ in range(2))
    rows = root.rows
    tighten(root, 4)
    if any(isinstance(node.operation, Kink) for node in net.nodes[: root.activations()[-1]]):
        assert root.rows > rows
        assert sum(float((root.high[k] - root.low[k]).sum()) for k in root.low) < sum(
            float((plain.high[k] - plain.low[k]).sum()) for k in plain.low
        )
    for number in root.low:
        assert bool((root.low[number] >= plain.low[number]).all())
        assert bool((root.high[number] <= plain.high[number]).all())
    with torch.no_grad():
        lower = margins(root, y)
        ball = region.on(x)
        for draw in range(20):
            point = ball.around(x).random(torch.arange(len(x)), seed=0, purpose="test", draw=draw)
            point = torch.where(point > x, ball.around(x).high, ball.around(x).low) if norm == "linf" and draw % 2 else point
            seen = Bounds.intervals(net, point.double(), point.double())
            for number in root.low:
                assert bool((root.low[number] <= seen.high[number]).all())
                assert bool((root.high[number] >= seen.low[number]).all())
            logits = model.logits(point).double()
            assert bool((logits.gather(1, y[:, None]) - logits >= lower.masked_fill(lower == torch.inf, -torch.inf)).all())


def test_where_no_unit_is_open_slopes_change_nothing() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LeakyReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        body[0].bias.add_(5)
        body[2].bias.sub_(30)
    model = audit.Model(body, task="classification", bounds=(0, 1), device="cpu")
    x = torch.rand(3, 4)
    model.resolve(x)
    y = (model.predict(x) + 1) % 3
    net = Network.of(model, x)
    plain, root = (bounds_of(net, x, threat(0.1)) for _ in range(2))
    tighten(root, 3)
    with torch.no_grad():
        lower = margins(plain, y)
        assert bool((lower < 0).any())
        for found in (margins(plain, y, alpha_steps=3), margins(root, y), margins(root, y, alpha_steps=3)):
            assert torch.allclose(found, lower, atol=1e-9)
    rows, constant, _ = margin_rows(net, y)
    wrong = int(lower[0].argmin())
    found = branch(root.take(torch.tensor([0])), rows[0, wrong], float(constant[0, wrong]), most=8)
    assert found.lower == pytest.approx(float(lower[0, wrong]), abs=1e-9)


def test_tightened_bounds_do_not_depend_on_the_batch() -> None:
    model = network("mlp", 1)
    x, _ = samples(1)
    net = Network.of(model, x)
    together, alone = bounds_of(net, x, threat(0.05)), bounds_of(net, x[2:3], threat(0.05))
    for bounds in (together, alone):
        tighten(bounds, 5)
    for number in alone.low:
        assert torch.allclose(together.low[number][2:3], alone.low[number], atol=1e-9)
        assert torch.allclose(together.high[number][2:3], alone.high[number], atol=1e-9)


def test_shortened_factors_are_counted_however_torch_was_told_of_them() -> None:
    cpu = torch.device("cpu")
    exact = Rounding.of(torch.float32, torch.float64, cpu)
    assert (exact.matrix, exact.convolution) == (0.0, 0.0)
    kept = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        short = Rounding.of(torch.float32, torch.float64, cpu)
        own = Rounding.of(torch.float32, torch.float32, cpu)
        assert Rounding.of(torch.float64, torch.float64, cpu).matrix == 0.0
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = kept
    assert short.products(10, 10) > 2 * 2**-7 > exact.products(10, 10)
    assert short.products(10, 10, convolution=True) == exact.products(10, 10, convolution=True)
    # Bounds in float32 are made of the same products; those in float64 are not.
    assert own.sums(10) > 2 * 2**-7 > short.sums(10) == exact.sums(10)
    assert own.products(10, 10) > 2 * short.products(10, 10) - exact.products(10, 10) - 1e-5
    cuda = Rounding.of(torch.float32, torch.float32, torch.device("cuda"))
    assert cuda.transformed
    assert cuda.convolution == (2**-10 if torch.backends.cudnn.conv.fp32_precision == "tf32" else 0.0)


@pytest.mark.parametrize("mode", ["BF16", "tf32", "STRICT", "ANY"])
@pytest.mark.parametrize("name", ["ONEDNN", "DNNL"])
def test_factors_that_the_environment_lets_onednn_shorten_are_counted(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{name}_DEFAULT_FPMATH_MODE", mode)
    lost = {"BF16": 2**-7, "tf32": 2**-10, "STRICT": 0.0, "ANY": float("inf")}[mode]
    found = Rounding.of(torch.float32, torch.float64, torch.device("cpu"))
    assert (found.matrix, found.convolution) == (lost, lost)
    assert Rounding.of(torch.float64, torch.float64, torch.device("cpu")).matrix == 0.0


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("kind", ["even", "bright", "padded"])
def test_convolutions_stay_within_their_error_where_they_transform_their_inputs(kernel: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(kernel)
    x = torch.rand((17, 4, 16, 16), generator=generator)
    if kind == "bright":
        x[:, :, 3, 5] = 1e7
    weight = torch.randn((8, 4, kernel, kernel), generator=generator)
    padding = [kernel - 1 if kind == "padded" else 0] * 2
    operation = Convolution(weight.double(), None, [1, 1], padding, [1, 1], False, [0, 0], 1)
    kept = torch.backends.mkldnn.enabled
    try:
        torch.backends.mkldnn.enabled = False
        rounding = Rounding.of(torch.float32, torch.float64, torch.device("cpu"))
        given = torch.conv2d(x, weight, None, 1, padding).double()
    finally:
        torch.backends.mkldnn.enabled = kept
    assert rounding.transformed
    exact = torch.conv2d(x.double(), weight.double(), None, 1, padding)
    error = operation.error([(x.double(), x.double())], (exact, exact), rounding)
    assert bool(((given - exact).abs() <= error).all())
