"""Holds a stored run against itself: what ``audit verify DIR`` does before anybody acts on the verdict that lies there.

Nothing in the folder is believed. The verdict is judged anew from the stored metrics, evidence and limits; reports are drawn
anew and compared byte by byte; files are hashed. Whoever can write the folder can change all of that together and leave no
trace in it: only a signature tells, which is why ``--key`` fails where there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from audit import signing
from audit.config import PolicySection, read_toml, validate
from audit.errors import AuditError, InputError
from audit.files import read_file
from audit.plain import plain
from audit.policy import Verdict, judge_again
from audit.result import Result, write_atomically

RESULT = "result.json"
MAX_RESULT = 2**28
DRAWING = ("matplotlib", "jinja2")  # beside audit itself, what the bytes of a report depend on
ELSEWHERE = ("model", "data", "run", "policy", "hardening")  # sections of audit.toml that are no check's
NAMED = 3  # options in a line
WORDS = {True: "holds", False: "does not hold", None: "could not be checked"}


@dataclass(frozen=True)
class Tested:
    """One thing that was checked: whether it holds (None: could not be checked), and what was found."""

    what: str
    holds: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """What came of verifying a run; printed, it is the text of ``audit verify``.

    Attributes
    ----------
    tested
        What was checked, in the order in which it was.
    verdict
        The verdict judged anew; None where the stored limits cannot be read.
    gate
        Whether *unjudged* ends with 4, as in ``audit run --gate``.
    """

    tested: tuple[Tested, ...]
    verdict: Verdict | None
    gate: bool = False

    @property
    def holds(self) -> bool:
        """Whether nothing was found that does not hold."""
        return self.verdict is not None and all(one.holds is not False for one in self.tested)

    @property
    def exit_code(self) -> int:
        """3 where anything does not hold, else the exit code of the verdict judged anew."""
        if not self.holds or self.verdict is None:
            return InputError.exit_code
        return 4 if self.gate and self.verdict.word == "unjudged" else self.verdict.exit_code

    def __str__(self) -> str:
        widths = [max(len(cell) for cell in column) for column in zip(*self._rows(), strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths[:2], strict=False)) + f"  {row[2]}" for row in self._rows()
        ]
        return "\n".join([*lines, self._conclusion()])

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(WORDS[one.holds], plain(one.what), plain(one.detail)) for one in self.tested]

    def _conclusion(self) -> str:
        if not self.holds or self.verdict is None:
            failed = ", ".join(plain(one.what) for one in self.tested if one.holds is False)
            return f"Not to be relied on: {failed or 'the verdict'} does not hold."
        unchecked = sum(one.holds is None for one in self.tested)
        rest = f"; {unchecked} of {len(self.tested)} could not be checked" if unchecked else ""
        return f"{self.verdict.word}: {plain(self.verdict.sentence)} What was checked holds{rest}."


def verify(
    folder: str | os.PathLike[str],
    *,
    key: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    gate: bool = False,
) -> Verification:
    """Check that a folder holds what a run wrote: verdict, reports, hashes and, with a key, the signature.

    Parameters
    ----------
    folder
        What ``audit run --out`` wrote.
    key
        Public ed25519 key (PEM) that must have signed it; without a signature it does not hold.
    model, data, baseline
        The files that the run must have been made of; data may also be a folder of images or ``sklearn:NAME``.
    config
        The audit.toml whose section ``[policy]`` it must have been judged by: a gate that was weakened for the run shows.
    gate
        End with 4 where no limits were set.

    Returns
    -------
    Verification
        What holds, what does not, what could not be checked, and the exit code.

    Raises
    ------
    InputError
        There is no result that can be read, or a link, a pipe or a device lies in the folder.
    """
    run = _Run(Path(folder))
    verdict, tested = _held_against_itself(run, config)
    result = run.result
    tested += [
        _held("model", result.model.sha256, model, _model_sha256),
        _held("data", result.data.sha256, data, _data_sha256),
        *_baseline(result, baseline),
        _signature(run, key),
    ]
    return Verification(tuple(tested), verdict, gate)


def sign(folder: str | os.PathLike[str], key: str | os.PathLike[str]) -> Path:
    """Sign what a run wrote; return the envelope, ``result.dsse.json``, which replaces an earlier one.

    Parameters
    ----------
    folder
        What ``audit run --out`` wrote. It is verified first: nobody should sign what was edited.
    key
        Private ed25519 key (PEM, PKCS8); ``AUDIT_KEY_PASSPHRASE`` opens an encrypted one.

    Raises
    ------
    InputError
        Something in the folder does not hold, or the key is none.
    UsageError
        The package cryptography is not installed.
    """
    private = signing.private_key(Path(key))
    run = _Run(Path(folder))
    _, tested = _held_against_itself(run)
    wrong = "; ".join(f"{one.what}: {one.detail}" for one in tested if one.holds is False)
    if wrong:
        raise InputError(f"nothing was signed, since {folder} does not hold what a run wrote: {wrong}")
    path = run.folder / signing.ENVELOPE
    write_atomically(path, signing.envelope(run.files, run.result, private))
    return path


class _Run:
    """A folder as it lay there: its files' hashes, and its result, read from the very bytes that were hashed."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"expected a folder that audit run wrote, got {folder}")
        self.folder = folder
        self.files = signing.files_of(folder)
        if RESULT not in self.files:
            raise InputError(f"expected a folder that audit run wrote, got one without {RESULT}: {folder}")
        content = self.read(RESULT, MAX_RESULT)
        source = str(folder / RESULT)
        signing.strict_json(content, source)
        self.result = Result.from_json(content, source)

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content, as it was when it was hashed."""
        content = read_file(self.folder / name, "file of the run", InputError, limit)
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise InputError(f"{self.folder / name} changed while it was read: run it again")
        return content


def _held_against_itself(run: _Run, config: str | os.PathLike[str] | None = None) -> tuple[Verdict | None, list[Tested]]:
    """Check what the folder alone can tell: verdict, policy, reports and artifacts."""
    read = Tested(RESULT, True, f"a result of audit {run.result.spec.audit_version}, of {run.result.started_at}")
    verdict, judged = _judged(run.result)
    return verdict, [read, *judged, *_policy(run.result, config), *_reports(run), *_artifacts(run)]


# --- the verdict ------------------------------------------------------------------------------------------------------


def _judged(result: Result) -> tuple[Verdict | None, list[Tested]]:
    """Judge anew, as on the day of the run; and, where a waiver counted, as of today."""
    try:
        again = judge_again(result)
        today = judge_again(result.model_copy(update={"started_at": _now()}))
    except AuditError as problem:
        return None, [Tested("verdict", False, str(problem))]
    tested = [_verdict(result, again)]
    waived = [judgement.metric for judgement in again.judgements if judgement.outcome == "waived"]
    if waived:
        lapsed = [
            then.metric for then, now in zip(again.judgements, today.judgements, strict=True) if then.outcome != now.outcome
        ]
        said = f"waived no longer: {', '.join(lapsed)}" if lapsed else f"still in force: {', '.join(dict.fromkeys(waived))}"
        tested.append(Tested("waivers", not lapsed, said))
    return again, tested


def _verdict(result: Result, again: Verdict) -> Tested:
    if (result.verdict, result.exit_code) != (again.word, again.exit_code):
        stored = f"the file says {result.verdict} (exit {result.exit_code})"
        return Tested("verdict", False, f"{stored}, but what it holds is judged {again.word} (exit {again.exit_code})")
    if [j.outcome for j in result.policy] != [j.outcome for j in again.judgements]:
        return Tested("verdict", False, "the stored judgements are not those that its metrics and limits give")
    if _same_version(result) is None and (result.sentence != again.sentence or result.policy != again.judgements):
        return Tested(
            "verdict", False, "its sentence or the details of its judgements are not those that its metrics and limits give"
        )
    return Tested("verdict", True, f"judged anew: {again.word}, exit {again.exit_code}")


def _policy(result: Result, config: str | os.PathLike[str] | None) -> Iterator[Tested]:
    """Hold the stored policy, as it is stored (another version may add keys), against its hash, and against a file."""
    stored = result.spec.config.get("policy")
    limits = stored.get("limit") if isinstance(stored, dict) else None
    sha256 = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest() if limits else None
    same = sha256 == result.spec.policy_sha256
    said = "no limits were set" if same and sha256 is None else f"the stored policy's hash is {_short(sha256)}"
    yield Tested("policy", same, said if same else f"{said}, but policy_sha256 is {_short(result.spec.policy_sha256)}")
    if config is not None:
        given = read_toml(config)
        wanted = validate(PolicySection, given.get("policy", {}), "policy")
        same = isinstance(stored, dict) and validate(PolicySection, stored, "policy") == wanted
        yield Tested("limits", same, f"are {'' if same else 'not '}those of {os.fspath(config)}")
        yield _options(result, given, os.fspath(config))


def _options(result: Result, given: Mapping[str, Any], file: str) -> Tested:
    """Hold the options of the checks against a file: a limit on robustness says nothing of a radius of nearly 0."""
    checks = {name: section for name, section in given.items() if name not in ELSEWHERE}
    asked = _options_of(checks, given.get("run"))
    ran = _options_of(result.spec.config.get("checks"), result.spec.config.get("run"))
    other = [key for key, value in asked.items() if _written(value) != _written(ran.get(key))]
    more = [key for key, value in ran.items() if key not in asked and (key, value) != ("run.profile", "standard")]
    if other:
        return Tested("options", False, f"not those of {file}: {', '.join(other[:NAMED])}")
    if more:
        return Tested("options", None, f"those of {file} and others, which it does not state: {', '.join(more[:NAMED])}")
    return Tested("options", True, f"of the checks are those of {file}")


def _options_of(checks: Any, run: Any) -> dict[str, Any]:
    """Return what decides how hard the checks look: their options, by section and key, and the profile."""
    sections = {**(checks if isinstance(checks, dict) else {}), "run": _profile(run)}
    return {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in (section.items() if isinstance(section, dict) else ())
        if value is not None
    }


def _profile(run: Any) -> dict[str, Any]:
    return {"profile": run["profile"]} if isinstance(run, dict) and "profile" in run else {}


def _written(value: Any) -> list[str]:
    """Return an option as text: a file and a command line write the same one as a number, as text or as a list of one."""
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


# --- what lies beside the result --------------------------------------------------------------------------------------


def _reports(run: _Run) -> Iterator[Tested]:
    """Draw each report anew and compare bytes."""
    import audit

    other = _same_version(run.result)
    for name, draw in audit._renderers().items():
        if name not in run.files:
            yield Tested(name, None, "it is not there")
        elif other is not None:
            yield Tested(name, None, other)
        else:
            drawn = draw(run.result).encode(errors="backslashreplace")
            same = hashlib.sha256(drawn).hexdigest() == run.files[name]
            yield Tested(name, same, f"is {'' if same else 'not '}what {RESULT} gives, byte by byte")


def _same_version(result: Result) -> str | None:
    """Return why reports cannot be drawn as they were; None where they can."""
    spec = result.spec
    drawn = {"audit": spec.audit_version, **{name: spec.packages[name] for name in DRAWING if name in spec.packages}}
    others = [f"{name} {then} (here {here})" for name, then in drawn.items() if (here := _version(name)) != then]
    return f"it was drawn with {' and '.join(others)}" if others else None


def _artifacts(run: _Run) -> Iterator[Tested]:
    """Hold each artifact against the hash that its check stored; none may lie there that no check names."""
    named = {check.artifact: check for check in run.result.checks if check.artifact is not None}
    for name, check in named.items():
        sha256 = run.files.get(name)
        if sha256 is None:
            yield Tested(name, False, f"the check {check.id} wrote it, but it is not there")
        elif check.artifact_sha256 is None:
            yield Tested(name, None, f"the check {check.id} stored no hash of it")
        else:
            same = sha256 == check.artifact_sha256
            yield Tested(name, same, f"its SHA-256 is {'' if same else 'not '}the one that the check {check.id} stored")
    for name in run.files:
        if name.startswith("artifacts/") and name not in named:
            yield Tested(name, False, "no check of this run wrote it")


# --- what the run was made of -----------------------------------------------------------------------------------------


def _held(what: str, stored: str, given: str | os.PathLike[str] | None, sha256_of: Callable[[str, str], str]) -> Tested:
    if given is None:
        return Tested(what, None, f"give --{what} to check that it is the one with SHA-256 {_short(stored)}")
    found = sha256_of(os.fspath(given), stored)
    same = found == stored
    return Tested(what, same, f"{given} has SHA-256 {_short(found)}" + ("" if same else f", that of the run {_short(stored)}"))


def _model_sha256(path: str, stored: str) -> str:
    sha256 = hashlib.sha256(read_file(Path(path), "model file", InputError)).hexdigest()
    if sha256 == stored or not path.lower().endswith(".onnx"):
        return sha256
    from audit.model.load import open_file

    return open_file(path).sha256  # that of an ONNX network counts the weights that lie beside it


def _data_sha256(path: str, stored: str) -> str:  # noqa: ARG001 - as of a model
    if Path(path).is_dir() or path.startswith("sklearn:"):
        from audit.data.base import Dataset

        return Dataset.load(path).sha256
    return hashlib.sha256(read_file(Path(path), "data file", InputError)).hexdigest()


def _baseline(result: Result, given: str | os.PathLike[str] | None) -> Iterator[Tested]:
    """Hold the stored comparison against the older result: its hash, and the changes since."""
    stored = result.comparison
    if stored is None:
        if given is not None:
            yield Tested("baseline", False, "this run was compared with no older one")
        return
    if given is None:
        yield Tested("baseline", None, f"give --baseline to check that it is the one with SHA-256 {_short(stored.sha256)}")
        return
    file = Path(given)
    file = file / RESULT if file.is_dir() else file
    content = read_file(file, "baseline", InputError, MAX_RESULT)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != stored.sha256:
        yield Tested("baseline", False, f"{file} has SHA-256 {_short(sha256)}, that of the run {_short(stored.sha256)}")
        return
    from audit.compare import compare

    old = Result.from_json(content, str(file))
    again = compare(old, result, source=stored.source, sha256=sha256, confidence=stored.confidence)
    if again == stored:
        yield Tested("baseline", True, f"{file} is the one, and the changes since are those that are stored")
    elif (other := _same_version(result)) is not None:
        yield Tested("baseline", None, f"{file} is the one, but the changes since come out differently here; {other}")
    else:
        yield Tested("baseline", False, f"{file} is the one, but the changes since are not those that are stored")


def _signature(run: _Run, key: str | os.PathLike[str] | None) -> Tested:
    """Check the envelope: signed by the key, of exactly these files, and of this verdict."""
    path = run.folder / signing.ENVELOPE
    there = path.is_symlink() or path.exists()
    if key is None:
        return Tested("signature", None, "give --key to check it" if there else "there is none")
    public = signing.public_key(Path(key))
    if not there:
        return Tested("signature", False, f"there is no {signing.ENVELOPE}")
    if path.is_symlink():
        return Tested("signature", False, f"{signing.ENVELOPE} is a link")
    try:
        said = signing.opened(read_file(path, "envelope", InputError, signing.MAX_ENVELOPE), public)
    except InputError as problem:
        return Tested("signature", False, str(problem))
    wrong = _unlike(run, said)
    if wrong:
        return Tested("signature", False, f"what was signed is not what lies here: {wrong}")
    return Tested("signature", True, f"by key {signing.key_id(public)[:16]}…, of {len(run.files)} files and this verdict")


def _unlike(run: _Run, said: signing.Statement) -> str:
    """Say in what the signed statement and the folder differ; empty where in nothing."""
    signed, lying = dict(said.subjects), run.files
    problems = [
        f"{name} was {verb}"
        for verb, names in (
            ("added", lying.keys() - signed.keys()),
            ("taken away", signed.keys() - lying.keys()),
            ("changed", {name for name in lying.keys() & signed.keys() if lying[name] != signed[name]}),
        )
        for name in sorted(names)
    ]
    expected = signing.predicate_of(run.result)
    problems += [f"{name} was signed as another" for name, value in expected.items() if said.predicate.get(name, "") != value]
    return ", ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else f"{sha256[:16]}…"
