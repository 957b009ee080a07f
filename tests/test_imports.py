"""What an import costs and what it gives: light at the door, no torch where a report is drawn, and a pinned public API."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pytest

import audit
from audit import errors

HEAVY = ["torch", "art", "shap", "lime", "fairlearn", "sklearn", "pandas", "scipy", "matplotlib", "numpy"]
AFTER_IMPORT = "import sys, json; print(json.dumps(sorted(sys.modules)))"

# What `from audit import …` promises. A name is taken away only with a major version, and added here when it is added there.
PUBLIC = [
    "AuditError",
    "Check",
    "DataError",
    "Dataset",
    "Evidence",
    "Finding",
    "IncompleteError",
    "InputError",
    "Metric",
    "Model",
    "ModelError",
    "ModelRefused",
    "OutputError",
    "PolicyFailed",
    "Result",
    "UsageError",
    "check",
    "diff",
    "harden",
    "inspect",
    "replay",
    "require",
    "robust_accuracy",
    "run",
    "verify",
]


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{AFTER_IMPORT}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_audit_loads_nothing_heavy():
    assert not loaded_by("import audit") & set(HEAVY)


HELP = """
import sys
from audit import cli
sys.argv = ["audit", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    assert end.code in (0, 2), end.code
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], [], ["nonsense"], ["run", "m", "--nonsense"]]
)
def test_the_command_line_loads_nothing_heavy_to_say_how_it_is_used(arguments):
    assert not loaded_by(HELP.format(arguments=arguments)) & set(HEAVY)


def test_help_costs_less_than_half_a_second_of_cpu():
    seconds = []
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-m", "audit", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    assert statistics.median(seconds) < 0.5, seconds


@pytest.mark.parametrize(
    "module",
    [
        "audit.errors",
        "audit.result",
        "audit.stats",
        "audit.config",
        "audit.policy",
        "audit.report.html",
        "audit.report.markdown",
        "audit.report.charts",
        "audit.report.view",
    ],
)
def test_reports_and_verdicts_are_drawn_without_torch(module):
    assert not loaded_by(f"import {module}") & {"torch", "art", "shap", "lime", "fairlearn", "sklearn", "pandas"}


def test_a_result_is_read_drawn_and_judged_without_torch(tmp_path):
    from tests.test_policy import GOOD, atleast, policy, stored

    (tmp_path / "result.json").write_text(stored(policy(atleast(0.9)), [GOOD]).to_json())
    code = f"""
import audit
result = audit.Result.load({str(tmp_path)!r})
audit.require(result)
result.save({str(tmp_path / "again")!r})
result._repr_html_()
"""
    assert not loaded_by(code) & {"torch", "art", "sklearn", "fairlearn", "pandas"}
    assert (tmp_path / "again" / "report.html").stat().st_size > 1000


# --- the public API ---------------------------------------------------------------------------------------------------


def test_the_public_names_are_these():
    assert audit.__all__ == PUBLIC
    assert sorted(PUBLIC) == sorted(audit._WHERE), "each public name says where it is imported from, and no other does"


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_can_be_imported(name):
    value = getattr(audit, name)
    assert value.__doc__
    assert value is getattr(sys.modules[audit._WHERE[name]], name)
    assert name in dir(audit)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = audit.Modle
    assert not hasattr(audit, "torch")


def test_a_star_import_gives_the_public_names():
    names: dict[str, object] = {}
    exec("from audit import *", names)  # noqa: S102
    assert set(PUBLIC) <= set(names)


# --- the tree of errors -----------------------------------------------------------------------------------------------


def below(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in cls.__subclasses__():
        if child.__module__ == "audit.errors":
            yield child
            yield from below(child)


def drawn() -> list[tuple[str, str | None, str]]:
    """Read name, parent and exit code of each error off the drawing in the docstring."""
    rows = []
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(?P<lead>[ │├└─]{4,})(?P<name>[A-Z]\w+)(?P<rest>.*)$", line)
        if match is None:
            continue
        depth = len(match["lead"])
        above = [entry for entry in above if entry[0] < depth]
        codes = re.match(r" +(\d(?: or \d)?)", match["rest"])
        rows.append((match["name"], above[-1][1] if above else None, codes[1] if codes else ""))
        above.append((depth, match["name"]))
    return rows


def test_the_tree_that_the_docstring_draws_is_the_tree_there_is():
    rows = drawn()
    assert {name for name, _, _ in rows} == {"AuditError", *(cls.__name__ for cls in below(errors.AuditError))}
    for name, parent, code in rows:
        cls = getattr(errors, name)
        assert parent is None or cls.__bases__ == (getattr(errors, parent),)
        if name not in ("AuditError", "PolicyFailed"):  # any AuditError that has no code of its own is an internal error
            assert str(cls.exit_code) == code, name
    assert errors.AuditError.exit_code == 5
    assert [errors.PolicyFailed("", code).exit_code for code in (1, 4)] == [1, 4]


def test_all_errors_are_public():
    assert {name for name, _, _ in drawn()} <= set(PUBLIC)
