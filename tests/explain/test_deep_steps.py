"""Which networks of steps Deep SHAP is asked about, and that it then says what it says of the live network."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import audit
from audit.errors import UsageError
from audit.explain import explain
from audit.explain.gradcam import last_convolution
from audit.model.wrapper import Model
from tests.roundtrip.formats import FORMATS


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(x * torch.sigmoid(self.a(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 2), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(torch.tanh(self.a(x / 2.0)) + 3.0 * x))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2))


def convolutions() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ELU()]
    return nn.Sequential(*body, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))


def read(network: nn.Module, form: str, shape: tuple[int, ...], folder: Path) -> Model:
    with contextlib.redirect_stdout(io.StringIO()):
        path = FORMATS[form](network.eval(), torch.rand(2, *shape), folder)
    model = audit.Model.load(path)
    model.resolve(torch.rand(4, *shape), np.asarray([0, 1, 2, 1]))
    return model


@pytest.mark.parametrize("form", ["pt2", "pt2_decomposed", "onnx13"])
@pytest.mark.parametrize(("build", "shape"), [(linear, (4,)), (convolutions, (1, 8, 8))])
def test_values_are_those_of_the_live_network(form, build, shape, tmp_path):
    torch.manual_seed(0)
    network = build().eval()
    model = read(network, form, shape, tmp_path)
    x, baseline = torch.randn(5, *shape), torch.randn(6, *shape)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    live, told = (explain(each, x, method="shap.deep", baseline=baseline) for each in (Model(network), model))
    np.testing.assert_allclose(told.values, live.values, atol=1e-5)
    assert told.completeness_gap.max() < 1e-4
    assert np.abs(told.values).max() > 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert not any(step._forward_hooks or step._forward_pre_hooks or list(step.children()) for step in model.module.steps)


def test_functions_fit_here_that_do_not_in_a_live_module(tmp_path):
    """Each step is a place of its own: what forward() writes as functions is told apart, and adds up."""
    torch.manual_seed(0)
    model = read(Residual(), "pt2", (4,), tmp_path)
    told = explain(model, torch.randn(5, 4), method="shap.deep", baseline=torch.randn(6, 4))
    assert told.completeness_gap.max() < 1e-4


@pytest.mark.parametrize("form", ["pt2", "onnx13"])
@pytest.mark.parametrize(
    ("build", "shape", "why"),
    [
        (Gated, (4,), "its step mul takes two values that depend on the input"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)), (4,), "softmax or sigmoid at the end"),
        (
            lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)),
            (4,),
            "its step (layer_norm|pow) is none that shap knows",
        ),
    ],
)
def test_others_are_refused_by_name(form, build, shape, why, tmp_path):
    model = read(build(), form, shape, tmp_path)
    with pytest.raises(UsageError, match=why):
        explain(model, torch.rand(2, *shape), method="shap.deep", baseline=torch.rand(3, *shape))


def test_a_pool_that_does_more_than_shap_computes_again_is_refused(tmp_path):
    # Padding by 1 below and at the right alone: the file pads first, and pools after.
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(32, 2))
    model = read(network, "onnx13", (1, 9, 9), tmp_path)
    with pytest.raises(UsageError, match="none of the pools that shap knows"):
        explain(model, torch.rand(2, 1, 9, 9), method="shap.deep", baseline=torch.rand(3, 1, 9, 9))


def test_a_file_that_fixes_its_batch_to_one_is_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(0), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Unflatten(0, (1, 2)))
    path = tmp_path / "one.onnx"
    torch.onnx.export(network.eval(), (torch.rand(1, 4),), str(path), dynamo=False, opset_version=13)
    model = audit.Model.load(path)
    model.resolve(torch.rand(3, 4))
    with pytest.raises(UsageError, match=r"does not run all samples of a batch together|none that shap knows"):
        explain(model, torch.rand(2, 4), method="shap.deep", baseline=torch.rand(3, 4))


@pytest.mark.parametrize("form", ["pt2", "onnx13"])
def test_grad_cam_looks_at_the_last_convolution_of_the_steps(form, tmp_path):
    torch.manual_seed(0)
    network = convolutions().eval()
    model = read(network, form, (1, 8, 8), tmp_path)
    x = torch.randn(5, 1, 8, 8)
    live, told = (explain(each, x, method="gradcam") for each in (Model(network), model))
    np.testing.assert_allclose(told.values, live.values, atol=1e-5)
    found = last_convolution(model, x)
    assert found is not None
    assert found[1].kind == "conv2d"
    assert last_convolution(read(linear(), form, (4,), tmp_path), torch.rand(2, 4)) is None
