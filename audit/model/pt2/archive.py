"""Opens a ``.pt2`` archive: members that a program is made of are read, any other refuses the file by name.

The layout is that of ``torch/csrc/export/pt2_archive_constants.h``, archive version 0, which ``torch.export.save`` writes since
torch 2.8. Sample inputs (a pickle) and texts under ``extra/`` are never opened.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile

from audit.archives import DAMAGED, archive_members, member_start, read_member
from audit.errors import ModelError
from audit.model.pickled.records import Allowance
from audit.model.pt2.problems import Executes, Problem, short

# torch stores members as they are. A file that somebody zipped again still fits.
MAX_RATIO = 8
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}"
PROGRAM = re.compile(rf"models/({MODEL_NAME})\.json")
TENSOR = re.compile(r"data/weights/weight_\d{1,7}|data/constants/tensor_\d{1,7}")
SMALL = {
    "archive_format": 16,
    "archive_version": 16,
    "byteorder": 16,
    ".data/version": 64,
    ".data/serialization_id": 256,
    ".format_version": 16,
    ".storage_alignment": 16,
}
# Texts that a user put beside the program. Their names tell nothing to run; torch hands them over as text.
EXTRA = re.compile(r"extra/[A-Za-z0-9_][A-Za-z0-9_./\- ]{0,199}")
CODE = (
    *(".so", ".dll", ".dylib", ".exe", ".sh", ".cpp", ".cubin"),
    *(".py", ".pyc", ".pyd", ".pt", ".pkl", ".pickle", ".pte", ".zip"),
)
OLD = {"serialized_exported_program.json", "serialized_state_dict.pt", "serialized_state_dict.json"}


class Archive:
    """The members of an archive, each of them known.

    Attributes
    ----------
    model
        Name of the one program in it; ``torch.export.save`` calls it ``model``.
    allowance
        What reading the pickles among its weights may still take.

    Raises
    ------
    Executes
        It holds a member that no program needs: a shared object, a source file, an object of a custom class.
    Problem
        It is damaged, or of a layout that is not read.
    """

    def __init__(self, content: bytes, source: str) -> None:
        try:
            members = archive_members(content, source, ModelError, MAX_RATIO)
        except ModelError as error:
            raise Problem(str(error).removeprefix(f"{source} ")) from None
        self._content, self._zip = content, zipfile.ZipFile(io.BytesIO(content))
        self.allowance = Allowance()
        names = [member.filename for member in members]
        if any(name.rpartition("/")[2] in OLD for name in names):
            raise Problem(
                "was saved by torch 2.7 or before, in another layout: load it there and save it with torch 2.8 or later"
            )
        root = names[0].partition("/")[0] + "/" if names else ""
        self.members = {name.removeprefix(root): member for name, member in zip(names, members, strict=True)}
        if len(self.members) < len(names) or not all(name.startswith(root) for name in names):
            raise Problem("holds members outside its folder: it is not what torch.export.save writes")
        self.unknown = [name for name in self.members if not _known(name)]
        if self.unknown:
            raise Executes(
                f"holds {len(self.unknown)} members that no network needs, of which torch may load code: "
                f"{', '.join(short(name) for name in self.unknown[:5])}"
            )
        models = [match[1] for name in self.members if (match := PROGRAM.fullmatch(name))]
        if len(models) != 1:
            raise Problem(f"should hold one program, got {len(models)}")
        self.model = models[0]
        self._check_format()

    def read(self, name: str, limit: int | None = None) -> bytearray:
        """Return the content of a member.

        Raises
        ------
        Problem
            It is not there, damaged, or longer than `limit` bytes.
        """
        member = self.members.get(name)
        if member is None:
            raise Problem(f"lacks the member {short(name)}: it is truncated, or not what torch.export.save writes")
        if limit is not None and member.file_size > limit:
            raise Problem(f"has a member {short(name)} of {member.file_size:,} bytes; at most {limit:,} are read")
        try:
            return read_member(self._zip, self._content, member)
        except DAMAGED as error:
            raise Problem(f"has a damaged member {short(name)} ({short(str(error))}): copy or save it again") from None

    def size(self, name: str) -> int:
        """Return how many bytes a member has, or -1 where it is not there."""
        member = self.members.get(name)
        return -1 if member is None else member.file_size

    def begins_as_pickle(self, name: str) -> bool:
        """Tell whether a member is a file of ``torch.save``, or named as one, so that torch would unpickle it."""
        if name.endswith(".pt"):
            return True
        body = member_start(self._content, self.members[name])
        return self._content[body : body + 4] == b"PK\x03\x04"

    def _check_format(self) -> None:
        said = {name: bytes(self.read(name, SMALL[name])).strip() for name in SMALL if name in self.members}
        if said.get("archive_format", b"pt2") != b"pt2" or said.get("archive_version", b"0") != b"0":
            raise Problem(
                f"has the archive version {short(said.get('archive_version', b'').decode('ascii', 'replace'))}, "
                "and only version 0 is known: save it with the torch that audit runs on"
            )
        if said.get("byteorder", b"little") != sys.byteorder.encode():
            raise Problem(f"holds numbers in another byte order than this machine's ({sys.byteorder}-endian)")


def _known(name: str) -> bool:
    if name in SMALL or PROGRAM.fullmatch(name) or TENSOR.fullmatch(name):
        return True
    if re.fullmatch(
        rf"data/weights/{MODEL_NAME}_weights_config\.json|data/constants/{MODEL_NAME}_constants_config\.json"
        rf"|data/(sample_inputs|weights|constants)/{MODEL_NAME}\.pt",
        name,
    ):
        return True
    return bool(EXTRA.fullmatch(name)) and ".." not in name and not name.lower().endswith(CODE)
