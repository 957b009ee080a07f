"""Each operator that a ``.pt2`` program may use gives what torch's own operator gives, values and gradients."""

import io
import json
import warnings
import zipfile

import pytest
import torch
from torch import nn

from audit.model import pt2
from audit.model.pt2.operators import names, table
from tests.model.pt2_cases import case

ATEN = [target.removeprefix("torch.ops.aten.") for target in table() if target.startswith("torch.ops.aten.")]
# Sizes and copies of constants are tested with the networks; kernels of attention on a GPU are not there on every machine.
ON_GPU = [f"_scaled_dot_product_{kind}_attention.default" for kind in ("flash", "efficient", "cudnn")]
ELSEWHERE = {"sym_size.int", "sym_numel.default", "lift_fresh.default", "lift_fresh_copy.default", *ON_GPU}
# torch has none; ours has that of the copy_ and of the div that they come from.
WITHOUT_GRADIENT = {"copy.default", "floor_divide.Scalar"}
HERE = [name for name in ATEN if name not in ELSEWHERE]
GROUP = 25
GROUPS = [HERE[start : start + GROUP] for start in range(0, len(HERE), GROUP)]


class Operators(nn.Module):
    """Calls operators by their aten names, and returns the weighted sum of what each returns, one column each."""

    def __init__(self, names_):
        super().__init__()
        self.names = names_

    def forward(self, x):
        columns = [self.column(name, x) for name in self.names]
        return x.flatten(1).sum(1, keepdim=True) * 0 + torch.stack(columns)

    def column(self, name, x):
        x = x.detach() if name in WITHOUT_GRADIENT else x
        packet, overload = name.split(".")
        *positional, last = case(name, x)
        positional, keywords = (positional, last) if isinstance(last, dict) else ([*positional, last], {})
        if name in names.IN_PLACE.split() or packet in ("dropout_", "sigmoid_", "rrelu_"):
            positional[0] = positional[0].clone()
        found = getattr(getattr(torch.ops.aten, packet), overload)(*positional, **keywords)
        found = found[:1] if "norm" in packet and isinstance(found, tuple) else found
        parts = found if isinstance(found, tuple | list) else (found,)
        if packet.startswith("_scaled_dot"):
            parts = parts[:1]
        return sum(self.weighted(part) for part in parts)

    def weighted(self, part):
        flat = part.flatten().double()
        return (flat * torch.arange(flat.shape[0], dtype=torch.float64).cos()).sum()


def exported(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        stream = io.BytesIO()
        torch.export.save(program, stream)
    return stream.getvalue()


def targets(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        return {node["target"] for node in json.loads(archive.read(name))["graph_module"]["graph"]["nodes"]}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}...")
def test_operators_give_what_torch_gives(group):
    torch.manual_seed(0)
    module = Operators(group).eval()
    content = exported(module, torch.randn(4, 3, 8, 8))
    assert {f"torch.ops.aten.{name}" for name in group} <= targets(content)
    graph = pt2.load(content, "m.pt2", "")
    for n in (1, 3, 17):
        x = torch.randn(n, 3, 8, 8)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = graph(ours), module(theirs)
        for column, name in enumerate(group):
            torch.testing.assert_close(got[0, column], want[0, column], msg=lambda said, name=name: f"{name}: {said}")
        for column, name in enumerate(group):
            if name in WITHOUT_GRADIENT:
                continue
            mine, torchs = (
                torch.autograd.grad(out[0, column], leaf, retain_graph=True)[0] for out, leaf in ((got, ours), (want, theirs))
            )
            torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


def test_whole_numbers_divided_by_minus_one():
    """A kernel that divides the smallest whole number by -1 stops the process."""
    least, minus_one = torch.tensor([-(2**63)] * 9), torch.tensor([-1] * 9)
    names_ = ("floor_divide.default", "remainder.Tensor", "fmod.Tensor")
    for name, mode in (("div.Tensor_mode", {"rounding_mode": "trunc"}), *((name, {}) for name in names_)):
        assert table()[f"torch.ops.aten.{name}"].function(least, minus_one, **mode).tolist() in ([-(2**63)] * 9, [0] * 9)


def test_255_in_a_byte_is_not_minus_one():
    """Compared with -1, a byte of 255 is equal to it: 200 over 255 would be 56."""
    x, other = torch.tensor([200, 7], dtype=torch.uint8), torch.tensor([255, 2], dtype=torch.uint8)
    found = table()
    trunc = found["torch.ops.aten.div.Tensor_mode"].function(x, other, rounding_mode="trunc")
    assert torch.equal(trunc, torch.div(x, other, rounding_mode="trunc"))
    assert torch.equal(found["torch.ops.aten.floor_divide.default"].function(x, other), torch.floor_divide(x, other))
    assert torch.equal(found["torch.ops.aten.remainder.Tensor"].function(x, other), torch.remainder(x, other))


def test_a_weight_norm_with_too_few_lengths_is_refused():
    """The kernel reads past their end, and stops the process."""
    norm = table()["torch.ops.aten._weight_norm.default"].function
    v, g = torch.randn(6, 3, 2), torch.rand(6, 1, 1)
    assert torch.allclose(norm(v, g), torch._weight_norm(v, g), atol=1e-6)
    assert torch.allclose(
        norm(v, g=torch.rand(1, 1, 2).fill_(2.0), dim=2), torch._weight_norm(v, torch.full((1, 1, 2), 2.0), 2)
    )
    for bad in (torch.rand(1), torch.rand(0, 1, 1), torch.rand(6), torch.rand(6, 3, 2)):
        with pytest.raises(ValueError, match="needs lengths"):
            norm(v, bad)
