"""What `audit init` writes is read again as it was meant, repeats the audit, and chooses no limit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import audit
from audit import initialising, workflows
from audit.checks import base
from audit.config import PolicySection, read_toml, resolve
from audit.errors import UsageError
from audit.initialising import Seen, again, init, written
from audit.plain import plain
from audit.plan import check_limits
from audit.policy import judge
from audit.result import CheckResult, Metric
from tests import injections
from tests.test_runner import ARCH, fitted

FEW = {
    "checks": ["performance", "robustness"],
    "samples": 60,
    "settings": ["robustness.steps=3", "robustness.queries=10", "robustness.certify=false"],
}
TABLE = ARCH.replace("DigitsNet", "TableNet")


def uncommented(text: str) -> str:
    """Return the file with every line that begins with # and no blank uncommented."""
    return re.sub(r"^#(?=[^ \n])", "", text, flags=re.MULTILINE)


def only_limits(text: str) -> str:
    head, policy, limits = text.partition("\n[policy]\n")
    return head + policy + uncommented(limits)


def read(path: Path, text: str) -> Any:
    path.write_text(text)
    return resolve(read_toml(path), [*base.registry(), "hardening"])


@pytest.fixture(scope="module")
def made(digits_net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("init") / "audit.toml"
    return init(digits_net / "model.pt", digits_net / "test.npz", arch=ARCH, reference=digits_net / "train.npz", out=out, **FEW)


@pytest.fixture(scope="module")
def repeated(digits_net: Path, made: Path) -> audit.Result:
    return audit.run(digits_net / "model.pt", config=made, arch=ARCH)


# --- the same audit -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_repeats_the_audit(digits_net, repeated):
    named = {"reference": digits_net / "train.npz", "profile": "quick", **FEW}
    one = audit.run(digits_net / "model.pt", digits_net / "test.npz", arch=ARCH, **named)
    assert one.metrics() == repeated.metrics()
    assert one.data == repeated.data
    configs = [{**r.spec.config, "checks": {k: v for k, v in r.spec.config["checks"].items() if v}} for r in (one, repeated)]
    assert configs[0] == configs[1]


def test_no_limit_is_set_and_the_measured_values_stand_beside_open_ones(made, repeated):
    config = read(made.with_name("b.toml"), made.read_text())
    assert config.policy.limit == []
    assert repeated.verdict == "unjudged"
    headlines = [m for m in repeated.metrics().values() if m.params.get("headline") is True]
    assert len(headlines) >= 2
    for metric in headlines:
        assert f'#metric = "{metric.id}"' in made.read_text()
        assert (
            f"measured: {metric.value:.4g} ({metric.unit}), 95 % interval {metric.low:.4g} to {metric.high:.4g}"
            in made.read_text()
        )
        assert f"n = {metric.n}, {metric.method}" in made.read_text()


@pytest.mark.slow
def test_a_limit_that_is_uncommented_works_and_does_not_pass_by_itself(digits_net, made, tmp_path):
    config = read(tmp_path / "audit.toml", only_limits(made.read_text()))
    assert len(config.policy.limit) >= 2
    result = audit.run(digits_net / "model.pt", config=tmp_path / "audit.toml", arch=ARCH, gate=True)
    assert [j.outcome for j in result.policy] == ["incomplete"] * len(config.policy.limit)
    assert result.exit_code == 4
    lower = re.sub(r"^min = .*$", "min = 0.3", only_limits(made.read_text()), flags=re.MULTILINE)
    assert judge(read(tmp_path / "audit.toml", lower).policy, result.checks, gate=True).word == "pass"


@pytest.mark.slow
def test_the_defaults_that_are_uncommented_change_nothing(digits_net, made, repeated, tmp_path):
    text = uncommented(made.read_text().partition("\n[policy]\n")[0])
    read(tmp_path / "audit.toml", text)
    result = audit.run(digits_net / "model.pt", config=tmp_path / "audit.toml", arch=ARCH)
    assert result.metrics() == repeated.metrics()


def test_each_option_of_each_check_and_section_is_named(made):
    text = made.read_text()
    for check_id, check in base.registry().items():
        section = text.partition(f"\n[{check_id}]\n")[2].partition("\n\n")[0]
        for name in check.Options.model_fields:
            assert re.search(rf"^#? ?{name}( =|:)", section, re.MULTILINE), (check_id, name)
    for section in ("model", "data", "run"):
        held = text.partition(f"\n[{section}]\n")[2].partition("\n\n")[0]
        for name in initialising.resolve({}, []).model_dump()[section]:
            assert re.search(rf"^#? ?{name}( =|:)", held, re.MULTILINE), (section, name)
            assert name in initialising.ABOUT, name


def test_what_runs_code_stays_out_and_is_named(made):
    assert "arch =" not in made.read_text()
    assert re.search(rf"^#   audit run .*--arch {re.escape(ARCH)}$", made.read_text(), re.MULTILINE)
    command = again("my model.pt", "a.toml", {"arch": "n.py:F", "arch_args": {"w": 2}, "trust_model": True, "preprocess": None})
    assert command == "audit run 'my model.pt' --config a.toml --arch n.py:F --arch-args '{\"w\": 2}' --trust-model"


def test_without_measuring_it_looks_all_the_same(diabetes_net, tmp_path):
    path = init(
        diabetes_net / "model.pt",
        diabetes_net / "test.csv",
        arch=TABLE,
        target="progression_above_median",
        sensitive=["sex"],
        out=tmp_path / "audit.toml",
        measure=False,
    )
    text = path.read_text()
    assert 'target = "progression_above_median"' in text
    assert '#inputs = ["age", "sex"' in text
    assert "Nothing was measured" in text
    assert "It does not apply here" in text  # corruption or anomalies, without a reference part
    config = read(tmp_path / "b.toml", uncommented(text))
    assert config.policy.limit == []
    assert audit.run(diabetes_net / "model.pt", config=path, arch=TABLE, checks=["performance"]).verdict == "unjudged"


def test_stated_options_come_back(digits_net, tmp_path):
    stated = {"norm": ["linf", "l2"], "eps": ["8/255", 0.5], "seed": 3, "budget": "1h", "bounds": (0, 1), "measure": False}
    settings_ = ["fairness.bins={age = [30.5, 60]}", 'robustness.attacks=[{name = "pgd", steps = 3}]', "policy.confidence=0.9"]
    out = tmp_path / "audit.toml"
    init(digits_net / "model.pt", digits_net / "test.npz", arch=ARCH, out=out, settings=settings_, **stated)
    config = read(out, out.read_text())
    assert config.checks["robustness"]["norm"] == ["linf", "l2"]
    assert config.checks["robustness"]["eps"] == ["8/255", 0.5]
    assert config.checks["robustness"]["attacks"] == [{"name": "pgd", "steps": 3}]
    assert config.checks["fairness"]["bins"] == {"age": [30.5, 60]}
    assert (config.run.seed, config.run.budget, config.policy.confidence) == (3, 3600, 0.9)
    assert config.data.bounds == (0, 1)


def test_a_check_that_was_cut_off_says_so(digits_net, tmp_path):
    path = init(digits_net / "model.pt", digits_net / "test.npz", arch=ARCH, out=tmp_path / "a.toml", budget=1e-6, **FEW)
    assert "# robustness is incomplete: the budget of" in path.read_text()
    assert "[[policy.limit]]" not in path.read_text()


# --- files ----------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_kept(digits_net, tmp_path):
    out, files = tmp_path / "audit.toml", (digits_net / "model.pt", digits_net / "test.npz")
    out.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        init(*files, arch=ARCH, out=out, measure=False)
    assert out.read_text() == "mine"
    (tmp_path / "link.toml").symlink_to(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="--force"):
        init(*files, arch=ARCH, out=tmp_path / "link.toml", measure=False)
    assert init(*files, arch=ARCH, out=out, measure=False, force=True) == out
    assert "[policy]" in out.read_text()


def test_nothing_is_written_where_it_fails(digits_net, tmp_path):
    with pytest.raises(UsageError):
        init(digits_net / "model.pt", digits_net / "test.npz", arch=ARCH, out=tmp_path / "a.toml", checks=["performanse"])
    assert list(tmp_path.iterdir()) == []


# --- hostile names --------------------------------------------------------------------------------------------------------

WRITABLE = [text for text in injections.ALL if not any("\ud800" <= c <= "\udfff" for c in text) and len(text) < 4000]
HOSTILE = [
    *WRITABLE,
    '"]\n[policy]\nconfidence = 0.8\n#',
    "a\rb",
    "'''",
    '"""\n',
    "\\",
    "\\u0041",
    "x\u2028y",
    "\x7f\x80\x1b[2J",
    "é😀",
]
names = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(HOSTILE))


def metric(value: float | None = 0.5, **more: Any) -> Metric:
    held = {
        "low": 0.4,
        "high": 0.6,
        "confidence": 0.95,
        "n": 10,
        "method": "clopper-pearson",
        "params": {"headline": True},
    } | more
    return Metric(id="performance.accuracy", value=value, **held)


def seen(text: str, found: Metric | None = None) -> Seen:
    config = resolve(
        {
            "data": {"source": text or "x", "target": text, "inputs": [text, "b"], "classes": [text] * 30},
            "run": {"profile": "quick"},
            "fairness": {"positive": text, "bins": {text: [1.5]}},
        },
        list(base.registry()),
    )
    told = {"task": text, "output": text, "inputs": [text] * 3, "classes": [text] * 3}
    check = CheckResult(
        id="performance", status="incomplete", reason=text, question=text, answer=text, metrics=[found or metric()]
    )
    return Seen(config.model_dump(), told, text, [check], {"anomaly": text})


def checked(text: str, folder: Path | None = None) -> None:
    """Hold what is written around a hostile name against what was stated, commented and not."""
    wanted = seen(text)
    out = written(wanted, text)
    raw = tomllib.loads(out)
    assert raw["data"] == {k: v for k, v in wanted.config["data"].items() if v not in (None, [])}
    assert raw["fairness"] == {"positive": text, "bins": {text: [1.5]}}
    assert raw["policy"] == {"confidence": 0.95}
    assert set(raw) == {"model", "data", "run", "policy", *base.registry()}
    more = tomllib.loads(uncommented(out))
    assert more["policy"] == {"confidence": 0.95, "looks": "once", "limit": [{"metric": "performance.accuracy", "min": 0.5}]}
    assert set(more) == set(raw)
    assert max(line.count(".") for line in out.split("\n")) <= 500
    assert not [c for c in out if c != "\n" and plain(c) != c]


@settings(max_examples=60, deadline=None)
@given(names)
def test_no_name_breaks_out_of_its_line(text):
    checked(text)


@pytest.mark.parametrize("text", [*HOSTILE, "." * 600, "a" * 3000, "'" * 50, "#" * 9, "[[policy.limit]]\nmetric = 'a.b'"])
def test_no_injection_breaks_out_of_its_line(text):
    checked(text)


def test_a_name_that_is_no_unicode_is_refused():
    with pytest.raises(UsageError, match="not valid Unicode"):
        written(seen("a\udcffb"), "x")


def test_more_names_than_can_be_read_are_refused():
    with pytest.raises(UsageError, match="bytes"):
        written(seen("a" * 9000), "x")


def test_hostile_columns_and_labels_of_a_real_table(tmp_path):
    odd = ['a"\n[policy]\nconfidence = 0.8', "#\x1b[31m\u202e"]
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)), columns=odd)
    frame["y\n#"] = (frame[odd[0]] > 0).astype(int)
    frame.to_csv(tmp_path / "t.csv", index=False)
    torch.save(fitted(), tmp_path / "m.pt")
    network = audit.Model(fitted())
    path = init(network, tmp_path / "t.csv", target="y\n#", out=tmp_path / "a.toml", measure=False)
    config = read(path, uncommented(path.read_text()))
    assert config.data.inputs == odd
    assert config.data.target == "y\n#"
    assert config.policy.confidence == 0.95


# --- open limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "direction", "line"),
    [
        (0.5, 0.4, 0.6, "higher", "min = 0.5"),
        (0.0, 0.0, 0.03, "higher", "min = 0.03"),
        (1.0, 0.97, 1.0, "lower", "max = 0.97"),
        (0.0, 0.0, 0.03, "lower", "max = 0.0"),
        (1.0, 0.97, 1.0, "higher", "min = 1.0"),
    ],
)
def test_an_open_limit_is_one_that_the_policy_takes_and_cannot_decide(value, low, high, direction, line):
    which = "performance.accuracy" if direction == "higher" else "robustness.linf.attack_success"
    found = metric(value, low=low, high=high, direction=direction).model_copy(update={"id": which})
    out = written(seen("x", found), "x")
    assert f"#{line}\n" in out + "\n"
    policy = PolicySection.model_validate(tomllib.loads(only_limits(out))["policy"])
    check_limits(policy)
    check = CheckResult(id=which.partition(".")[0], status="measured", question="?", answer="!", metrics=[found])
    assert judge(policy, [check], gate=True).word == "incomplete"


def test_a_metric_without_an_interval_gets_no_limit():
    out = written(seen("x", metric(None, low=None, high=None, detail="nobody in\nthe group")), "x")
    assert "[[policy.limit]]" not in out
    assert "# performance.accuracy has no value or no interval: nobody in\\nthe group" in out


# --- command line ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_the_command_line(digits_net, tmp_path):
    model = [str(digits_net / "model.pt"), "--arch", ARCH]
    command = [sys.executable, "-m", "audit", "init", *model, "--data", str(digits_net / "test.npz")]
    command += ["--checks", "performance", "--samples", "50"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, [p.name for p in tmp_path.iterdir()]) == (0, ["audit.toml"]), done.stderr
    assert "audit.toml is written" in done.stdout
    assert subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120).returncode == 2
    line = re.search(r"^#   (audit run .*)$", (tmp_path / "audit.toml").read_text(), re.MULTILINE)
    assert line
    again_ = [sys.executable, "-m", *line[1].split()]
    done = subprocess.run(again_, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "audit-out" / "result.json").read_text())["data"]["n"] == 50


def test_the_keywords_of_a_run_are_those_of_the_configuration():
    # `run` hands all that it was given to `_asked`: a keyword that it does not look at would be dropped without a word.
    import inspect

    looked_at: set[str] = set()

    class Given(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            looked_at.add(name)
            return super().__getitem__(name)

    given = inspect.signature(workflows.run).bind("net.pt", "test.npz", norm="l2", eps=0.5)
    given.apply_defaults()
    workflows._asked(Given(given.arguments))
    opening = {"model", "arch", "arch_args", "trust_model", "preprocess"}
    assert set(given.arguments) - looked_at == opening | {"fresh", "progress", "command", "debug"}
