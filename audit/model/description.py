"""What a model file says of itself when it is read and not loaded: what ``audit inspect`` shows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """One layer, or one tensor of weights where a file holds nothing else.

    Attributes
    ----------
    name
        Where it stands: ``features.0``. Hostile, as every string of a file.
    kind
        ``Conv2d``, ``linear``, ``Gemm``, ``tensor``, …: in the words of the format.
    detail
        Shapes and settings in a few words: ``1 → 32, 3×3``.
    parameters
        Numbers that are trained.
    """

    name: str
    kind: str
    detail: str = ""
    parameters: int = 0


@dataclass(frozen=True)
class Port:
    """An input or an output: a number stands for a fixed length, a text (``batch``) for a free one."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Description:
    """What a file is.

    Attributes
    ----------
    format
        The format's name for people: ``weights saved by torch.save``, ``pickled module``, ``torch.export program``, ``ONNX``.
    layers
        In the file's order.
    parameters
        Sum over all layers; None where the file does not tell.
    inputs, outputs
        As far as the file tells.
    executes
        What the library's own loader would import, call or evaluate on opening the file: names as they stand in it, hostile.
    refused
        Why audit does not load it; empty where it does.
    needs_arch
        Whether it holds weights alone, or a module of a class that is not known, so that ``--arch`` is needed.
    notes
        Whatever else a user should know: producer, version, precision, inputs in another layout.
    """

    format: str
    layers: tuple[Layer, ...] = ()
    parameters: int | None = None
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    executes: tuple[str, ...] = ()
    refused: str = ""
    needs_arch: bool = False
    notes: tuple[str, ...] = field(default=())
