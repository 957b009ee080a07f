"""Folders of images: classes, order, units and ids as stated; hostile files end in a message that names them."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import audit
from audit.data import images
from audit.data.load import load
from audit.errors import DataError, UsageError

SIDE = 6


def pixels(seed: int, channels: int = 1, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, side, side), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    Image.fromarray(np.ascontiguousarray(flat)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three classes with two images each."""
    for k, name in enumerate(["cat", "ant", "bee"]):
        for i in range(2):
            save(tmp_path / "data" / name / f"{i}.png", pixels(10 * k + i))
    return tmp_path / "data"


# --- what is read -----------------------------------------------------------------------------------------------------


def test_pixels_labels_and_ids_come_in_the_order_of_paths(folder: Path) -> None:
    data = load(folder)
    assert data.kind == "image"
    assert data.test.x.dtype == np.uint8
    assert data.test.x.shape == (6, 1, SIDE, SIDE)
    assert data.test.ids.tolist() == list(range(6))
    assert data.classes == ("ant", "bee", "cat")
    assert data.test.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(data.test.x[0], pixels(10))  # ant/0.png
    assert np.array_equal(data.test.x[5], pixels(1))  # cat/1.png
    assert data.box()[1] == 255


def test_unstated_order_is_alphabetical_and_the_report_says_so(folder: Path) -> None:
    assert any("alphabetical order of their folders (ant, bee, cat)" in note for note in load(folder).notes)
    stated = load(folder, classes=["cat", "bee", "dog", "ant"])
    assert stated.test.y.tolist() == [3, 3, 1, 1, 0, 0]
    assert not any("alphabetical" in note for note in stated.notes)


def test_a_file_states_the_order(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\nbee\nant\n")
    assert load(str(folder), classes=tmp_path / "classes.txt").test.y.tolist() == [2, 2, 1, 1, 0, 0]


def test_a_folder_that_is_no_class_is_refused_with_the_closest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"bee is none of the classes.*beer"):
        load(folder, classes=["ant", "beer", "cat"])


def test_colour_has_three_channels_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "0.png", pixels(1, 3))
    assert np.array_equal(load(tmp_path).test.x[0], pixels(1, 3))


@pytest.mark.parametrize("ending", ["bmp", "tif", "webp", "PNG", "pgm"])
def test_formats_without_loss_give_the_very_pixels(tmp_path: Path, ending: str) -> None:
    channels = 1 if ending == "pgm" else 3
    for name in ("a", "b"):
        save(tmp_path / name / f"0.{ending}", pixels(2, channels), **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(load(tmp_path).test.x[1], pixels(2, channels))


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "0.jpg", pixels(2, 3))
    assert np.array_equal(load(tmp_path).test.x[0], np.moveaxis(np.asarray(Image.open(tmp_path / "a" / "0.jpg")), -1, 0))


def test_folders_inside_a_class_belong_to_it(folder: Path) -> None:
    save(folder / "bee" / "wild" / "7.png", pixels(77))
    data = load(folder)
    assert data.test.y.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert np.array_equal(data.test.x[4], pixels(77))


def test_what_is_passed_over_is_named(folder: Path) -> None:
    (folder / "bee" / "read me.txt").write_text("bees")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "dog").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "0.png").write_text("no image")
    (folder / "bee" / ".0.png").write_text("no image")
    data = load(folder)
    assert len(data) == 6
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert any("2 files are no images by their names and were left out: Thumbs.db, bee/read me.txt" in n for n in data.notes)
    assert any("folders without an image: dog" in note for note in data.notes)


def test_the_hash_covers_names_and_contents(folder: Path) -> None:
    before = load(folder).sha256
    assert load(folder).sha256 == before
    (folder / "cat" / "1.png").rename(folder / "cat" / "2.png")
    renamed = load(folder).sha256
    save(folder / "cat" / "2.png", pixels(99))
    assert len({before, renamed, load(folder).sha256}) == 3


def test_preprocessing_takes_the_bytes(folder: Path) -> None:
    data = load(folder, preprocess=lambda x: x.astype(np.float32) / 255)
    assert data.test.x.dtype == np.float32
    assert data.test.x.max() <= 1


def test_an_orientation_is_not_applied_and_counted(folder: Path) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    save(folder / "bee" / "1.png", pixels(55), exif=exif)
    data = load(folder)
    assert np.array_equal(data.test.x[3], pixels(55))
    assert any("1 of 6 images have an EXIF orientation" in note for note in data.notes)


# --- the other parts --------------------------------------------------------------------------------------------------


def test_the_reference_part_takes_the_classes_of_the_data(folder: Path, tmp_path: Path) -> None:
    for name in ("bee", "cat"):  # alone, these would be 0 and 1
        save(tmp_path / "train" / name / "0.png", pixels(3))
    data = load(folder, reference=tmp_path / "train")
    assert data.reference is not None
    assert data.reference.y.tolist() == [1, 2]
    save(tmp_path / "train" / "dog" / "0.png", pixels(3))
    with pytest.raises(DataError, match="dog is none of the classes"):
        load(folder, reference=tmp_path / "train")


@pytest.mark.parametrize("nested", [True, False])
def test_anomalies_may_lie_anywhere(folder: Path, tmp_path: Path, nested: bool) -> None:
    for i in range(3):
        save(tmp_path / "odd" / (f"kind {i}" if nested else ".") / f"{i}.png", pixels(60 + i))
    data = load(folder, anomalies=tmp_path / "odd")
    assert data.anomalies is not None
    assert np.array_equal(data.anomalies.x, np.stack([pixels(60 + i) for i in range(3)]))


def test_a_whole_run_on_folders(tmp_path: Path) -> None:
    for part, n in (("test", 40), ("train", 50), ("odd", 8)):
        for i in range(n):
            image = (pixels(i) // 4 + (150 if i % 2 else 0)).astype(np.uint8)
            save(tmp_path / part / ("bright" if i % 2 else "dark") / f"{i:03}.png", image)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -1.0])[:, None].expand(2, SIDE * SIDE) / SIDE**2)
        network[1].bias.copy_(torch.tensor([-110.0, 110.0]))
    options = {"reference": tmp_path / "train", "anomalies": tmp_path / "odd", "classes": ["bright", "dark"]}
    result = audit.run(network, tmp_path / "test", checks=["performance"], **options)
    assert result["performance"].metric("performance.accuracy").value == 1.0
    assert (result.data.n, result.data.n_reference, result.data.n_anomalies) == (40, 50, 8)
    assert result.model.class_names == ["bright", "dark"]
    turned = audit.run(network, tmp_path / "test", checks=["performance"], **options | {"classes": ["dark", "bright"]})
    assert turned["performance"].metric("performance.accuracy").value == 0.0  # the order is the user's to state


# --- what does not fit ------------------------------------------------------------------------------------------------


def refuse(folder: Path, words: str, **options: Any) -> None:
    with pytest.raises(DataError, match=words):
        load(folder, **options)


def test_other_sizes_are_refused(folder: Path) -> None:
    save(folder / "bee" / "2.png", pixels(1, side=SIDE + 1))
    refuse(folder, r"ant/0.png has 6 × 6 pixels in grey and .*bee/2.png 7 × 7 pixels in grey")


def test_grey_beside_colour_is_refused(folder: Path) -> None:
    save(folder / "cat" / "9.png", pixels(1, 3))
    refuse(folder, r"cat/9.png 6 × 6 pixels in colour")


@pytest.mark.parametrize("ending", ["png", "ppm"])
def test_sixteen_bits_of_colour_are_refused(folder: Path, ending: str) -> None:
    rows = b"".join(b"\0" + b"\1\2" * 3 * SIDE for _ in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    deep = {
        "png": b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*c) for c in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)))),
        "ppm": b"P6\n%d %d\n65535\n" % (SIDE, SIDE) + b"\1\2" * 3 * SIDE * SIDE,
    }
    (folder / "bee" / f"deep.{ending}").write_bytes(deep[ending])
    refuse(folder, rf"deep.{ending} has 16 bits a channel; expected 8")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_what_pillow_warns_of_as_it_opens_a_file_is_not_printed(folder: Path) -> None:
    tags = struct.pack("<HHHIIHHII", 2, 256, 3, 1, SIDE, 273, 4, 2**28, 8)
    (folder / "bee" / "odd.tif").write_bytes(b"II*\0\x08\0\0\0" + tags + b"\0" * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse(folder, "odd.tif is not an image that can be read")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16", "CMYK"])
def test_other_modes_are_refused(folder: Path, mode: str) -> None:
    ending = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (SIDE, SIDE)).save(folder / "bee" / f"odd.{ending}")
    refuse(folder, rf"odd.{ending} has pixels of mode {mode}; expected 8-bit")


def test_several_pictures_in_one_file_are_refused(folder: Path) -> None:
    frames = [Image.fromarray(pixels(i)[0]) for i in range(3)]
    frames[0].save(folder / "bee" / "many.tif", save_all=True, append_images=frames[1:])
    refuse(folder, "many.tif holds 3 pictures")


def test_images_outside_of_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    save(folder / "stray.png", pixels(1))
    refuse(folder, "stray.png lies in no class")
    save(tmp_path / "flat" / "0.png", pixels(1))
    refuse(tmp_path / "flat", "one folder for each class, at least two.*got no folder")
    save(tmp_path / "one" / "cat" / "0.png", pixels(1))
    refuse(tmp_path / "one", "got the folder 'cat' alone")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no images")
    refuse(tmp_path / "missing", "should be .npz, .csv, .csv.gz, .parquet, a folder of images")


@pytest.mark.parametrize("option", ["target", "inputs", "sensitive"])
def test_options_of_tables_do_not_apply(folder: Path, option: str) -> None:
    with pytest.raises(UsageError, match="do not apply"):
        load(folder, **{option: "a" if option == "target" else ["a"]})


# --- hostile files ----------------------------------------------------------------------------------------------------


def png(wide: int, high: int, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", wide, high, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(("wide", "high"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(folder: Path, monkeypatch: Any, wide: int, high: int) -> None:
    (folder / "ant" / "0.png").write_bytes(png(wide, high))  # the first of all: no size to compare with
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None if wide == 10_000 else 89_478_485)  # as some programs turn it off
    refuse(folder, r"ant/0.png.*(bomb|pixels)")


def test_more_pixels_than_memory_are_refused_before_they_are_unpacked(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(images, "memory_limit", lambda: 100 * images.COPIES)
    refuse(folder, "6 images of 36 bytes each, 216 in all; at most 100 fit")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_truncated_files_are_named(folder: Path, ending: str, kept: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels(1, 3, 64), 0, -1)).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending))
    (folder / "ant" / "0.png").unlink()
    (folder / "ant" / f"0.{ending}").write_bytes(buffer.getvalue()[: int(kept * len(buffer.getvalue()))])
    refuse(folder, rf"ant/0.{ending} is not an image that can be read, or is damaged")


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='6' height='6'/>",
        b"GIF89a\x06\x00\x06\x00\x80\x00\x00",
        b"not an image",
        b"\x89PNG\r\n\x1a\n",
        b"8BPS\x00\x01",
    ],
)
def test_other_formats_are_not_tried_whatever_their_name(folder: Path, content: bytes) -> None:
    (folder / "bee" / "1.png").write_bytes(content)
    refuse(folder, r"bee/1.png is not an image that can be read, or is damaged")


def test_empty_files_are_named(folder: Path) -> None:
    (folder / "bee" / "1.png").write_bytes(b"")
    refuse(folder, r"bee/1.png is empty")


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = save(tmp_path / "secret.png", pixels(1))
    (folder / "bee" / "7.png").symlink_to(secret)
    refuse(folder, r"bee/7.png is a link out of the folder")
    (folder / "bee" / "7.png").unlink()
    (folder / "bee" / "7.png").symlink_to(folder / "bee" / "0.png")  # inside: the same image again
    assert len(load(folder)) == 7


@pytest.mark.parametrize("where", [".", "..", "/"])
def test_links_to_folders_are_refused(folder: Path, where: str) -> None:
    (folder / "bee" / "loop").symlink_to(where, target_is_directory=True)
    refuse(folder, r"bee/loop is a link to a folder")


def test_links_that_lead_nowhere_or_in_a_circle_are_named(folder: Path) -> None:
    (folder / "bee" / "7.png").symlink_to(folder / "gone.png")
    refuse(folder, r"bee/7.png cannot be read")
    (folder / "bee" / "7.png").unlink()
    (folder / "bee" / "7.png").symlink_to("7.png")
    refuse(folder, r"bee/7.png cannot be read")


def test_a_link_to_the_folder_itself_is_the_users_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert len(load(tmp_path / "alias")) == 6


def test_pipes_do_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "bee" / "7.png")
    refuse(folder, r"bee/7.png, a pipe")


def test_deep_folders_are_refused(folder: Path) -> None:
    deep = folder / "bee"
    for _ in range(30):
        deep = deep / "d"
    deep.mkdir(parents=True)
    refuse(folder, "folders deep")


def test_names_that_are_no_text_do_no_harm(folder: Path) -> None:
    (folder / "bee" / "1.png").rename(folder / "bee" / os.fsdecode(b"\xff\x1b[31m.png"))
    data = load(folder)
    assert len(data) == 6
    assert len(data.sha256) == 64
