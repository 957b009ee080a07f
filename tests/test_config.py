"""audit.toml: what is read, what wins, and what an unknown or hostile one is told."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from audit.checks.robustness import RobustnessOptions
from audit.config import Config, merge, parse_setting, read_toml, resolve, validate
from audit.errors import UsageError

CHECKS = ["performance", "robustness"]


def test_the_defaults_are_those_of_the_design():
    config = resolve({}, CHECKS)
    assert config == Config()
    assert (config.run.profile, config.run.seed, config.run.out, config.policy.confidence) == ("standard", 0, "audit-out", 0.95)
    assert config.policy.sha256() is None
    with pytest.raises(ValidationError):
        config.run.seed = 3  # type: ignore[misc]


def test_a_whole_file_is_read(tmp_path: Path):
    (tmp_path / "audit.toml").write_text(
        """
        [model]
        mean = [0.1, 0.2]
        [data]
        source = "test.npz"
        bounds = [0, 1]
        [run]
        checks = ["robustness"]
        [robustness]
        eps = "8/255"
        [policy]
        confidence = 0.9
        [[policy.limit]]
        metric = "robustness.linf.accuracy"
        min = 0.4
        """
    )
    config = resolve(read_toml(tmp_path / "audit.toml"), CHECKS)
    assert config.model.mean == [0.1, 0.2]
    assert config.data.bounds == (0, 1)
    assert config.checks == {"robustness": {"eps": "8/255"}}
    assert config.policy.limit[0].min == 0.4
    assert len(config.policy.sha256() or "") == 64


def test_the_policy_hash_shows_a_weakened_gate():
    def sha256(**limit: Any) -> str | None:
        return resolve({"policy": {"limit": [{"metric": "performance.accuracy", **limit}]}}, CHECKS).policy.sha256()

    assert sha256(min=0.9) == sha256(min=0.9)
    assert len({sha256(min=0.9), sha256(min=0.8), sha256(max=0.9), sha256(min=0.9, required=False)}) == 4


@given(
    st.lists(st.dictionaries(st.sampled_from("ab"), st.dictionaries(st.sampled_from("xy"), st.none() | st.integers()))),
)
def test_a_later_layer_wins_and_None_leaves_what_was_there(layers: list[dict[str, Any]]):  # noqa: N802
    merged = merge(*layers)
    for section in "ab":
        for key in "xy":
            said = [layer[section][key] for layer in layers if layer.get(section, {}).get(key) is not None]
            assert merged.get(section, {}).get(key) == (said[-1] if said else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("robustness.steps=3", ("robustness", "steps", 3)),
        ("robustness.eps = 0.3 ", ("robustness", "eps", 0.3)),
        ("robustness.eps=8/255", ("robustness", "eps", "8/255")),
        ("robustness.norm=['linf', 'l2']", ("robustness", "norm", ["linf", "l2"])),
        ("run.gate=true", ("run", "gate", True)),
        ("data.source=a=b.npz", ("data", "source", "a=b.npz")),
        ("data.target=", ("data", "target", "")),
        ("a.b=1\n[c]", ("a", "b", "1\n[c]")),
        ("a.b=1\nc = 2", ("a", "b", "1\nc = 2")),
    ],
)
def test_settings_are_values_or_text(text: str, expected: tuple[str, str, Any]):
    assert parse_setting(text) == expected


@pytest.mark.parametrize(
    "text", ["robustness.steps", "steps=3", ".steps=3", "robustness.=3", "=", "a.b=" + "[" * 900, "a.b=" + "9" * 70_000]
)
def test_settings_that_are_none(text: str):
    with pytest.raises(UsageError, match="--set"):
        parse_setting(text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_setting_crashes(key: str, value: str):
    text = f"{key}={value}"
    try:
        section, name, _ = parse_setting(text)
    except UsageError as error:
        assert "--set" in str(error)  # noqa: PT017  (either outcome is right)
    else:
        assert section
        assert name


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"robustnes": {}}, "did you mean 'robustness'"),
        ({"runn": {"seed": 1}}, "did you mean 'run'"),
        ({"run": {"sede": 1}}, "'run.sede'; did you mean 'seed'"),
        ({"data": {"sorce": "x"}}, "did you mean 'source'"),
        ({"policy": {"limits": []}}, "did you mean 'limit'"),
        ({"policy": {"limit": [{"metric": "a.b", "mim": 1}]}}, "did you mean 'min'"),
        ({"policy": {"limit": [{"metric": "a.b"}]}}, "one of min, max and max_drop"),
        ({"policy": {"limit": [{"metric": "a.b", "min": float("nan")}]}}, "policy.limit.0.min"),
        ({"policy": {"confidence": 0.4}}, "policy.confidence"),
        ({"policy": {"confidence": 0.500001}}, "at least 0.8.*misses the truth"),
        ({"policy": {"confidence": 0.7999}}, "at least 0.8"),
        ({"policy": {"confidence": 1.0}}, "below 1"),
        ({"policy": {"confidence": float("nan")}}, "below 1"),
        (
            {"policy": {"waiver": [{"metric": "a.b", "reason": "c", "expires": "2027-01-01"}]}},
            "'policy.waiver.0.owner' is missing",
        ),
        ({"run": {"budget": "soon"}}, "^run.budget: a time is seconds.*'soon'"),
        ({"run": {"out": ""}}, "run.out"),
        ({"run": {"seed": -1}}, "run.seed"),
        ({"run": {"samples": 0}}, "run.samples"),
        ({"run": {"batch_size": 0}}, "run.batch_size"),
        ({"run": {"profile": "fast"}}, "run.profile"),
        ({"run": 3}, "section with keys"),
        ({"data": {"bounds": [0]}}, "data.bounds"),
        ({"data": {"expect_accuracy": 98}}, "data.expect_accuracy"),
        ({"model": {"arch": "a.py:b"}}, "'arch' in .model. runs code.*--arch"),
        ({"model": {"arch_args": {}}}, "runs code.*--arch-args"),
        ({"model": {"trust_model": True}}, "runs code.*--trust-model"),
        ({"run": {"trust": True}}, "runs code"),
        ({"data": {"preprocess": "a.py:b"}}, "runs code.*--preprocess"),
        ({"arch": {"x": 1}}, "no section .arch."),
    ],
)
def test_what_cannot_be_used_is_named(raw: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        resolve(raw, CHECKS)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.999])
def test_confidence_that_says_something_is_taken(confidence: float):
    assert resolve({"policy": {"confidence": confidence}}, CHECKS).policy.confidence == confidence


HOSTILE = {
    "lists": "a = " + "[" * 100_000 + "]" * 100_000,
    "tables": "a = " + "{b = " * 40_000 + "1" + "}" * 40_000,
    "dotted key": ".".join("a" * 100_000) + " = 1",
    "dotted header": "[" + ".".join("a" * 100_000) + "]",
    "quoted keys": ".".join(['"a,b"'] * 40_000) + " = 1",
    "some dots": "".join(f"[b{i}" + ".a" * 480 + "]\n" for i in range(250)),
    "digits": "a = " + "9" * 200_000,
    "quotes": '"' * 200_000,
    "escapes": '"\\' * 100_000,
    "long": "#" * 400_000,
    "binary": "a = 1\0",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_ends_soon_and_plainly(kind: str, tmp_path: Path):
    path = tmp_path / "audit.toml"
    path.write_text(HOSTILE[kind])
    started = time.process_time()
    with pytest.raises(UsageError, match=r"configuration|TOML"):
        read_toml(path)
    assert time.process_time() - started < 10


def test_files_that_are_no_configuration(tmp_path: Path):
    import os

    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    (tmp_path / "empty.toml").touch()
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("latin.toml", "empty.toml", "pipe.toml", "absent.toml", "."):
        with pytest.raises(UsageError, match=r"configuration|TOML"):
            read_toml(tmp_path / name)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"patch": {"share": 2}}, "robustness.patch.share: Input should be less than 1, got '2'"),
        ({"patch": {"shar": 0.1}}, "no option 'robustness.patch.shar'; did you mean 'share'?"),
        ({"patch": 3}, "unable to interpret input, or Input should be a valid table, got '3'"),
        ({"integer": True}, "robustness.integer: Input should be 'auto', or Input should be a valid list, got 'True'"),
        ({"bool": 1}, "no option 'robustness.bool'"),
        ({"immutable": ["a", 3]}, "robustness.immutable.1: Input should be a valid string, got '3'"),
    ],
)
def test_of_an_option_that_is_one_thing_or_another_the_one_that_was_meant_is_told(given_: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        validate(RobustnessOptions, given_, "robustness")
