"""A network that was saved and read again computes what it computed: logits, gradients and predictions, in each format."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import audit
from audit.model.graph import Graph
from audit.model.wrapper import Model, weights_sha256
from tests.roundtrip.architectures import ARCHITECTURES, Architecture, inputs, made
from tests.roundtrip.formats import FORMATS, PICKLED, WEIGHTS

# What torch itself does not export.
NOT_EXPORTED = {
    ("mlp_selu_alpha_dropout", "onnx9"): "celu came with opset 12",
    ("pixel_shuffle", "onnx9"): "unflatten came with opset 13",
    ("vit", "onnx9"): "unflatten came with opset 13",
    ("vit", "onnx13"): "attention in one piece came with opset 14",
    ("einsum_attention", "onnx9"): "einsum came with opset 12",
}
# What torch exports as another network: opset 9 has one way alone to place the pixels of an enlarged image. The file is right.
EXPORTED_OTHERWISE = {("upsample", "onnx9"), ("unet", "onnx9")}

EXTERNAL = ("mlp_relu", "vgg")
# Exporting these takes a second or more: not for networks whose layers others have, too.
EXPENSIVE = ("pt2_decomposed", "onnx_dynamo")
LIKE_OTHERS = ("mlp_tanh", "mlp_regression", "mlp_log_softmax", "all_convolutional", "rnn", "tied", "resnet18_float64")
SHORT = [
    (name, form)
    for name in ARCHITECTURES
    for form in FORMATS
    if (form in ("state_dict", "pickled", "onnx13") or (form == "pt2" and name in ("vgg", "mlp_softmax", "lstm")))
    and (name, form) not in NOT_EXPORTED
]
LONG = [
    (name, form)
    for name in ARCHITECTURES
    for form in FORMATS
    if (name, form) not in SHORT
    and (name, form) not in NOT_EXPORTED
    and (form != "onnx_external" or name in EXTERNAL)
    and (form not in EXPENSIVE or name not in LIKE_OTHERS)
]


@pytest.mark.parametrize(("name", "form"), SHORT)
def test_a_network_read_again_computes_the_same(name: str, form: str, tmp_path: Path) -> None:
    _check(ARCHITECTURES[name], form, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), LONG)
def test_in_every_format(name: str, form: str, tmp_path: Path) -> None:
    _check(ARCHITECTURES[name], form, tmp_path)


def test_the_matrix_covers_thirty_architectures_and_every_format() -> None:
    assert len(ARCHITECTURES) >= 30
    assert {form for _, form in (*SHORT, *LONG)} == set(FORMATS)
    left_out = len(ARCHITECTURES) - len(EXTERNAL) + len(EXPENSIVE) * len(LIKE_OTHERS)
    assert len({*SHORT, *LONG, *NOT_EXPORTED}) == len(ARCHITECTURES) * len(FORMATS) - left_out
    for form in FORMATS:
        assert sum(saved == form for _, saved in (*SHORT, *LONG)) >= 30 or form == "onnx_external"


def _check(architecture: Architecture, form: str, folder: Path) -> None:
    network = made(architecture)
    before = weights_sha256(network)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporters talk
        path = FORMATS[form](network, inputs(architecture, 2), folder)
    needs_arch = form in WEIGHTS or (form in PICKLED and not architecture.plain)

    live = Model(network, output=architecture.output)
    read = audit.Model.load(path, arch=_factory(architecture) if needs_arch else None, output=architecture.output)

    assert read.module is not network
    assert read.dtype == architecture.dtype
    assert isinstance(read.module, Graph) == (form not in WEIGHTS and form not in PICKLED)
    # The weights in double precision hold fewer than 1e-5: a cast to float32 on the way would show.
    tolerance = 1e-5 if architecture.dtype == torch.float32 else 1e-6
    for n in (1, 5):
        x = inputs(architecture, n, seed=n)
        if (architecture.name, form) in EXPORTED_OTHERWISE:
            _close(read.logits(x), _by_onnxruntime(path, x), tolerance)
            continue
        (said, slope), (said_again, slope_again) = (_answer(model, x) for model in (live, read))
        assert said_again.shape == said.shape
        assert said_again.dtype == said.dtype
        _close(said_again, said, tolerance)
        _close(slope_again, slope, 10 * tolerance)
        assert float(slope.abs().max()) > 0
        assert _same_predictions(live.predict(x), read.predict(x), said)
    assert weights_sha256(network) == before
    assert all(parameter.grad is None for parameter in network.parameters())


def _factory(architecture: Architecture):
    def fresh() -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(99)
            return architecture.build().to(architecture.dtype)

    return fresh


def _answer(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits or values, and the gradient of a fixed sum of them."""
    x = x.clone().requires_grad_(True)
    with model.session():
        said = model.values(x)[:, None] if model.output == "regression" else model.logits(x)
        weight = torch.linspace(-1.0, 2.0, said.shape[1], dtype=said.dtype) + 0.3
        (slope,) = torch.autograd.grad((said * weight).sum(), x)
    return said.detach(), slope


def _close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    difference = float((got - wanted).abs().max())
    assert difference <= tolerance * scale, f"{difference:g} apart, at most {tolerance * scale:g}"


def _same_predictions(said: Tensor, again: Tensor, logits: Tensor) -> bool:
    if said.is_floating_point():
        return bool(torch.allclose(said, again, atol=1e-5))
    best = logits.topk(2, dim=1).values
    close = best[:, 0] - best[:, 1] < 1e-4
    return bool(((said == again) | close).all())


def _by_onnxruntime(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]))
