"""Says what a file is, without loading it: what ``audit inspect FILE`` prints.

No network is built and nothing that the file holds is run. Every string of the file is hostile: it is cut, and written so that
it cannot move the cursor.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audit.data.contents import Column, Contents, contents, is_data
from audit.errors import ModelError, ModelRefused
from audit.model.description import Description, Layer, Port
from audit.plain import plain

SHORT = 40  # rows of a table that are shown unless all are asked for
WIDTHS = (48, 28, 72)  # characters of a row's name, kind and detail; --all cuts later
WIDE = (400, 200, 400)
# What a file of each format is, for one that cannot be described further.
FORMATS = {
    "safetensors": "safetensors weights",
    "torch-zip": "file saved by torch.save",
    "pickle": "pickle",
    "pt2": "torch.export program",
    "onnx": "ONNX network",
    "torchscript": "TorchScript archive",
}
UNREAD = "whatever is in it: it was not read to its end"


@dataclass(frozen=True)
class Inspected:
    """What a file is; printed, it is the text of ``audit inspect``.

    Attributes
    ----------
    what
        ``model`` or ``data``.
    format
        In plain words.
    size
        Bytes; None for a folder.
    sha256
        What ``--expect-sha256`` takes; empty for a folder.
    layers
        Layers of a network, tensors of weights, arrays or columns of data.
    parameters
        Numbers that are trained; None where the file does not tell, and for data.
    rows
        Of a table, images of a folder; None where the file does not tell, and for a model.
    inputs, outputs
        As far as the file tells.
    executes
        What the library's own loader would import, call or evaluate on opening the file.
    loads
        Whether audit reads it.
    refused
        Why not; empty where it does.
    needs_arch
        Whether ``--arch`` is needed: it holds weights alone, or a module of a class that is not known.
    command
        The ``audit run`` line to use; empty where there is none.
    trusting
        The line that hands the file to its library's own loader, in a sandbox; empty where that is no way on.
    """

    path: str
    what: str
    format: str
    size: int | None
    sha256: str
    layers: tuple[Layer, ...] | tuple[Column, ...] = ()
    parameters: int | None = None
    rows: int | None = None
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    executes: tuple[str, ...] = ()
    refused: str = ""
    needs_arch: bool = False
    notes: tuple[str, ...] = ()
    command: str = ""
    trusting: str = ""

    @property
    def loads(self) -> bool:
        """Whether audit reads the file."""
        return not self.refused

    @property
    def exit_code(self) -> int:
        """0 for a file that audit reads, 3 for one that it refuses, as ``audit run`` ends."""
        return 0 if self.loads else ModelError.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as ``--json`` prints it; the strings of the file are as they stand in it."""
        return {**asdict(self), "loads": self.loads}

    def text(self, *, everything: bool = False, width: int | None = None) -> str:
        """Return the text for a terminal; tables are cut unless `everything` is asked for, sentences wrapped to `width`."""
        lines = _lines(self, everything)
        return "\n".join(lines if width is None else _wrapped(lines, max(width, 40)))

    def __str__(self) -> str:
        return self.text()


def inspect(path: str | os.PathLike[str]) -> Inspected:
    """Say what a model file or a data file is, without loading it: no network is built, nothing in it is run.

    Parameters
    ----------
    path
        A model file of any format, a data file (``.npz``, ``.csv``, ``.csv.gz``, ``.parquet``) or a folder of images.

    Returns
    -------
    Inspected
        Also for a file that audit refuses to load: `Inspected.refused` then says why.

    Raises
    ------
    ModelError, DataError
        It cannot be read, or is no file that audit knows.

    Examples
    --------
    >>> import audit
    >>> print(audit.inspect("model.pt"))          # doctest: +SKIP
    """
    path = Path(path)
    return _data(path, contents(path)) if is_data(path) else _model(path)


def _model(path: Path) -> Inspected:
    from audit.model import load

    try:
        file, said = load.describe(path)
    except ModelError as error:
        # Damaged or hostile inside: still a file of a format, with a size and a hash. Where not even that holds, this raises.
        file = load.open_file(path)
        executes = (
            (str(error),) if isinstance(error, ModelRefused) else (UNREAD,) if file.format in load.RUN_BY_THEIR_LOADER else ()
        )
        said = Description(format=FORMATS.get(file.format, file.format), executes=executes, refused=str(error))
    beside = [f"beside it, part of the network: {name} ({len(part):,} bytes)" for name, part in file.beside.items()]
    runs = (
        file.format in load.RUN_BY_THEIR_LOADER
        and said.executes != (UNREAD,)
        and bool(said.executes or file.format == "torchscript")
    )
    arch = ("--arch", "FILE.py:FACTORY")
    # Refused as a network, a module of a class of its own still gives its weights to one that --arch builds.
    usable = not said.refused or (said.needs_arch and said.format == "pickled module")
    return Inspected(
        path=str(path),
        what="model",
        format=said.format,
        size=len(file.content),
        sha256=file.sha256,
        layers=said.layers,
        parameters=said.parameters,
        inputs=said.inputs,
        outputs=said.outputs,
        executes=said.executes,
        refused=said.refused,
        needs_arch=said.needs_arch,
        notes=(*said.notes, *beside),
        command=_command(path, *(arch if said.needs_arch else ())) if usable else "",
        trusting=_command(path, "--trust-model", "--sandbox") if said.refused and runs else "",
    )


def _data(path: Path, said: Contents) -> Inspected:
    table = "table" in said.format
    line = shlex.join(["audit", "run", "MODEL", "--data", _operand(path), *(("--target", "COLUMN") if table else ())])
    return Inspected(
        path=str(path),
        what="data",
        format=said.format,
        size=said.size,
        sha256=said.sha256,
        layers=said.columns,
        rows=said.rows,
        executes=tuple(f"array {name!r}: a pickle, which NumPy opens with allow_pickle=True" for name in said.unpickles),
        refused=said.refused,
        notes=said.notes,
        command="" if said.refused else line,
    )


def _command(path: Path, *more: str) -> str:
    return shlex.join(["audit", "run", _operand(path), "--data", "DATA", *more])


def _operand(path: Path) -> str:
    """Return the path so that no option is read out of it."""
    return f".{os.sep}{path}" if str(path).startswith("-") else str(path)


# --- as text -----------------------------------------------------------------------------------------------------------


def _lines(found: Inspected, everything: bool) -> list[str]:
    facts = [
        ("size", "" if found.size is None else f"{found.size:,} bytes"),
        ("sha-256", found.sha256),
        ("parameters", "" if found.parameters is None else f"{found.parameters:,}"),
        *(("rows" if "table" in found.format else "images", f"{n:,}") for n in [found.rows] if n is not None),
        *(("input", _port(port)) for port in _cut(found.inputs, everything)),
        *(("output", _port(port)) for port in _cut(found.outputs, everything)),
    ]
    lines = [f"{plain(found.path)}: {_clip(found.format, 100)}"]
    lines += [f"  {name:<12}{value}" for name, value in facts if value]
    lines += _table(found, everything)
    lines += _listed("would execute", found.executes, everything) or [
        "  would execute, opened by its library's own loader: nothing that audit knows of"
    ]
    if found.loads:
        needs = ": weights alone, so it needs --arch, the code that builds the network" if found.needs_arch else ""
        lines.append(f"  audit reads it{needs}")
    else:
        lines.append(f"  audit refuses it: {_clip(found.refused, 600)}")
    lines += [f"  note: {_clip(note, 400)}" for note in _cut(found.notes, everything)]
    if found.command:
        what = "it" if found.what == "model" else "a network on it"
        what = what if found.loads else "its weights in a network that you build"
        lines.append(f"  to audit {what}:\n    {plain(found.command)}")
    if found.trusting:
        lines.append(f"  if you trust whoever made it, let it run its code inside walls:\n    {plain(found.trusting)}")
    if found.what == "model" and (found.command or found.trusting):
        lines.append(f"  to have no other file taken for it, add:\n    --expect-sha256 {found.sha256}")
    return lines


def _wrapped(lines: list[str], width: int) -> list[str]:
    """Wrap sentences between words; tables and the lines to copy stay as they are."""
    wrapped: list[str] = []
    for line in lines:
        sentence = line.startswith(("  audit ", "  note: "))
        parts = textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        wrapped += parts if sentence else [line]
    return wrapped


def _table(found: Inspected, everything: bool) -> list[str]:
    if not found.layers:
        return []
    shown = _cut(found.layers, everything)
    rows = [(*map(_clip, (row.name, row.kind, row.detail), WIDE if everything else WIDTHS), _count(row)) for row in shown]
    names, kinds, counts = (max(len(row[i]) for row in rows) for i in (0, 1, 3))
    counts += 2 if counts else 0  # the detail, which may be long, stands last: where it is wrapped, the columns stay
    what = {"model": "tensors" if all(row.kind == "tensor" for row in shown) else "layers", "data": "holds"}[found.what]
    lines = [f"  {what} ({len(found.layers):,})"]
    lines += [f"    {name:<{names}}  {kind:<{kinds}}{count:>{counts}}  {detail}".rstrip() for name, kind, detail, count in rows]
    return [*lines, *_more(found.layers, shown)]


def _count(row: Layer | Column) -> str:
    return f"{row.parameters:,}" if isinstance(row, Layer) and row.parameters else ""


def _listed(title: str, entries: Sequence[str], everything: bool) -> list[str]:
    if not entries:
        return []
    shown = _cut(entries, everything)
    title = f"  {title}, opened by its library's own loader ({len(entries):,})"
    return [title, *(f"    {_clip(entry, 200)}" for entry in shown), *_more(entries, shown)]


def _cut(rows: Sequence[Any], everything: bool) -> Sequence[Any]:
    return rows if everything else rows[:SHORT]


def _more(rows: Sequence[Any], shown: Sequence[Any]) -> list[str]:
    left = len(rows) - len(shown)
    return [f"    … {left:,} more: --all shows them"] if left else []


def _port(port: Port) -> str:
    sides: Iterable[str] = (str(side) for side in port.shape)
    return _clip(f"{port.name}: {' × '.join(sides) or 'one value'}, {port.dtype}", 200)


def _clip(text: str, width: int) -> str:
    """Return hostile text cut to a width and made visible."""
    return plain(text if len(text) <= width else f"{text[: width - 1]}…")
