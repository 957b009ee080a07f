"""Says what stands in a TorchScript archive, from its text alone: such a file is a program, and audit does not open it.

``torch.jit.load`` compiles the archive's own code and runs its ``__setstate__`` methods, and the language has operators that
read and overwrite files. So there is no reader here: the code is searched as text, line by line, never parsed or compiled.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from audit.archives import DAMAGED, archive_members
from audit.errors import ModelError
from audit.model.description import Description, Layer

WHY = (
    "is a TorchScript archive, which is a program of its own: torch would run the code in it, "
    "and its operators can read and write files"
)

MAX_RATIO = 1000  # of the archive; its code packs well
MOST_TEXT = 16 * 2**20  # bytes of code that are searched
MOST_LINES = 400_000
MOST_LINE = 2000  # characters of a line that are searched
MOST_LISTED = 1000  # entries of each list of the description
MOST_STEPS = 20_000  # down the tree of modules, which hostile classes make a thicket of
MOST_DEPTH = 50
MOST_NAME = 200  # characters of a module's or a layer's name: each class and each layer below it repeats it

# Operators of torch that open a file that the program names: aten::from_file maps one into memory, and creates or extends it
# when it is asked to share it; aten::save writes one.
FILES = ("from_file", "save", "load", "_from_file")
_CLASS = re.compile(r"class (\w+)\(")
_METHOD = re.compile(r"  def (\w+)\(")
_FIELD = re.compile(r"  (\w+) : (?:Final\[)?(?:Optional\[)?(__torch__\.[\w.]+)")
_NUMBERED = re.compile(r'  __annotations__\["([^"]*)"\] = (__torch__\.[\w.]+)')
_FINAL = re.compile(r"  (in_features|out_features|in_channels|out_channels|kernel_size|num_features) : Final\[[^=]*\] = (.*)")
_CALLS_FILE = re.compile(rf"\b(?:torch|ops\.aten|aten)\.({'|'.join(FILES)})\(")
_CUSTOM = re.compile(r"\bops\.(?!aten\b|prim\b)(\w+\.\w+)")
_NATIVE = re.compile(r"__torch__\.torch\.classes\.([\w.]+)")
_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "num_features")


@dataclass
class _Class:
    """A class of the archive: its methods, its fields that are modules, its sizes."""

    methods: list[str] = field(default_factory=list)
    parts: list[tuple[str, str]] = field(default_factory=list)
    sizes: dict[str, str] = field(default_factory=dict)


@dataclass
class _Code:
    """What the code of an archive says, in the order of its lines."""

    classes: dict[str, _Class] = field(default_factory=dict)
    calls: dict[str, None] = field(default_factory=dict)
    lines: int = 0
    complete: bool = True


def describe(content: bytes, source: str) -> Description:
    """Say what is in the archive without compiling or running any of it.

    Raises
    ------
    ModelError
        The archive is damaged.
    """
    members = archive_members(content, source, ModelError, MAX_RATIO)
    code = _search(content, [m for m in members if m.filename.endswith(".py") and "code/" in m.filename], source)
    tensors = [m for m in members if _is_tensor(m.filename)]
    notes = [
        f"{sum(m.filename.endswith('.py') for m in members):,} members of code, {len(code.classes):,} classes, "
        f"{len(tensors):,} tensors of {sum(m.file_size for m in tensors):,} bytes in all"
    ]
    if any(m.filename.endswith("bytecode.pkl") for m in members):
        notes.append("holds bytecode for the mobile interpreter (.ptl)")
    if not code.complete:
        notes.append(f"more than {MOST_LINES:,} lines or {MOST_TEXT // 2**20} MiB of code: the rest was not searched")
    return Description(
        format="TorchScript archive",
        layers=tuple(_layers(code.classes)),
        executes=tuple(_executes(code)),
        refused=f"it {WHY}",
        notes=tuple(notes),
    )


def _is_tensor(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    return last.isdigit() and folder.endswith(("data", "constants"))


def _search(content: bytes, members: list[zipfile.ZipInfo], source: str) -> _Code:
    code, left = _Code(), MOST_TEXT
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in members:
            if left <= 0:
                code.complete = False
                break
            try:
                with archive.open(member) as stream:
                    text = stream.read(left + 1)
            except DAMAGED as error:
                raise ModelError(f"{source} is a damaged archive ({str(error)[:100]}): copy or save it again") from None
            code.complete = code.complete and len(text) <= left
            left -= len(text)
            _search_text(text.decode("utf-8", "replace"), _module_name(member.filename), code)
    return code


def _module_name(path: str) -> str:
    return path.rpartition("code/")[2].removesuffix(".py").replace("/", ".")[:MOST_NAME]


def _search_text(text: str, module: str, code: _Code) -> None:
    current: _Class | None = None
    for line in io.StringIO(text):
        code.lines += 1
        if code.lines > MOST_LINES:
            code.complete = False
            return
        line = line[:MOST_LINE].rstrip("\n")  # noqa: PLW2901  (a line of a hostile file may be all of it)
        found = _CLASS.match(line)
        if found:
            current = code.classes.setdefault(f"{module}.{found[1]}", _Class())
        elif current is not None:
            _search_class(line, current)
        for pattern, what in (
            (_CALLS_FILE, "torch.{} in {}: opens a file that the program names"),
            (_CUSTOM, "ops.{} in {}: an operator of another library"),
            (_NATIVE, "torch.classes.{} in {}: native code with its own way to load"),
        ):
            if len(code.calls) < MOST_LISTED:
                code.calls.update((what.format(call, module), None) for call in pattern.findall(line)[:MOST_LISTED])


def _search_class(line: str, into: _Class) -> None:
    method = _METHOD.match(line)
    part = _FIELD.match(line) or _NUMBERED.match(line)
    size = _FINAL.match(line)
    if method and len(into.methods) < MOST_LISTED:
        into.methods.append(method[1])
    elif part and len(into.parts) < MOST_LISTED:
        into.parts.append((part[1], part[2]))
    elif size:
        into.sizes[size[1]] = size[2][:40]


def _executes(code: _Code) -> Iterator[str]:
    for name, held in list(code.classes.items())[:MOST_LISTED]:
        if "__setstate__" in held.methods:
            yield f"{name}.__setstate__: runs when the file is opened"
    yield from code.calls
    if code.classes:
        yield f"the code of {len(code.classes):,} classes: compiled when the file is opened, run with each forward"


def _layers(classes: dict[str, _Class]) -> Iterator[Layer]:
    """Walk down from the class that no other holds, the network itself; no class below itself, so that no loop is endless."""
    held = {kind for each in classes.values() for _, kind in each.parts}
    tops = [name for name in classes if name not in held]
    stack: list[tuple[str, str, frozenset[str]]] = [("", name, frozenset()) for name in reversed(tops)]
    shown = steps = 0
    while stack and shown < MOST_LISTED and steps < MOST_STEPS:
        name, kind, above = stack.pop()
        steps += 1
        each = classes.get(kind)
        if name and (each is None or not each.parts):
            shown += 1
            yield Layer(name, kind.rpartition(".")[2], _detail(each))
        if each is None or kind in above or len(above) > MOST_DEPTH:
            continue
        parts = each.parts[: MOST_LISTED - shown]
        stack += [(f"{name}.{part}".lstrip(".")[:MOST_NAME], inner, above | {kind}) for part, inner in reversed(parts)]
        del stack[:-MOST_STEPS]


def _detail(each: _Class | None) -> str:
    if each is None:
        return ""
    sizes = [each.sizes[name] for name in _SIZES if name in each.sizes]
    kernel = each.sizes.get("kernel_size")
    return ", ".join(part for part in (" → ".join(sizes), f"kernel {kernel}" if kernel else "") if part)
