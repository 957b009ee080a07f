"""Lists the members of a zip archive that may be hostile: small enough to unpack, and the same for each reader.

A zip archive says everything twice, in front of each member and in a directory at its end, and readers differ in what they
believe. So only archives whose two accounts agree are read: members one behind another from the first byte to the directory,
the directory to the end of the file, nothing hidden between, in front or behind.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib

from audit.errors import AuditError
from audit.files import memory_limit

MAX_MEMBERS = 100_000
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
LOCAL, CENTRAL, END, LOCATOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x07"
LOCAL_SIZE, END_SIZE, ZIP64_SIZE = 30, 22, 76  # bytes: a member's header, the record at the end, and those of zip64 before it
SAID_BEHIND = 1 << 3  # of the flags: sizes stand behind the member
ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
BEHIND = (12, 16, 20, 24)  # bytes of what stands behind a member: with or without a signature, in 4 or 8 bytes a size
FULL = 0xFFFFFFFF  # stands for a number that zip64 gives
TWO_READINGS = "so that readers would see different content"


# What Python's reader raises for members that are damaged, encrypted, or packed in a way that it does not know.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


class Odd(Exception):
    """An archive that no ordinary writer makes; the message says what is odd."""


def archive_members(content: bytes, source: str, error: type[AuditError], max_ratio: int) -> list[zipfile.ZipInfo]:
    """List the members of a zip archive after checking what they claim to unpack to.

    A claim that is too small does no harm: Python's reader stops at the claimed size. So the sum of the claims bounds what can
    be unpacked.

    Parameters
    ----------
    max_ratio
        Most bytes that one byte of the archive may unpack to.

    Raises
    ------
    AuditError
        The archive is truncated, or made to exhaust memory or to show different readers different content.
    """
    try:
        claimed = _count(content)
        if claimed > MAX_MEMBERS:
            raise error(f"{source} holds {claimed:,} members; at most {MAX_MEMBERS:,} are read")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members, start = archive.infolist(), archive.start_dir
        _check_size(members, len(content), max_ratio)
        _check_names(members)
        _check_end(content, start, len(members))
        _check_members(content, members, start)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as problem:
        raise error(f"{source} is a truncated or damaged archive ({problem}): copy or save it again") from None
    except Odd as odd:
        raise error(f"{source} {odd}: refused; save it again") from None
    return members


def _count(content: bytes) -> int:
    """Return how many members the directory lists, before a reader makes a record of each."""
    end = content.rfind(END)
    size = int.from_bytes(content[end + 12 : end + 16], "little")
    if content[end - 20 : end - 16] == LOCATOR:
        size = max(size if size != FULL else 0, int.from_bytes(content[end - 36 : end - 28], "little"))
    return content.count(CENTRAL, max(0, end - ZIP64_SIZE - size), end)


def _check_size(members: list[zipfile.ZipInfo], packed: int, max_ratio: int) -> None:
    unpacked = sum(member.file_size for member in members)
    if unpacked > min(memory_limit(), max_ratio * packed):
        raise Odd(f"unpacks {packed:,} bytes to {unpacked:,}, as an archive made to exhaust memory does")


def _check_names(members: list[zipfile.ZipInfo]) -> None:
    if len({member.filename for member in members}) < len(members):
        raise Odd(f"holds two members of one name, {TWO_READINGS}")
    for member in members:
        name = member.orig_filename
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise Odd(f"holds a member of the name {name[:80]!r}, which leads out of it or is read in two ways")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Odd(f"holds a link, {name[:80]!r}, where a member should stand")
        if member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
            raise Odd(f"holds a member that is encrypted or packed in an unusual way, {name[:80]!r}")
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise Odd(f"holds a member of two sizes, {name[:80]!r}, {TWO_READINGS}")


def _check_end(content: bytes, start: int, listed: int) -> None:
    """Check that the directory and the records behind it fill the end of the file."""
    end = content.rfind(END)
    count, size, said, comment = struct.unpack("<10xHLLH", content[end : end + END_SIZE])
    if end + END_SIZE + comment != len(content):
        raise Odd(f"has bytes behind its end, {TWO_READINGS}")
    zip64 = content[end - 20 : end - 16] == LOCATOR
    size = end - ZIP64_SIZE - start if zip64 and size == FULL else size
    if start + size + (ZIP64_SIZE if zip64 else 0) != end or said not in (start, FULL) or count not in (listed, 0xFFFF):
        raise Odd(f"has a directory that stands elsewhere than its end says, {TWO_READINGS}")


def _check_members(content: bytes, members: list[zipfile.ZipInfo], start: int) -> None:
    """Check that the members stand one behind another, and that their own headers say what the directory says."""
    position = 0
    slack: tuple[int, ...] = (0,)
    for member in sorted(members, key=lambda member: member.header_offset):
        at = member.header_offset
        if at - position not in slack:
            raise Odd(f"holds bytes between its members, or members inside each other, {TWO_READINGS}")
        head = content[at : at + LOCAL_SIZE]
        flags, method, packed, size, name, extra = struct.unpack("<6xHH8xLLHH", head)
        said_here = content[at + LOCAL_SIZE : at + LOCAL_SIZE + name].decode("utf-8" if flags & 0x800 else "cp437")
        behind = flags & SAID_BEHIND
        alike = (
            head[:4] == LOCAL
            and (flags, method, said_here) == (member.flag_bits, member.compress_type, member.orig_filename)
            and packed in (member.compress_size, FULL, *((0,) if behind else ()))
            and size in (member.file_size, FULL, *((0,) if behind else ()))
        )
        if not alike:
            raise Odd(f"holds a member whose two headers differ, {member.orig_filename[:80]!r}, {TWO_READINGS}")
        position = at + LOCAL_SIZE + name + extra + member.compress_size
        slack = BEHIND if behind else (0,)
    if start - position not in slack:
        raise Odd(f"holds bytes that its directory does not list, {TWO_READINGS}")


def read_member(archive: zipfile.ZipFile, content: bytes, member: zipfile.ZipInfo) -> bytearray:
    """Return what a member unpacks to.

    Parameters
    ----------
    archive, content
        The open archive, and its bytes.

    Raises
    ------
    zipfile.BadZipFile
        Its header is not what the archive's list says, it is cut off, or its checksum is another. Of packed members any of
        `DAMAGED`.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        return bytearray(archive.read(member))
    # Cut out of the file, so that no second copy is made. Archives of set_crc32_options(False) hold 0 for a checksum.
    start = member_start(content, member)
    found = bytearray(memoryview(content)[start : start + member.file_size])
    if member.flag_bits & ENCRYPTED or len(found) != member.file_size:
        raise zipfile.BadZipFile(f"the member {member.filename[:80]!r} is encrypted or cut off")
    if member.CRC and zlib.crc32(found) != member.CRC:
        raise zipfile.BadZipFile(f"the member {member.filename[:80]!r} has another checksum")
    return found


def member_start(content: bytes, member: zipfile.ZipInfo) -> int:
    """Return where in the file the bytes of a member begin."""
    head = content[member.header_offset : member.header_offset + LOCAL_SIZE]
    if head[:4] != LOCAL or len(head) < LOCAL_SIZE:
        raise zipfile.BadZipFile(f"the member {member.filename[:80]!r} has no header")
    name, extra = struct.unpack("<26xHH", head)
    return int(member.header_offset + LOCAL_SIZE + name + extra)
