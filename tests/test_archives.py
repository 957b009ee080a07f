"""Archives that ordinary writers make are listed; a byte of one that is changed is told, or makes no difference."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.archives import archive_members
from audit.errors import DataError


class OneWay(io.RawIOBase):
    """A stream that cannot be rewound: sizes then stand behind each member."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.content += bytes(data)
        return len(data)


NAMES = st.text("abcäß日/._-", min_size=1, max_size=12).filter(lambda n: not n.startswith("/") and ".." not in n.split("/"))


@settings(max_examples=60, deadline=None)
@given(
    members=st.dictionaries(NAMES, st.binary(max_size=60), max_size=6),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    one_way=st.booleans(),
    comment=st.binary(max_size=20).filter(lambda comment: b"PK" not in comment),
)
def test_what_zipfile_writes_is_listed(members: dict[str, bytes], method: int, one_way: bool, comment: bytes):
    stream = OneWay() if one_way else io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = comment
    written = stream.content if isinstance(stream, OneWay) else stream.getvalue()
    listed = archive_members(written, "a.zip", DataError, 1000)
    assert {member.filename: member.file_size for member in listed} == {name: len(held) for name, held in members.items()}


def test_what_torch_and_numpy_write_is_listed():
    weights = {"a": torch.ones(3), "b": torch.arange(5)}
    for checksums in (True, False):
        torch.serialization.set_crc32_options(checksums)
        try:
            held = io.BytesIO()
            torch.save(weights, held)
        finally:
            torch.serialization.set_crc32_options(True)
        assert any(m.filename.endswith("data.pkl") for m in archive_members(held.getvalue(), "a.pt", DataError, 100))
    for save in (np.savez, np.savez_compressed):
        held = io.BytesIO()
        save(held, x=np.ones(9), y=np.zeros(9))
        assert [m.filename for m in archive_members(held.getvalue(), "a.npz", DataError, 1000)] == ["x.npy", "y.npy"]


def good() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("x.npy", bytes(40))
        archive.writestr("y.npy", bytes(20))
    return held.getvalue()


GOOD = good()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_is_told_or_changes_no_member(at: int, byte: int):
    content = bytearray(GOOD)
    content[at % len(content)] = byte
    try:
        listed = archive_members(bytes(content), "a.zip", DataError, 1000)
    except DataError:
        return
    assert len(listed) == 2
    assert sum(member.file_size for member in listed) == 60
    assert [member.header_offset for member in listed] == [0, 30 + 5 + 40]


def test_bytes_around_an_archive_are_refused():
    for odd in (b"PK\x03\x04" + GOOD, GOOD + b"\0", b"x" + GOOD, GOOD + GOOD):
        with pytest.raises(DataError, match=r"different content|damaged"):
            archive_members(odd, "a.zip", DataError, 1000)
