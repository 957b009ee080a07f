"""The page of a folder of results: how each metric went from run to run, and where the network or the data changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from audit.comparable import definition, measured, soundness
from audit.compare import edited
from audit.errors import AuditError, InputError
from audit.files import read_file
from audit.report import text
from audit.report.figures import DataTable
from audit.report.html import page, shown_figure
from audit.result import Figure, Result
from audit.signing import ENVELOPE

LARGEST = 2**26  # bytes of one result
MOST_RESULTS = 500
MOST_FILES = 20_000  # that are looked at in the folder
MOST_METRICS = 12  # drawn, unless they are named
MOST_FAULTS = 20


@dataclass(frozen=True)
class Point:
    """One metric in one run: its value and interval, or why it is not believed; `asked` is what defines it."""

    value: float | None
    low: float | None
    high: float | None
    unit: str
    asked: str
    doubt: str = ""


@dataclass(frozen=True)
class Run:
    """What the page keeps of one result."""

    file: str
    started_at: str
    network: str
    model: str
    samples: str
    data: str
    data_sha256: str
    n: int
    verdict: str
    headlines: list[str]
    points: dict[str, Point]


@dataclass(frozen=True)
class Fault:
    """A file that is no result, or one that was edited."""

    file: str
    why: str


@dataclass(frozen=True)
class Trend:
    """All results of a folder in the order of time; `faults` are the files that could not be used."""

    folder: str
    runs: list[Run]
    faults: list[Fault] = field(default_factory=list)
    left_out: int = 0

    def metrics(self, asked: Sequence[str] = ()) -> list[str]:
        """Return the metrics to draw: those asked for, else the headlines of the newest runs."""
        if asked:
            return list(dict.fromkeys(asked))
        names = [name for run in reversed(self.runs) for name in run.headlines]
        return list(dict.fromkeys(names))[:MOST_METRICS]


def read_folder(folder: str | os.PathLike[str]) -> Trend:
    """Read all results below a folder: every ``*.json`` that is one, links not followed, signatures left out.

    A file that is no result, or whose verdict is not the one that what it holds gives, is named and not drawn. Of more than
    `MOST_RESULTS` results the newest are kept.

    Raises
    ------
    InputError
        There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"expected a folder of results, got {root}: give one that holds result.json files, in subfolders or not"
        )
    runs: list[Run] = []
    faults: list[Fault] = []
    for path in _files(root):
        name = str(path.relative_to(root))
        try:
            result = Result.from_json(read_file(path, "result", InputError, LARGEST), name)
            why = edited(result)
        except AuditError as error:
            why = str(error).removeprefix(f"{name} ")  # which file it is stands before it
        if why:
            faults.append(Fault(name, why))
        else:
            runs.append(_run(name, result))
    runs.sort(key=lambda run: (run.started_at, run.file))
    name = str(root) if root.name else root.resolve().name  # "." says nothing to who gets the page
    return Trend(name, runs[-MOST_RESULTS:], faults, max(0, len(runs) - MOST_RESULTS))


def render(trend: Trend, metrics: Sequence[str] = ()) -> str:
    """Return the trend as one self-contained HTML page, as the report is one: no script, nothing loaded."""
    names = trend.metrics(metrics)
    figures = [shown_figure(_figure(trend.runs, name), f"t{i}") for i, name in enumerate(names) if _drawn(trend.runs, name)]
    known = {name for run in trend.runs for name in run.points}
    return page(
        "trend.html",
        trend=trend,
        figures=figures,
        table=_table(trend.runs, names),
        missing=[name for name in names if not _drawn(trend.runs, name)],
        more=len(known - set(names)),
        most_faults=MOST_FAULTS,
    )


def _files(root: Path) -> Iterator[Path]:
    """Yield the JSON files below a folder, in the order of their names."""
    seen = 0
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            seen += 1
            if seen > MOST_FILES:
                raise InputError(
                    f"expected at most {MOST_FILES:,} files below {root}: choose a folder that holds results alone"
                )
            path = Path(folder) / name
            if path.suffix == ".json" and name != ENVELOPE and not path.is_symlink():  # a signature lies beside its result
                yield path


def _run(name: str, result: Result) -> Run:
    found = measured(result)
    points = {}
    for metric_id, entries in found.items():
        if len(entries) == 1:
            m, doubt = entries[0].metric, soundness(entries[0])
            points[metric_id] = Point(m.value, m.low, m.high, m.unit, definition(m), doubt)
    headlines = [c for check in result.checks for c in (m.id for m in check.metrics if m.params.get("headline") is True)]
    return Run(
        file=name,
        started_at=result.started_at,
        network=result.model.sha256,
        model=result.model.source,
        samples=_samples(result),
        data=result.data.source,
        data_sha256=result.data.sha256,
        n=result.data.n,
        verdict=result.verdict,
        headlines=headlines,
        points=points,
    )


def _samples(result: Result) -> str:
    """Return what stands for the test samples: two runs with the same hold the same ids, inputs and labels."""
    hashes = sorted({check.outcomes.ids_sha256 for check in result.checks if check.outcomes is not None})
    data = result.data
    held = "|".join(hashes) if hashes else f"{data.sha256}|{data.rows}|{data.sampled}"
    return hashlib.sha256(held.encode(errors="backslashreplace")).hexdigest()


def _drawn(runs: Sequence[Run], name: str) -> bool:
    return any(_believed(run, name) for run in runs)


def _believed(run: Run, name: str) -> Point | None:
    point = run.points.get(name)
    return None if point is None or point.doubt or _drawable(point.value) is None else point


def _figure(runs: Sequence[Run], name: str) -> Figure:
    """Draw one metric over the runs: points of the same samples and the same question are joined, no others."""
    lines: dict[tuple[str, str], list[tuple[int, Point]]] = {}
    for number, run in enumerate(runs, 1):
        point = _believed(run, name)
        if point is not None:
            lines.setdefault((run.samples, point.asked), []).append((number, point))
    series = [
        {
            "name": _line_name(runs, list(lines), key) if len(lines) > 1 else "",
            "x": [number for number, _ in points],
            "y": [point.value for _, point in points],
            "low": [_drawable(point.low) for _, point in points],
            "high": [_drawable(point.high) for _, point in points],
        }
        for key, points in lines.items()
    ]
    unit = next((point.unit for points in lines.values() for _, point in points), "")
    return Figure(
        id=f"trend.{name}",
        kind="curve",
        title=f"{name}, run by run, with its interval",
        data={
            "series": series,  # type: ignore[dict-item]
            "xlabel": "run, in the order of time",
            "ylabel": "value" if unit in ("", "fraction") else text.clip(unit, 40),
            "marks": _marks(runs),  # type: ignore[dict-item]
            "whole": True,
            "xmin": 0.5,
            "xmax": len(runs) + 0.5,
        },
    )


def _line_name(runs: Sequence[Run], keys: Sequence[tuple[str, str]], key: tuple[str, str]) -> str:
    """Name a line by its samples, and by the number of its definition where one metric has several on these samples."""
    samples, question = key
    file = next(run.data for run in runs if run.samples == samples)
    several = [other for data, other in keys if data == samples]
    definition = f", definition {several.index(question) + 1}" if len(several) > 1 else ""
    return f"{text.clip(Path(file).name, 24)} {samples[:6]}{definition}"


def _drawable(value: float | None) -> float | None:
    return value if value is not None and abs(value) <= 1e30 else None


def _marks(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return where the network or the samples changed: before the first run with other ones."""
    marks: list[dict[str, object]] = []
    for number, (before, after) in enumerate(pairwise(runs), 1):
        network = ["network"] if before.network != after.network else []
        data = ["data"] if before.samples != after.samples else []
        if network or data:
            marks.append({"x": number + 0.5, "label": ", ".join(network + data)})
    return marks


def _table(runs: Sequence[Run], names: Sequence[str]) -> DataTable:
    """Return one row a run: when, which network and samples, the verdict, and each metric with its interval."""
    rows = []
    for number, run in enumerate(runs, 1):
        cells = [_cell(run.points.get(name)) for name in names]
        network, data = text.short_hash(run.network), text.short_hash(run.data_sha256)
        rows.append(
            [
                str(number),
                run.started_at,
                run.file,
                f"{Path(run.model).name} ({network})",
                f"{Path(run.data).name} ({data}), {run.n:,}: {run.samples[:6]}",
                run.verdict,
                *cells,
            ]
        )
    # The hash of a file is the one that its report shows; the short one after the count is of the samples drawn from it.
    columns = ["Run", "Started", "File", "Network", "Data, samples", "Verdict", *names]
    return DataTable(columns, rows, [column == "Run" for column in columns])


def _cell(point: Point | None) -> str:
    if point is None:
        return text.DASH
    shown = f"{text.number(point.value, point.unit)} {text.interval(point.low, point.high, point.unit)}"
    return f"{shown}, not believed: {point.doubt}" if point.doubt else shown
