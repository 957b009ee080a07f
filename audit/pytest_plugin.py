"""The pytest plugin: audits a network once a session, and holds the limits that are written on tests against what it found.

Every pytest session of whoever has audit installed loads this file, so that it imports nothing but pytest until a test asks for
an audit. ``-p no:audit`` leaves it out.

A test's limits are judged by the policy's own code, as one policy: those of one test are corrected (Holm) for their own number
and for no other, so that a test has the same outcome alone and among many. The correction decides between *fail* and
*incomplete* only, and both fail a test; a limit is cleared by its own confidence bound or not at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from audit.config import Limit
    from audit.result import Judgement, Result

MARK = "audit"
LIMIT = re.compile(
    r"(?P<metric>[a-z0-9_]+(?:\.[a-z0-9_]+)+)\s*(?P<drops>\bdrops)?\s*(?P<side>>=|<=)\s*"
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)"
)
NEEDED = ("audit_model", "audit_data", "audit_result")
EXAMPLE = '@pytest.mark.audit("robustness.linf.accuracy >= 0.4")'


@dataclass(frozen=True)
class Made:
    """An audit of this session: what it was made of, and the folder that its report lies in."""

    result: Result
    model: Any
    data: Any
    folder: Path


MADE = pytest.StashKey[list[Made]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, and their keys in pytest's own configuration."""
    group = parser.getgroup("audit", "audit of a network")
    for name, said in (
        ("config", "audit.toml of the session's audit"),
        ("out", "folder for its report and finished jobs; unstated: a temporary one"),
        ("baseline", "older result, for limits such as 'performance.accuracy drops <= 0.02'"),
    ):
        group.addoption(f"--audit-{name}", metavar="PATH", help=said)
        parser.addini(f"audit_{name}", f"as --audit-{name}; relative to this file", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    line = f"{MARK}(*limits): the network must keep these limits: {EXAMPLE[len('@pytest.mark.') :]}; none: those of audit.toml."
    config.addinivalue_line("markers", line)


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def audit_model() -> Any:
    """Return the network to audit: define a fixture of this name, of session scope, that gives a Model, a module or a file."""
    _missing("audit_model", "a Model, a torch.nn.Module or a model file")


@pytest.fixture(scope="session")
def audit_data() -> Any:
    """Return the data to audit on: define a fixture of this name, of session scope, that gives a Dataset, arrays or a file."""
    _missing("audit_data", "a Dataset, arrays, or a data file")


@pytest.fixture(scope="session")
def audit_result(
    audit_model: Any, audit_data: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """Audit what ``audit_model`` and ``audit_data`` give, as ``--audit-config`` says; once a session, and under xdist, too."""
    from audit.errors import AuditError
    from audit.workflows import run

    config = request.config
    toml, baseline = _path(config, "config"), _path(config, "baseline")
    made = config.stash.setdefault(MADE, [])
    folder = _folder(config, tmp_path_factory, len(made))
    try:
        _one_source_of_data(toml, audit_data)
        with _alone(folder):
            result = run(audit_model, audit_data, config=toml, baseline=baseline, out=folder)
    except AuditError as problem:
        _fail(f"audit: {problem}")
    failed = [f"  {check.id}: {check.reason}" for check in result.checks if check.status == "error"]
    if failed:
        _fail("\n".join(["audit: checks ended in an error:", *failed, f"  report: {folder / 'report.html'}"]))
    made.append(Made(result, audit_model, audit_data, folder))
    return result


def _missing(name: str, what: str) -> NoReturn:
    _fail(
        f"audit: there is no fixture {name!r}: define one of session scope, in conftest.py say, that returns {what}. "
        "(The marker and the fixtures audit_… are those of the package audit; -p no:audit leaves its plugin out.)"
    )


def _one_source_of_data(toml: Path | None, data: Any) -> None:
    """Refuse arrays beside a source in audit.toml, which would be audited in their place."""
    import os

    from audit.config import read_toml
    from audit.data.base import Dataset
    from audit.errors import UsageError

    section = read_toml(toml).get("data") if toml is not None else None
    stated = section.get("source") if isinstance(section, dict) else None
    if stated is not None and not isinstance(data, Dataset | str | os.PathLike):
        raise UsageError(f"the fixture audit_data gives arrays, but {toml} names the data {stated!r}: leave one of them out")


def _path(config: pytest.Config, name: str) -> Path | None:
    """Return a path as the command line states it, else as pytest's configuration does, from where each is stated."""
    option = config.getoption(f"--audit-{name}")
    if option:
        return config.invocation_params.dir / str(option)
    stated = config.getini(f"audit_{name}")
    return (config.rootpath if config.inipath is None else config.inipath.parent) / stated if stated else None


def _folder(config: pytest.Config, temporary: pytest.TempPathFactory, earlier: int) -> Path:
    stated = _path(config, "out")
    if stated is None:
        base = temporary.getbasetemp()
        # The workers of xdist have folders of their own in one that they share: there only the first of them does the work.
        stated = (base.parent if hasattr(config, "workerinput") else base) / "audit-out"
    return stated if earlier == 0 else stated.with_name(f"{stated.name}-{earlier + 1}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from the same folder meanwhile: those that come later find the jobs done."""
    try:
        import fcntl
    except ImportError:  # not on this system: each process does the whole work
        yield
        return
    from audit.result import make_folder

    with (make_folder(folder.parent) / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- limits on tests --------------------------------------------------------------------------------------------------


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    """Turn a module or a class with a limit that says nothing into an error of collection."""
    outcome = yield
    report = outcome.get_result()
    if report.outcome != "passed":
        return
    problems = []
    for item in report.result:
        if isinstance(item, pytest.Item) and item.get_closest_marker(MARK) is not None:
            problem = _prepared(item)
            if problem:
                problems.append(f"{item.nodeid}: {problem}")
    if problems:
        report.outcome, report.result, report.longrepr = "failed", [], "\n".join(problems)


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep a test from the result of another network: a fixture of a session is made once, where it is first asked for."""
    arguments = getattr(item, "funcargs", {})
    for made in item.config.stash.get(MADE, []):
        if arguments.get("audit_result") is not made.result:
            continue
        for name, used in (("audit_model", made.model), ("audit_data", made.data)):
            if name in arguments and arguments[name] is not used:
                _fail(
                    f"audit: the fixture {name!r} that this test sees is not the one that audit_result was made from: "
                    "one session audits one network; run these tests in a session of their own"
                )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Judge a marked test's limits once its body has passed."""
    outcome = yield
    if item.get_closest_marker(MARK) is None or outcome.excinfo is not None:
        return
    try:
        _judge(item)
    except BaseException as problem:  # that of pytest.fail and pytest.xfail is none of Exception
        outcome.force_exception(problem)


def _prepared(item: pytest.Item) -> str:
    """Say what is wrong with a test's limits; where nothing is, have it ask for the audit."""
    from audit.config import PolicySection
    from audit.errors import AuditError
    from audit.plain import plain
    from audit.plan import check_limits

    if not hasattr(item, "fixturenames"):
        return "audit marks test functions alone"
    try:
        _, limits = _limits(item)
        check_limits(PolicySection(limit=limits), baseline=_has_baseline(item.config))
    except AuditError as problem:
        return plain(str(problem))
    item.fixturenames = [*item.fixturenames, *(name for name in NEEDED if name not in item.fixturenames)]
    return ""


def _has_baseline(config: pytest.Config) -> bool:
    from audit.config import read_toml

    toml = _path(config, "config")
    run = {} if toml is None else read_toml(toml).get("run", {})
    return _path(config, "baseline") is not None or (isinstance(run, dict) and run.get("baseline") is not None)


def _limits(item: pytest.Item) -> tuple[bool, list[Limit]]:
    """Return whether a marker without limits asks for those of audit.toml, and the limits of the others."""
    from audit.errors import UsageError

    marks = list(item.iter_markers(MARK))
    for mark in marks:
        if mark.kwargs:
            raise UsageError(f"the marker takes limits alone, such as {EXAMPLE}, got {', '.join(mark.kwargs)}")
    return any(not mark.args for mark in marks), [_limit(text) for mark in marks for text in mark.args]


def _limit(text: Any) -> Limit:
    from audit.config import Limit
    from audit.errors import UsageError

    match = LIMIT.fullmatch(text.strip()) if isinstance(text, str) else None
    number = math.nan if match is None else float(match["number"])
    if match is None or not math.isfinite(number) or (match["drops"] and (match["side"] == ">=" or number < 0)):
        raise UsageError(
            "a limit is 'METRIC >= NUMBER', 'METRIC <= NUMBER' or 'METRIC drops <= NUMBER', "
            f"such as 'robustness.linf.accuracy >= 0.4', got {text!r}"
        )
    if match["drops"]:
        return Limit(metric=match["metric"], max_drop=number)
    if match["side"] == "<=":
        return Limit(metric=match["metric"], max=number)
    return Limit(metric=match["metric"], min=number)


def _judge(item: pytest.Item) -> None:
    """Fail unless the test's limits pass; a test whose only failures are waived is expected to fail."""
    from audit.errors import AuditError
    from audit.result import Result

    result = getattr(item, "funcargs", {}).get("audit_result")
    if not isinstance(result, Result):
        _fail(f"audit: the fixture audit_result should give what audit.run returns, got {type(result).__name__}")
    own, limits = _limits(item)
    try:
        results = ([result] if own else []) + ([_judged(result, limits)] if limits else [])
    except AuditError as problem:
        _fail(f"audit: {problem}")
    report = next((made.folder / "report.html" for made in item.config.stash.get(MADE, []) if made.result is result), None)
    failures = [text for judged in results if (text := _failure(judged, report))]
    if failures:
        _fail("\n".join(failures))
    waived = [judgement for judged in results for judgement in judged.policy if judgement.outcome == "waived"]
    if waived:
        pytest.xfail("; ".join(f"{judgement.metric} is {_plain(judgement.reason)}" for judgement in waived))


def _judged(result: Result, limits: list[Limit]) -> Result:
    """Return the result as it would be had its policy held these limits alone; all else of the policy is that of the run."""
    from audit.config import PolicySection, validate
    from audit.policy import judge_again

    config = result.spec.config
    policy: PolicySection = validate(PolicySection, config["policy"], "policy")  # type: ignore[arg-type]
    limited = {limit.metric for limit in limits}
    waivers = [waiver for waiver in policy.waiver if waiver.metric in limited]
    stated = policy.model_copy(update={"limit": limits, "waiver": waivers}).model_dump(mode="json")
    asked = result.model_copy(update={"spec": result.spec.model_copy(update={"config": {**config, "policy": stated}})})
    verdict = judge_again(asked)
    judged = {
        "verdict": verdict.word,
        "sentence": verdict.sentence,
        "exit_code": verdict.exit_code,
        "policy": verdict.judgements,
    }
    return asked.model_copy(update=judged)


def _failure(result: Result, report: Path | None) -> str:
    """Say why a result does not pass, with what was measured; empty where it passes."""
    from audit.errors import PolicyFailed
    from audit.policy import require

    try:
        require(result)
    except PolicyFailed as problem:
        lines = [str(problem)]
        for judgement in result.policy:
            if judgement.outcome != "pass":
                lines += _measured(result, judgement)
        return "\n".join(lines + ([f"  report: {report}"] if report is not None else []))
    return ""


def _measured(result: Result, judgement: Judgement) -> Iterator[str]:
    """Yield what was measured of a metric, and what the evidence of its check says."""
    for check in result.checks:
        for metric in check.metrics:
            if metric.id != judgement.metric:
                continue
            if metric.value is not None and metric.low is not None and metric.high is not None:
                interval = f"{metric.low:.4g} to {metric.high:.4g} at {metric.confidence:.4g}"
                yield f"  measured: {metric.id} = {metric.value:.4g}, {interval} ({metric.method}), {metric.n:,} samples"
            failed = [evidence for evidence in check.evidence if not evidence.ok and evidence.concerns(metric.id)]
            yield f"  evidence of {check.id}: {len(check.evidence) - len(failed)} of {len(check.evidence)} ok"
            yield from (f"    not ok: {evidence.id}: {evidence.detail}" for evidence in failed)


def _plain(text: str) -> str:
    from audit.console import harmless
    from audit.plain import plain

    return harmless(plain(text, newlines=True))


def _fail(message: str) -> NoReturn:
    pytest.fail(_plain(message), pytrace=False)
