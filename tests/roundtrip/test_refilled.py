"""A ``.pt2`` or ONNX file is written again with other weights: what is read from it is the changed network, bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

import audit
from audit.hardening.saved import saved as saved_network
from audit.model.graph import Graph
from audit.model.onnx import refill as onnx_refill
from audit.model.pt2 import refill as pt2_refill
from tests.roundtrip.architectures import ARCHITECTURES, inputs, made
from tests.roundtrip.formats import FORMATS

CASES = [
    (name, form)
    for name in ("mlp_batch_norm_elu_softplus", "vgg", "lstm", "attention", "tied", "shared_twice", "mlp_float64", "convnext")
    for form in ("pt2", "onnx13")
]


def saved(name: str, form: str, folder: Path) -> tuple[Path, Graph]:
    architecture = ARCHITECTURES[name]
    with contextlib.redirect_stdout(io.StringIO()):
        path = FORMATS[form](made(architecture), inputs(architecture, 2), folder)
    module = audit.Model.load(path).module
    assert isinstance(module, Graph)
    return path, module


def refilled(content: bytes, form: str, graph: Graph) -> bytes:
    return (pt2_refill if form == "pt2" else onnx_refill).refilled(content, graph)


def change(graph: Graph) -> None:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype))


@pytest.mark.parametrize(("name", "form"), [*CASES, ("mlp_relu", "onnx_external")])
def test_the_file_holds_the_changed_network(name: str, form: str, tmp_path: Path) -> None:
    path, graph = saved(name, form, tmp_path)
    x = inputs(ARCHITECTURES[name], 3)
    with torch.no_grad():
        before = graph(x)
    change(graph)
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    other.write_bytes(refilled(path.read_bytes(), form, graph))
    again = audit.Model.load(other).module
    assert again.state_dict().keys() == graph.state_dict().keys()
    assert all(torch.equal(tensor, graph.state_dict()[key]) for key, tensor in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(x), graph(x))
        assert not torch.allclose(again(x), before, atol=1e-3)


def test_the_librarys_own_loaders_read_what_was_written(tmp_path: Path) -> None:
    import onnxruntime

    x = inputs(ARCHITECTURES["vgg"], 3)
    for form in ("pt2", "onnx13"):
        path, graph = saved("vgg", form, tmp_path)
        change(graph)
        path.write_bytes(refilled(path.read_bytes(), form, graph))
        with torch.no_grad():
            wanted = graph(x)
            if form == "pt2":
                got = torch.export.load(path).module()(x)
            else:
                session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                got = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
        assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.slow
def test_nothing_but_weights_changes_in_an_archive(tmp_path: Path) -> None:
    path, graph = saved("vgg", "pt2", tmp_path)
    change(graph)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(io.BytesIO(refilled(path.read_bytes(), "pt2", graph))) as new:
        assert old.namelist() == new.namelist()
        changed = {name for name in old.namelist() if old.read(name) != new.read(name)}
    assert changed
    assert all("/data/weights/weight_" in name for name in changed)


def test_a_weight_that_the_network_lacks_is_told(tmp_path: Path) -> None:
    path, _ = saved("vgg", "pt2", tmp_path)
    content = path.read_bytes()
    _, other = saved("tied", "pt2", tmp_path)
    with pytest.raises(audit.ModelError, match="pickles"):
        refilled(content, "pt2", other)


def test_a_program_whose_weights_are_pickles_is_hardened_into_weights_alone(tmp_path: Path) -> None:
    path, graph = saved("vgg", "pt2", tmp_path)
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    config = next(name for name in found if name.endswith("weights_config.json"))
    listed = json.loads(found[config])
    name, said = next((name, said) for name, said in listed["config"].items() if said["is_param"])
    said["use_pickle"], pickled = True, io.BytesIO()
    torch.save(graph.weights.state_dict()[name].clone(), pickled)
    found[config] = json.dumps(listed).encode()
    place = next(place for place in found if place.endswith("/" + said["path_name"]))
    found[place] = pickled.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in found.items():
            archive.writestr(member, content)
    model = audit.Model.load(path)
    assert saved_network(model, model).name == "hardened.pt"
