"""Signs what a run wrote: an ed25519 signature over an in-toto statement in a DSSE envelope, ``result.dsse.json``.

The statement names every file of the run with its SHA-256, and says in its predicate what the verdict was. Formats: DSSE 1.0
(secure-systems-lab/dsse, protocol.md), in-toto Attestation Framework v1 (in-toto/attestation, statement.md). An envelope is
read as if an enemy wrote it: sizes have limits, a key that stands twice in an object refuses it, and nothing of the payload is
looked at before the signature is known to be good.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from audit.errors import InputError, UsageError
from audit.files import MAX_BYTES, read_file
from audit.result import Result

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ENVELOPE = "result.dsse.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:audit:predicate:verdict:v1"
PASSPHRASE = "AUDIT_KEY_PASSPHRASE"  # noqa: S105 - the name of the variable, not what it holds
JOBS = ".jobs"  # finished jobs, which a run may delete at any time: no part of what it found
MAX_FILES = 10_000
MAX_ENVELOPE = 2**23
MAX_KEY = 2**16
CHUNK = 2**20


@dataclass(frozen=True)
class Statement:
    """What was signed: the SHA-256 of each file by its name, and the predicate."""

    subjects: Mapping[str, str]
    predicate: Mapping[str, Any]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: the pre-authentication encoding of DSSE 1.0, ``PAE(UTF8(type), body)``."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def files_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a run, by its path inside the folder, less the envelope and finished jobs.

    Raises
    ------
    InputError
        The folder cannot be read, holds a link, a pipe or a device, more than `MAX_FILES` files, or more than `MAX_BYTES`.
    """
    found: dict[str, str] = {}
    size = 0
    waiting = [""]
    while waiting:
        below = waiting.pop()
        for name in _listed(folder / below):
            path = f"{below}/{name}" if below else name
            said = (folder / path).lstat()
            if stat.S_ISDIR(said.st_mode):
                waiting += [] if name == JOBS else [path]
            elif not stat.S_ISREG(said.st_mode):
                raise InputError(f"expected plain files in {folder}, got {path}, a link, a pipe or a device: remove it")
            elif path != ENVELOPE:
                size += said.st_size
                found[path] = _sha256(folder / path) if size <= MAX_BYTES else ""
            if len(found) + len(waiting) > MAX_FILES or size > MAX_BYTES:
                most = f"{MAX_FILES:,} files or {MAX_BYTES:,} bytes"
                raise InputError(f"expected what a run wrote, got a folder of more than {most}: {folder}")
    return found


def predicate_of(result: Result) -> dict[str, Any]:
    """Return what is said of a run when it is signed; all of it stands in its result.json as well."""
    return {
        "audit_version": result.spec.audit_version,
        "started_at": result.started_at,
        "verdict": result.verdict,
        "exit_code": result.exit_code,
        "model_sha256": result.model.sha256,
        "data_sha256": result.data.sha256,
        "reference_sha256": result.data.reference_sha256 or None,
        "anomalies_sha256": result.data.anomalies_sha256 or None,
        "baseline_sha256": None if result.comparison is None else result.comparison.sha256,
        "policy_sha256": result.spec.policy_sha256,
    }


def envelope(files: Mapping[str, str], result: Result, key: Ed25519PrivateKey) -> bytes:
    """Return the signed envelope of a run, as it is written to ``result.dsse.json``."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**predicate_of(result), "signed_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")},
    }
    payload = json.dumps(statement).encode()
    signed = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode("ascii"),
        "signatures": [
            {
                "keyid": key_id(key.public_key()),
                "sig": base64.b64encode(key.sign(pae(PAYLOAD_TYPE, payload))).decode("ascii"),
            }
        ],
    }
    return json.dumps(signed, indent=1).encode() + b"\n"


def opened(content: bytes, key: Ed25519PublicKey) -> Statement:
    """Return what an envelope says, once one of its signatures is known to be by this key.

    As DSSE asks, an envelope may hold several signatures, of which one by the key is enough, in either alphabet of base64; the
    key's id in it decides nothing.

    Raises
    ------
    InputError
        It is no envelope, no signature in it is by the key, or what was signed is not a statement on a run of audit.
    """
    outer = _object(strict_json(content, "the envelope"), "the envelope")
    if outer.get("payloadType") != PAYLOAD_TYPE:
        raise InputError(f"its payload should be of type {PAYLOAD_TYPE}, got {_short(outer.get('payloadType'))}")
    payload = _bytes(outer.get("payload"), "payload")
    _check_signed(outer.get("signatures"), pae(PAYLOAD_TYPE, payload), key)
    statement = _object(strict_json(payload, "the signed statement"), "the signed statement")
    for name, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement.get(name) != expected:
            raise InputError(f"its {name} should be {expected}, got {_short(statement.get(name))}: it is about something else")
    return Statement(_subjects(statement.get("subject")), _object(statement.get("predicate"), "its predicate"))


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's 32 raw bytes, in hex; a hint that says which key signed, and never a proof."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private ed25519 key from a PEM file (PKCS8); ``AUDIT_KEY_PASSPHRASE`` opens one that is encrypted.

    Raises
    ------
    InputError
        It is no such key, or its passphrase is missing or wrong.
    UsageError
        The package cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    content = read_file(path, "private key", InputError, MAX_KEY)
    passphrase = os.environ.get(PASSPHRASE)
    wanted = f"expected a private ed25519 key in PEM in {path}"
    try:
        key = serialization.load_pem_private_key(content, None if passphrase is None else passphrase.encode())
    except TypeError:
        if passphrase is None:
            raise InputError(f"the key {path} is encrypted: put its passphrase into the variable {PASSPHRASE}") from None
        raise InputError(f"the key {path} is not encrypted, but {PASSPHRASE} is set: unset it") from None
    except Exception:  # of many kinds, from a damaged file to a wrong passphrase
        problem = "a public key" if b"PUBLIC KEY" in content else "something else, or its passphrase is wrong"
        raise InputError(f"{wanted}, got {problem}; openssl genpkey -algorithm ed25519 makes one") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{wanted}, got another kind of key; openssl genpkey -algorithm ed25519 makes one")
    return cast("Ed25519PrivateKey", key)


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public ed25519 key from a PEM file (SPKI); errors as in `private_key`."""
    serialization, ed25519 = _cryptography()
    content = read_file(path, "public key", InputError, MAX_KEY)
    wanted = f"expected a public ed25519 key in PEM in {path}"
    if b"PRIVATE KEY" in content:
        raise InputError(f"{wanted}, got a private one, which has no place here: openssl pkey -in KEY -pubout writes the other")
    try:
        key = serialization.load_pem_public_key(content)
    except Exception:  # of many kinds: whatever a damaged file makes the parser raise
        raise InputError(f"{wanted}, got something else") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{wanted}, got another kind of key")
    return cast("Ed25519PublicKey", key)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError("signatures need the package cryptography: pip install 'audit[sign]'") from None
    return serialization, ed25519


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as problem:
        raise InputError(f"cannot read the folder {folder}: {problem.strerror or problem}") from None


def _sha256(path: Path) -> str:
    """Hash a file chunk by chunk; one that became a link or a pipe meanwhile is not opened."""
    digest = hashlib.sha256()
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from None
    return digest.hexdigest()


def _check_signed(signatures: Any, signed: bytes, key: Ed25519PublicKey) -> None:
    from cryptography.exceptions import InvalidSignature

    if not isinstance(signatures, list) or not signatures:
        raise InputError("it should hold a signature, but holds none")
    for entry in signatures:
        try:
            key.verify(_bytes(_object(entry, "a signature").get("sig"), "sig"), signed)
        except InvalidSignature:
            continue
        return
    raise InputError(
        f"no signature in it is by the given key {key_id(key)[:16]}…: another key signed, or what was signed changed"
    )


def _subjects(subject: Any) -> dict[str, str]:
    """Return the SHA-256 of each subject by its name; a name that stands twice refuses the statement."""
    found: dict[str, str] = {}
    for entry in subject if isinstance(subject, list) else []:
        digest = _object(_object(entry, "a subject").get("digest"), "the digest of a subject").get("sha256")
        name = entry.get("name")
        if not isinstance(name, str) or not isinstance(digest, str) or name in found:
            raise InputError(f"each subject should have a name of its own and a sha256, got {_short(entry)}")
        found[name] = digest
    if not found:
        raise InputError("the signed statement should name files, but names none")
    return found


def strict_json(content: bytes, what: str) -> Any:
    """Parse JSON that reads in one way only; an InputError for a key twice in an object, NaN, or bytes that are not UTF-8."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{what} is not JSON that reads in one way: {str(problem)[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {name[:80]!r} stands twice in one object")
        made[name] = value
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} should be an object, got {_short(value)}")
    return value


def _bytes(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(str(text).translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"its {what} should be base64, got {_short(text)}") from None


def _short(value: Any) -> str:
    return repr(value)[:120]
