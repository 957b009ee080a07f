"""Reads a folder of images, one folder a class: pixels as they are stored, after their sizes were checked."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audit.data.base import Dataset, Reading, Role, preprocessed
from audit.errors import DataError, UsageError, closest
from audit.files import memory_limit, read_file

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")  # no format that runs a program (EPS), reads others, or is a drawing
CHANNELS = {"L": 1, "RGB": 3}
MAX_PIXELS = 89_478_485  # of one image: where Pillow begins to warn of a decompression bomb
MAX_FILE = 2**28  # bytes of one image file
MAX_FILES = 5_000_000
MAX_DEPTH = 16
COPIES = 4  # of all pixels live at once between the files and the network's input
ORIENTATION = 0x0112  # of EXIF: 1 is upright


@dataclass(frozen=True)
class Found:
    """What a folder holds: the image files by their path inside it, and what was passed over."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def from_folder(folder: Path, reading: Reading, role: Role = "test") -> Dataset:
    """Read all images of a folder that has one folder for each class; the images of anomalies may lie anywhere in it.

    Classes are numbered in the order of `reading.classes`, else in alphabetical order of their folders, and a note says so.
    Samples are numbered in the order of their paths inside the folder. Nothing is resized, cropped, converted or turned: all
    images must be 8-bit grey or all 8-bit RGB, of one size, and an EXIF orientation is not applied, as torchvision's and
    Keras's readers do not apply it; a note counts the images that have one.

    Returns
    -------
    Dataset
        x of shape (n, 1 or 3, height, width), uint8.

    Raises
    ------
    DataError
        A folder that is no class, no image, images of different sizes or modes, a damaged file, a link that leads out of the
        folder, or more pixels than fit into memory.
    """
    if reading.target or reading.inputs or reading.sensitive:
        raise UsageError(f"{folder} is a folder of images: --target, --inputs and --sensitive do not apply")
    found = listing(folder)
    if not found.images:
        raise DataError(f"{folder} holds no images; expected files that end in {', '.join(ENDINGS)}")
    notes = list(_notes(found))
    if role == "anomalies":
        classes, y = reading.classes, np.zeros(len(found.images), dtype=np.int64)
    else:
        classes = reading.classes or _alphabetical(folder, found)
        y = _labels(folder, found, classes)
        if not reading.classes:
            notes.append(_order(classes))
    pixels, sha256, turned = _read(folder, found.images)
    if turned:
        notes.append(f"{turned} of {len(y)} images have an EXIF orientation: they went in as they are stored, not turned")
    x: NDArray[Any] = pixels
    if reading.preprocess is not None:
        x = preprocessed(reading.preprocess, pixels, len(pixels))
    elif role == "test":
        notes.append("pixels go in as they are stored, 0 to 255: a network that was trained on 0 to 1 needs --mean 0 --std 255")
    return Dataset(x, y, classes=classes, source=str(folder), sha256=sha256, notes=notes)


# --- which files there are ---------------------------------------------------------------------------------------------


def listing(folder: Path) -> Found:
    """List a folder and all below it in the order of paths; hidden files are passed over."""
    root = folder.resolve()
    found = Found()
    for path, is_folder in _walk(folder, root, 1):
        name = path.relative_to(folder).as_posix()
        if is_folder:
            found.folders.append(name)
        elif name.lower().endswith(ENDINGS):
            found.images.append(name)
        else:
            found.others.append(name)
        if len(found.images) + len(found.others) > MAX_FILES:
            raise DataError(f"{folder} holds more than {MAX_FILES:,} files: is it the right folder?")
    found.images.sort()
    return found


def _walk(folder: Path, root: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    if depth > MAX_DEPTH:
        raise DataError(
            f"{folder} lies more than {MAX_DEPTH} folders deep; expected one folder a class, with its images inside"
        )
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if _is_folder(entry, path, root):
            yield path, True
            yield from _walk(path, root, depth + 1)
        else:
            yield path, False


def _is_folder(entry: os.DirEntry[str], path: Path, root: Path) -> bool:
    """Tell folders from files; links may lead to files inside the root alone."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): a link that leads nowhere? Remove it") from None
    if entry.is_symlink() and (stat.S_ISDIR(mode) or not path.resolve().is_relative_to(root)):
        what = "to a folder" if stat.S_ISDIR(mode) else "out of the folder"
        raise DataError(f"{path} is a link {what}, which is not followed; copy what it points to into its place")
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DataError(f"expected images, got {path}, a pipe, a socket or a device; remove it")
    return stat.S_ISDIR(mode)


def _notes(found: Found) -> Iterator[str]:
    if found.others:
        names = ", ".join(found.others[:5]) + (", …" if len(found.others) > 5 else "")
        yield f"{len(found.others):,} files are no images by their names and were left out: {names}"
    empty = [name for name in found.folders if "/" not in name and not any(i.startswith(f"{name}/") for i in found.images)]
    if empty:
        yield f"folders without an image: {', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}"


# --- which class they are of -------------------------------------------------------------------------------------------


def _alphabetical(folder: Path, found: Found) -> tuple[str, ...]:
    names = tuple(sorted(name for name in found.folders if "/" not in name))
    if len(names) < 2:
        got = f"the folder {names[0]!r} alone" if names else "no folder"
        raise DataError(f"{folder} should hold one folder for each class, at least two, with its images inside; got {got}")
    return names


def _labels(folder: Path, found: Found, classes: Sequence[str]) -> NDArray[np.int64]:
    codes = {name: code for code, name in enumerate(classes)}
    labels = np.empty(len(found.images), dtype=np.int64)
    for i, name in enumerate(found.images):
        top, slash, _ = name.partition("/")
        if not slash:
            raise DataError(f"{folder / name} lies in no class; expected one folder a class inside {folder}")
        if top not in codes:
            raise DataError(f"the folder {folder / top} is none of the classes; {closest(top, list(classes))} (--classes)")
        labels[i] = codes[top]
    return labels


def _order(classes: Sequence[str]) -> str:
    names = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
    return f"classes are numbered in alphabetical order of their folders ({names}): --classes states another order"


# --- their pixels ------------------------------------------------------------------------------------------------------


def _read(folder: Path, names: Sequence[str]) -> tuple[NDArray[np.uint8], str, int]:
    """Return pixels, a hash of names and contents, and how many images have an EXIF orientation."""
    digest = hashlib.sha256()
    x: NDArray[np.uint8] | None = None
    like, turned = "", 0
    for i, name in enumerate(names):
        content = read_file(folder / name, "image", DataError, MAX_FILE)
        digest.update(b"%d %d " % (len(os.fsencode(name)), len(content)) + os.fsencode(name) + content)
        pixels, oriented = _decoded(content, folder / name, None if x is None else x.shape[1:], like)
        if x is None:
            _check_room(folder, len(names), pixels)
            x, like = np.empty((len(names), *pixels.shape), dtype=np.uint8), name
        x[i] = pixels
        turned += oriented
    assert x is not None  # noqa: S101 - a folder without images was refused before
    return x, digest.hexdigest(), turned


def _check_room(folder: Path, n: int, pixels: NDArray[np.uint8]) -> None:
    room = memory_limit() // COPIES
    if n * pixels.nbytes > room:
        raise DataError(
            f"{folder} holds {n:,} images of {pixels.nbytes:,} bytes each, {n * pixels.nbytes:,} in all; at most {room:,} fit "
            "here: use fewer images"
        )


def _decoded(content: bytes, path: Path, shape: tuple[int, ...] | None, like: str) -> tuple[NDArray[np.uint8], bool]:
    """Return the pixels of one image, of shape (channels, height, width), and whether it says that it lies on its side.

    Its size and mode stand in its header: they are checked before anything is unpacked.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # What a damaged header makes Pillow warn of shows in the pixels, or does not matter.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_header(image, path, shape, like)
                oriented = _orientation(image) not in (None, 1)
                flat = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # what Pillow's readers raise on damaged files is of every kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{path} is not an image that can be read, or is damaged ({reason}); expected one of {', '.join(FORMATS)}"
        ) from None
    pixels = flat[None] if flat.ndim == 2 else np.moveaxis(flat, -1, 0)
    return np.ascontiguousarray(pixels), oriented


def _check_header(image: Image, path: Path, shape: tuple[int, ...] | None, like: str) -> None:
    wide, high = image.size
    if wide * high > MAX_PIXELS:
        raise DataError(
            f"{path} claims {wide} × {high} pixels; at most {MAX_PIXELS:,} are read: refused as a decompression bomb"
        )
    if image.mode not in CHANNELS:
        raise DataError(
            f"{path} has pixels of mode {image.mode}; expected 8-bit grey (L) or 8-bit colour (RGB): convert it as it was for "
            "training (a palette, transparency or more bits can be turned into 8-bit RGB in several ways)"
        )
    if _loses_bits(image):
        raise DataError(f"{path} has 16 bits a channel; expected 8: bring it to 8 bits as it was for training")
    if getattr(image, "n_frames", 1) > 1 and image.format in ("PNG", "TIFF", "WEBP"):
        raise DataError(f"{path} holds {getattr(image, 'n_frames', 1)} pictures; expected one: save each as a file of its own")
    if shape is not None and (CHANNELS[image.mode], high, wide) != shape:
        raise DataError(
            f"all images should have one size and mode, but {like} has {_words(shape)} and {path} "
            f"{_words((CHANNELS[image.mode], high, wide))}: resize and convert them as for training"
        )


def _loses_bits(image: Image) -> bool:
    """Tell whether Pillow would drop the lower half of 16-bit colour, for which it has no mode, without a word."""
    for tile in getattr(image, "tile", ()):
        stored = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        highest = stored[1] if image.format == "PPM" and len(stored) > 1 else 255
        if ";16" in str(stored[0]) or highest > 255:
            return True
    return False


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} × {shape[1]} pixels in {'grey' if shape[0] == 1 else 'colour'}"


def _orientation(image: Image) -> Any:
    return image.getexif().get(ORIENTATION)
