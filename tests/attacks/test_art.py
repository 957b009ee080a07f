"""ART's attacks under our box, radius and re-check: each that is said to work does, and each that is said not to says why."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.attacks.art import KNOWN, REFUSED, ArtAttack, page
from audit.attacks.asked import as_asked, make_attack
from audit.attacks.geometry import ThreatModel
from audit.errors import UsageError
from audit.model.wrapper import Model
from tests.attacks.test_attacks import small_net

evasion = pytest.importorskip("art.attacks.evasion")

# The smallest settings at which each finds something on a tiny network; those that need none are not named.
SMALL: dict[str, dict[str, object]] = {
    "AutoAttack": {},
    "AutoConjugateGradient": {"max_iter": 10, "nb_random_init": 1},
    "AutoProjectedGradientDescent": {"max_iter": 10, "nb_random_init": 1},
    "BasicIterativeMethod": {"max_iter": 10},
    "BoundaryAttack": {"max_iter": 10},
    "BrendelBethgeAttack": {"steps": 5, "binary_search_steps": 2},
    "CarliniL0Method": {"max_iter": 10, "learning_rate": 0.1, "binary_search_steps": 2, "initial_const": 1.0},
    "CarliniL2Method": {"max_iter": 20, "learning_rate": 0.1, "binary_search_steps": 2, "initial_const": 1.0},
    "CarliniLInfMethod": {"max_iter": 5, "learning_rate": 0.1, "initial_const": 0.1, "largest_const": 1.0},
    "ElasticNet": {"max_iter": 20, "learning_rate": 0.1, "binary_search_steps": 2, "initial_const": 1.0},
    "GeoDA": {"max_iter": 1000, "sub_dim": 3},
    "HopSkipJump": {"max_iter": 3, "max_eval": 50, "init_eval": 10},
    "MomentumIterativeMethod": {"max_iter": 10},
    "NewtonFool": {"max_iter": 30},
    "PixelAttack": {"max_iter": 1},
    "ProjectedGradientDescent": {"max_iter": 10},
    "ProjectedGradientDescentNumpy": {"max_iter": 10},
    "ProjectedGradientDescentPyTorch": {"max_iter": 10},
    "RescalingAutoConjugateGradient": {"max_iter": 20, "nb_random_init": 1},
    "SignOPTAttack": {"max_iter": 10, "num_trial": 10, "query_limit": 300, "k": 10},
    "SimBA": {"max_iter": 50},
    "ThresholdAttack": {"max_iter": 1},
    "UniversalPerturbation": {"max_iter": 2},
    "VirtualAdversarialMethod": {"max_iter": 2},
    "ZooAttack": {"max_iter": 30, "initial_const": 1.0, "nb_parallel": 4, "learning_rate": 0.1},
}
FAST = ["FastGradientMethod", "ProjectedGradientDescent", "HopSkipJump", "DeepFool", "SquareAttack"]
COMPILES = "BrendelBethgeAttack"  # numba takes over a minute for it, so that no test can afford it


def pictures(n: int = 6) -> tuple[Model, Tensor, Tensor]:
    x = torch.rand((n, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    model = Model(small_net(inputs=108), bounds=(0, 1), device="cpu")
    model.resolve(x)
    return model, x, model.predict(x)


def attack(name: str, norm: str, model: Model, x: Tensor, y: Tensor, eps: float = 0.6, **options):
    return ArtAttack(name, norm, eps if norm == "linf" else 4 * eps, **SMALL.get(name, {}))(model, x, y, **options)


def held(name: str, norm: str) -> None:
    """Run an attack at a radius that is easy, and look at what it says it found."""
    model, x, y = pictures()
    before = (np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state())  # noqa: NPY002  (ART draws from it)
    out = attack(name, norm, model, x, y)
    assert int(out.success.sum()) > 0, "it broke nothing at all"
    assert int(out.rejected.sum()) == 0
    delta = (out.x_adv - x).double().flatten(1)
    size = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert float(size.max()) <= (0.6 if norm == "linf" else 2.4) + 1e-6
    assert bool(((out.x_adv >= 0) & (out.x_adv <= 1)).all())
    assert bool((model.predict(out.x_adv)[out.success] != y[out.success]).all())
    assert out.forwards >= 3 * len(x)
    after = (np.random.get_state()[1], random.getstate(), torch.get_rng_state())  # noqa: NPY002  (see above)
    assert np.array_equal(before[0], after[0])
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])


# ART's Square in L2 needs larger pictures: that it says so is tested below.
PAIRS = [(name, norm) for name in FAST for norm in ("linf", "l2") if (name, norm) != ("SquareAttack", "l2")]


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_what_it_finds_is_in_box_and_radius_and_confirmed(name: str, norm: str):
    held(name, norm)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(KNOWN) - set(FAST) - {COMPILES}))
def test_each_attack_that_is_said_to_work_does(name: str):
    held(name, "linf")


def test_every_evasion_attack_of_the_installed_art_is_in_the_table():
    from art.attacks.attack import EvasionAttack

    there = {n for n, c in vars(evasion).items() if isinstance(c, type) and issubclass(c, EvasionAttack)}
    # Without numba ART itself leaves one out.
    assert there - {COMPILES} == (set(KNOWN) | set(REFUSED)) - {COMPILES}
    assert not set(KNOWN) & set(REFUSED)


def test_the_page_of_attacks_is_the_table():
    path = Path(__file__).resolve().parents[2] / "docs" / "art.md"
    assert path.read_text(encoding="utf-8") == page() + "\n", "audit list attacks --markdown > docs/art.md"


@pytest.mark.parametrize(("name", "radius"), [("HopSkipJump", 0.15), ("ProjectedGradientDescent", 0.05)])
def test_results_belong_to_blocks_of_ids_and_not_to_batches_or_the_clock(name: str, radius: float):
    model, x, y = pictures(12)
    ids = torch.arange(60, 72)  # two blocks of 64
    whole = attack(name, "linf", model, x, y, eps=radius, ids=ids)
    assert 0 < int(whole.success.sum()) < 12, "the radius decides nothing here"
    np.random.seed(5)  # noqa: NPY002  (ART draws from it)
    torch.manual_seed(5)
    small = Model(small_net(inputs=108), bounds=(0, 1), device="cpu", batch_size=5)
    again = attack(name, "linf", small, x, y, eps=radius, ids=ids)
    assert torch.allclose(whole.x_adv, again.x_adv, atol=1e-5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = attack(name, "linf", model, x[order], y[order], eps=radius, ids=ids[order])
    assert torch.allclose(whole.x_adv[order], shuffled.x_adv, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_any_floating_point_type_can_be_asked(dtype: torch.dtype):
    x = torch.rand((4, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    model = Model(small_net(inputs=108).to(dtype), bounds=(0, 1), device="cpu")
    model.resolve(x)
    y = model.predict(x)
    assert int(attack("HopSkipJump", "linf", model, x, y).success.sum()) > 0
    assert int(attack("ProjectedGradientDescent", "linf", model, x, y).success.sum()) > 0


@pytest.mark.parametrize("name", ["HopSkipJump", "ProjectedGradientDescent", "DeepFool", "BoundaryAttack"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_columns_of_any_unit_are_moved_by_their_own_and_fixed_ones_never(name: str, norm: str):
    net = nn.Sequential(Scaled(torch.tensor([1.0, 1e-3, 1.0, 1.0])), nn.Linear(4, 3, bias=False))
    net[1].weight.data = torch.tensor([[1.0, 3.0, 1.0, 1.0], [-1.0, -3.0, 1.0, -1.0], [0.0, 0.0, -1.0, 1.0]])
    x = torch.rand((16, 4), generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1000.0, 1.0, 1.0])
    model = Model(net, device="cpu")
    model.resolve(x)
    y = model.predict(x)
    scale = np.array([0.3, 300.0, 0.3, 0.0])
    high = np.array([1, 1000.0, 1, 1])
    threat = ThreatModel(norm, 1.5, np.zeros(4), high, scale=scale, mutable=np.array([True, True, False, True]))
    out = attack(name, norm, model, x, y, threat=threat)
    assert int(out.success.sum()) >= 3
    assert torch.equal(out.x_adv[:, [2, 3]], x[:, [2, 3]])
    moved = ((out.x_adv - x).double() / torch.tensor([0.3, 300.0, 1, 1]))[:, :2]
    size = moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)
    assert float(size.max()) <= 1.5 + 1e-5
    assert float(moved[:, 1].abs().max()) > 0.1, "the wide column was never moved: the radius did not mean the same there"


class Scaled(nn.Module):
    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5 / self.by) * self.by


def test_samples_that_are_wrong_already_are_not_handed_over():
    model, x, y = pictures()
    out = attack("ProjectedGradientDescent", "linf", model, x, (y + 1) % 4)
    assert bool(out.success.all())
    assert out.backwards == 0
    assert torch.equal(out.x_adv, x)


def test_a_radius_of_nothing_finds_nothing():
    model, x, y = pictures()
    out = ArtAttack("ProjectedGradientDescent", "linf", 0.0)(model, x, y)
    assert not bool(out.success.any())


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("HopSkipJmp", {}, "did you mean 'HopSkipJump'"),
        ("HopSkipJump", {"max_itr": 3}, "did you mean 'max_iter'"),
        ("HopSkipJump", {"norm": 2}, "set from the run itself"),
        ("Wasserstein", {}, "a ball of another kind"),
        ("AdversarialPatch", {}, "there is no radius"),
    ],
)
def test_what_cannot_be_asked_for_says_why(name: str, params: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        make_attack("art", as_asked({"name": name, **params}), "linf", 0.1, 0)


def test_what_cannot_run_on_this_network_says_why():
    table = Model(small_net(), bounds=(0, 1), device="cpu")
    table.resolve(torch.rand(2, 12))
    threat = ThreatModel("linf", 0.1, np.zeros(12), np.ones(12))
    with pytest.raises(UsageError, match="takes images"):
        ArtAttack("SquareAttack").check(table, threat, (12,))
    with pytest.raises(UsageError, match="cannot be set up"):
        ArtAttack("HopSkipJump", max_iter=-1).check(table, threat, (12,))
    two = Model(small_net(classes=2), bounds=(0, 1), device="cpu")
    two.resolve(torch.rand(2, 12))
    with pytest.raises(UsageError, match="at least 3 classes"):
        ArtAttack("SignOPTAttack").check(two, threat, (12,))
    zero = np.zeros((3, 6, 6))
    with pytest.raises(UsageError, match="10 pixels a side"):
        ArtAttack("SquareAttack", "l2").check(pictures()[0], ThreatModel("l2", 0.1, zero, zero + 1), (3, 6, 6))
    line = Model(nn.Linear(3, 1), task="regression", bounds=(0, 1), device="cpu")
    with pytest.raises(UsageError, match="regression network"):
        ArtAttack("HopSkipJump")(line, torch.rand(4, 3), torch.rand(4), tolerance=0.1)


def test_without_art_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "art.attacks", None)
    with pytest.raises(UsageError, match="pip install"):
        ArtAttack("HopSkipJump")
