"""Saves a network in each format that people save networks in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Saver = Callable[[nn.Module, Tensor, Path], Path]


def state_dict(network: nn.Module, _: Tensor, folder: Path) -> Path:
    torch.save(network.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def state_dict_legacy(network: nn.Module, _: Tensor, folder: Path) -> Path:
    torch.save(network.state_dict(), folder / "weights.pth", _use_new_zipfile_serialization=False)
    return folder / "weights.pth"


def checkpoint(network: nn.Module, _: Tensor, folder: Path) -> Path:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    held = {"epoch": 3, "model_state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "loss": 0.25}
    torch.save(held, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def safetensors(network: nn.Module, _: Tensor, folder: Path) -> Path:
    from safetensors.torch import save_model

    save_model(network, str(folder / "weights.safetensors"))  # save_file refuses tied weights
    return folder / "weights.safetensors"


def pickled(network: nn.Module, _: Tensor, folder: Path) -> Path:
    torch.save(network, folder / "module.pt")
    return folder / "module.pt"


def pickled_legacy(network: nn.Module, _: Tensor, folder: Path) -> Path:
    torch.save(network, folder / "module.pth", _use_new_zipfile_serialization=False)
    return folder / "module.pth"


def exported(network: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """Export with a free batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def pt2(network: nn.Module, x: Tensor, folder: Path) -> Path:
    torch.export.save(exported(copy.deepcopy(network), x), folder / "program.pt2")
    return folder / "program.pt2"


def pt2_decomposed(network: nn.Module, x: Tensor, folder: Path) -> Path:
    torch.export.save(exported(copy.deepcopy(network), x).run_decompositions(), folder / "core.pt2")
    return folder / "core.pt2"


def _scripted_onnx(opset: int) -> Saver:
    def save(network: nn.Module, x: Tensor, folder: Path) -> Path:
        path = folder / f"opset{opset}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                copy.deepcopy(network),
                (x,),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            )
        return path

    return save


def _dynamo_onnx(external: bool) -> Saver:
    def save(network: nn.Module, x: Tensor, folder: Path) -> Path:
        path = folder / ("external.onnx" if external else "dynamo.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                copy.deepcopy(network),
                (x,),
                str(path),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=external,
                verbose=False,
            )
        return path

    return save


WEIGHTS: dict[str, Saver] = {
    "state_dict": state_dict,
    "state_dict_legacy": state_dict_legacy,
    "checkpoint": checkpoint,
    "safetensors": safetensors,
}
PICKLED: dict[str, Saver] = {"pickled": pickled, "pickled_legacy": pickled_legacy}
PROGRAMS: dict[str, Saver] = {
    "pt2": pt2,
    "pt2_decomposed": pt2_decomposed,
    "onnx9": _scripted_onnx(9),
    "onnx13": _scripted_onnx(13),
    "onnx18": _scripted_onnx(18),
    "onnx_dynamo": _dynamo_onnx(external=False),
    "onnx_external": _dynamo_onnx(external=True),
}
FORMATS: dict[str, Saver] = {**WEIGHTS, **PICKLED, **PROGRAMS}
