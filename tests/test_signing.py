"""Signatures: the envelope's published examples, and every way in which a signed run can be passed off as another."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import audit
from audit import signing, verifying
from audit.errors import InputError, UsageError
from tests.test_verify import edit, failed, made, sha256, written

cryptography = pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization as pem  # noqa: E402 - after the skip
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

# RFC 8032, section 7.1, test 1; ed25519 signatures are deterministic.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
KEY, OTHER = Ed25519PrivateKey.from_private_bytes(SEED), Ed25519PrivateKey.from_private_bytes(bytes(32))
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'
# DSSE test vectors (secure-systems-lab/dsse, testvectors/vectors.json): payload type, payload, signature by that key.
VECTORS = [
    (
        "application/vnd.in-toto+json",
        STATEMENT,
        "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA==",
    ),
    (
        "application/vnd.exämple+json",
        STATEMENT,
        "xmSk/ug66ysT7ayhkCIjhAq42zgZXSsEWuzUaNL7w2eGAdF/NU6/fRXPtmfN+5DNSAs5/i2lUnHjbbjPsu0tAw==",
    ),
    (
        "application/vnd.in-toto+json",
        b"",
        "gSggCAaTLTYyRH6FIDBem6meyIynsYy8RTHVzwx9tnTb7Bg/1jMWnuVgI/gffqmbsC2VX5/jHfkkDqsj7CDbDg==",
    ),
]


def private_pem(key: Any, passphrase: str | None = None) -> bytes:
    sealed = pem.NoEncryption() if passphrase is None else pem.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, sealed)


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


REAL = audit._renderers


@pytest.fixture(scope="module", autouse=True)
def quick_reports() -> Iterator[None]:
    """Draw reports that take no time: how the true ones are held against the result is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        drawings = dict.fromkeys(("report.html", "summary.md"), lambda result: result.to_json()[::-1])
        patch.setattr(audit, "_renderers", lambda: drawings)
        yield


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a signed run in ``out``, the public key ``key.pub`` and another's ``other.pub``."""
    folder = tmp_path_factory.mktemp("signed")
    for name, key in (("key", KEY), ("other", OTHER)):
        (folder / f"{name}.pem").write_bytes(private_pem(key))
        (folder / f"{name}.pub").write_bytes(public_pem(key))
    verifying.sign(written(made(), folder / "out"), folder / "key.pem")
    return folder


@pytest.fixture
def run(signed: Path, tmp_path: Path) -> Path:
    shutil.copytree(signed, tmp_path / "copy")
    return tmp_path / "copy" / "out"


def signature(run: Path, key: str = "key") -> verifying.Tested:
    (tested,) = [one for one in audit.verify(run, key=run.parent / f"{key}.pub").tested if one.what == "signature"]
    return tested


def envelope(run: Path) -> dict[str, Any]:
    return json.loads((run / signing.ENVELOPE).read_text())


def statement(run: Path) -> dict[str, Any]:
    return json.loads(base64.b64decode(envelope(run)["payload"]))


def sign_again(run: Path, said: Any, *, key: Any = KEY, kind: str = signing.PAYLOAD_TYPE) -> None:
    """Write an envelope, signed by the right key unless told otherwise, with another payload."""
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    made_of = {
        "payloadType": kind,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(key.sign(signing.pae(kind, payload))).decode()}],
    }
    (run / signing.ENVELOPE).write_text(json.dumps(made_of))


# --- the formats ------------------------------------------------------------------------------------------------------


def test_the_encoding_is_that_of_the_specification():
    assert (
        signing.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert signing.pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@pytest.mark.parametrize(("kind", "payload", "expected"), VECTORS)
def test_signatures_are_those_of_the_published_vectors(kind, payload, expected):
    assert base64.b64encode(KEY.sign(signing.pae(kind, payload))).decode() == expected


def test_what_is_signed(run):
    outer, said = envelope(run), statement(run)
    assert outer["payloadType"] == "application/vnd.in-toto+json"
    (only,) = outer["signatures"]
    raw = KEY.public_key().public_bytes_raw()
    assert only["keyid"] == sha256(raw)
    KEY.public_key().verify(
        base64.b64decode(only["sig"]), signing.pae(outer["payloadType"], base64.b64decode(outer["payload"]))
    )
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == signing.PREDICATE_TYPE
    files = [path for path in run.rglob("*") if path.is_file() and ".jobs" not in path.parts and path.name != signing.ENVELOPE]
    assert {entry["name"]: entry["digest"]["sha256"] for entry in said["subject"]} == {
        path.relative_to(run).as_posix(): sha256(path.read_bytes()) for path in files
    }
    assert {"result.json", "report.html", "summary.md", "artifacts/robustness.npz"} <= {
        entry["name"] for entry in said["subject"]
    }
    result = audit.Result.load(run)
    predicate = said["predicate"]
    assert predicate["signed_at"] > "2026"
    assert (predicate["verdict"], predicate["exit_code"]) == ("pass", 0)
    assert predicate["model_sha256"] == result.model.sha256
    assert predicate["data_sha256"] == result.data.sha256
    assert predicate["policy_sha256"] == result.spec.policy_sha256
    assert predicate["audit_version"] == result.spec.audit_version


def test_openssl_agrees(run, tmp_path):
    """Another program checks the signature that this one made."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    outer = envelope(run)
    (tmp_path / "pae").write_bytes(signing.pae(outer["payloadType"], base64.b64decode(outer["payload"])))
    (tmp_path / "sig").write_bytes(base64.b64decode(outer["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin", "-in", tmp_path / "pae"]
    done = subprocess.run([*command, "-sigfile", tmp_path / "sig"], cwd=run.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what holds, and what does not ------------------------------------------------------------------------------------


def test_a_signed_run_holds(run):
    found = audit.verify(run, key=run.parent / "key.pub")
    assert (found.holds, found.exit_code) == (True, 0), str(found)
    assert signature(run).holds
    shutil.rmtree(run / ".jobs")  # finished jobs are no part of it
    assert signature(run).holds


def test_a_signature_does_not_make_a_failed_run_pass(run):
    shutil.rmtree(run)
    verifying.sign(written(made(k=300), run), run.parent / "key.pem")
    found = audit.verify(run, key=run.parent / "key.pub")
    assert (found.holds, found.exit_code) == (True, 1)


def test_another_key(run):
    tested = signature(run, "other")
    assert tested.holds is False
    assert "another key signed" in tested.detail
    assert audit.verify(run, key=run.parent / "other.pub").exit_code == 3


def test_the_id_of_a_key_decides_nothing(run):
    outer = envelope(run)
    outer["signatures"][0]["keyid"] = signing.key_id(OTHER.public_key())
    (run / signing.ENVELOPE).write_text(json.dumps(outer))
    assert signature(run).holds
    assert signature(run, "other").holds is False


def test_no_signature(run):
    (run / signing.ENVELOPE).unlink()
    found = audit.verify(run, key=run.parent / "key.pub")
    assert failed(found) == {"signature"}
    assert found.exit_code == 3


def test_an_envelope_that_is_a_link(run):
    (run / signing.ENVELOPE).rename(run.parent / "envelope")
    (run / signing.ENVELOPE).symlink_to(run.parent / "envelope")
    with pytest.raises(InputError, match="a link"):
        audit.verify(run, key=run.parent / "key.pub")


@pytest.mark.parametrize("name", ["result.json", "report.html", "summary.md", "artifacts/robustness.npz"])
def test_a_changed_byte(run, name):
    path = run / name
    path.write_bytes(path.read_bytes() + b"\n")
    tested = signature(run)
    assert tested.holds is False
    assert f"{name} was changed" in tested.detail


def test_a_run_that_was_edited_and_drawn_anew_is_told_by_the_signature_alone(run):
    edit(run, lambda t: t["checks"][0]["metrics"][0].update(detail="as good as new"))
    audit.Result.load(run).save(run)
    assert audit.verify(run).holds
    found = audit.verify(run, key=run.parent / "key.pub")
    assert failed(found) == {"signature"}
    assert "result.json was changed" in str(found)


def test_a_file_added_or_taken_away(run):
    (run / "note.txt").write_text("trust me")
    assert "note.txt was added" in signature(run).detail
    (run / "note.txt").unlink()
    (run / "summary.md").unlink()
    assert "summary.md was taken away" in signature(run).detail


def test_the_envelope_of_another_run(run, tmp_path):
    verifying.sign(written(made(k=960), tmp_path / "other"), run.parent / "key.pem")
    shutil.copy(tmp_path / "other" / signing.ENVELOPE, run)
    assert signature(run).holds is False


@pytest.mark.parametrize("kept", [0, 1])
def test_subjects_left_out(run, kept):
    """Even where the right key signed it: a statement that names fewer files says nothing of the others."""
    said = statement(run)
    sign_again(run, {**said, "subject": said["subject"][:kept]})
    tested = signature(run)
    assert tested.holds is False
    assert ("was added" if kept else "names none") in tested.detail


CHANGES: list[tuple[str, Any]] = [
    ("its _type should be", {"_type": "https://in-toto.io/Statement/v0.1"}),
    ("its predicateType should be", {"predicateType": "https://slsa.dev/provenance/v1"}),
    ("its predicate should be an object", {"predicate": None}),
    ("verdict was signed as another", {"predicate": {"verdict": "fail"}}),
    ("should name files", {"subject": {}}),
    ("a subject should be an object", {"subject": ["result.json"]}),
    ("the digest of a subject should be an object", {"subject": [{"name": "result.json", "digest": "0"}]}),
    ("a name of its own and a sha256", {"subject": [{"name": "result.json", "digest": {"sha512": "0"}}]}),
]


@pytest.mark.parametrize(("said", "change"), CHANGES)
def test_another_statement_by_the_right_key(run, said, change):
    sign_again(run, {**statement(run), **change})
    tested = signature(run)
    assert tested.holds is False
    assert said in tested.detail


def test_each_entry_of_the_predicate_is_held_against_the_result(run):
    said = statement(run)
    for name in signing.predicate_of(audit.Result.load(run)):
        for other in ({**said["predicate"], name: "another"}, {k: v for k, v in said["predicate"].items() if k != name}):
            sign_again(run, {**said, "predicate": other})
            assert f"{name} was signed as another" in signature(run).detail


def test_a_name_twice(run):
    said = statement(run)
    said["subject"].insert(0, {"name": "result.json", "digest": {"sha256": "0" * 64}})
    sign_again(run, said)
    assert "a name of its own" in signature(run).detail


def test_a_key_twice_in_the_payload_or_the_envelope(run):
    text, whole = json.dumps(statement(run)), (run / signing.ENVELOPE).read_text()
    sign_again(run, text.replace("{", '{"predicateType": "x", ', 1).encode())
    assert "stands twice" in signature(run).detail
    (run / signing.ENVELOPE).write_text(whole.replace("{", '{"payloadType": "x", ', 1))
    assert "stands twice" in signature(run).detail


def test_another_payload_type(run):
    outer = envelope(run)
    (run / signing.ENVELOPE).write_text(json.dumps({**outer, "payloadType": "application/json"}))
    assert "payload should be of type" in signature(run).detail
    sign_again(run, statement(run), kind="application/json")
    assert "payload should be of type" in signature(run).detail


def test_two_signatures(run):
    """As DSSE says: one by the key is enough, in any place; a bad one beside it changes nothing, and two bad ones are none."""
    outer = envelope(run)
    (own,) = outer["signatures"]
    bad = {"keyid": own["keyid"], "sig": base64.b64encode(bytes(64)).decode()}
    payload = base64.b64decode(outer["payload"])
    others = {"sig": base64.b64encode(OTHER.sign(signing.pae(outer["payloadType"], payload))).decode()}
    for signatures, keys in (([own, others], ("key", "other")), ([bad, own], ("key",)), ([bad, bad], ()), ([], ())):
        (run / signing.ENVELOPE).write_text(json.dumps({**outer, "signatures": signatures}))
        for key in ("key", "other"):
            assert signature(run, key).holds is (key in keys)


def test_either_alphabet_of_base64(run):
    outer = envelope(run)
    table = str.maketrans("+/", "-_")
    outer["payload"] = outer["payload"].translate(table)
    outer["signatures"][0]["sig"] = outer["signatures"][0]["sig"].translate(table)
    (run / signing.ENVELOPE).write_text(json.dumps(outer))
    assert signature(run).holds


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"payloadType": "application/vnd.in-toto+json"}',
        b'{"payloadType": "application/vnd.in-toto+json", "payload": "e30="}',
        b'{"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": [{}]}',
        b'{"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": [{"sig": 5}]}',
        b'{"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": [{"sig": "AA"}]}',
        b'{"payloadType": "application/vnd.in-toto+json", "payload": "*", "signatures": [{"sig": "AAAA"}]}',
        b'{"payloadType": "application/vnd.in-toto+json", "payload": {}, "signatures": "x"}',
    ],
)
def test_what_is_no_envelope(run, content):
    (run / signing.ENVELOPE).write_bytes(content)
    assert signature(run).holds is False


def test_an_envelope_that_is_too_large(run, monkeypatch):
    monkeypatch.setattr(signing, "MAX_ENVELOPE", 100)
    assert "too large" in signature(run).detail


# --- signing ----------------------------------------------------------------------------------------------------------


def test_nobody_signs_what_was_edited(run):
    (run / signing.ENVELOPE).unlink()
    edit(run, lambda t: t.update(sentence="All is well."))
    with pytest.raises(InputError, match="nothing was signed"):
        verifying.sign(run, run.parent / "key.pem")
    assert not (run / signing.ENVELOPE).exists()


def test_signing_again_replaces_the_envelope(run):
    verifying.sign(run, run.parent / "other.pem")
    assert signature(run, "other").holds
    assert signature(run).holds is False


def test_keys_that_are_none(run, monkeypatch):
    place = run.parent
    (place / "rsa.pem").write_bytes(private_pem(rsa.generate_private_key(65537, 2048)))
    (place / "rsa.pub").write_bytes(public_pem(rsa.generate_private_key(65537, 2048)))
    (place / "noise").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    for name, said in (
        ("rsa.pem", "another kind of key"),
        ("key.pub", "a public key"),
        ("noise", "something else"),
        ("no", "cannot"),
    ):
        with pytest.raises(InputError, match=said):
            verifying.sign(run, place / name)
    for name, said in (("rsa.pub", "another kind of key"), ("key.pem", "a private one"), ("out/summary.md", "something else")):
        with pytest.raises(InputError, match=said):
            audit.verify(run, key=place / name)


def test_an_encrypted_key(run, monkeypatch):
    sealed = run.parent / "sealed.pem"
    sealed.write_bytes(private_pem(KEY, "open sesame"))
    with pytest.raises(InputError, match="is encrypted: put its passphrase into the variable AUDIT_KEY_PASSPHRASE"):
        verifying.sign(run, sealed)
    monkeypatch.setenv("AUDIT_KEY_PASSPHRASE", "wrong")
    with pytest.raises(InputError, match="its passphrase is wrong"):
        verifying.sign(run, sealed)
    monkeypatch.setenv("AUDIT_KEY_PASSPHRASE", "open sesame")
    verifying.sign(run, sealed)
    assert signature(run).holds
    with pytest.raises(InputError, match="is not encrypted"):
        verifying.sign(run, run.parent / "key.pem")


def test_without_the_package_the_error_names_the_command(run, monkeypatch):
    for name in ("cryptography.hazmat.primitives", "cryptography.hazmat.primitives.asymmetric"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: verifying.sign(run, run.parent / "key.pem"),
        lambda: audit.verify(run, key=run.parent / "key.pub"),
    ):
        with pytest.raises(UsageError, match=r"pip install 'audit\[sign\]'"):
            call()
    assert audit.verify(run).holds  # without a key nothing of it is needed


@pytest.mark.slow
def test_the_command_line(run, monkeypatch):
    monkeypatch.setattr(audit, "_renderers", REAL)
    shutil.rmtree(run)
    written(made(), run)

    def run_audit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "audit", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=run.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    assert run_audit("verify", "out", "--key", "key.pub").returncode == 3
    done = run_audit("sign", "out", "--key", "key.pem")
    assert (done.returncode, done.stdout) == (0, "signed: out/result.dsse.json\n"), done.stderr
    assert run_audit("verify", "out", "--key", "key.pub").returncode == 0
    done = run_audit("verify", "out", "--key", "other.pub")
    assert done.returncode == 3
    assert "does not hold         signature" in done.stdout
    assert run_audit("sign", "out", "--key", "nowhere.pem").returncode == 3
