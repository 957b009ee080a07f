"""Draws metrics, findings, figures and tables from what the corruption check saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from audit import corruptions, figures, stats
from audit.checks.base import Answer
from audit.checks.corruption_seen import (
    NO_CLASS,
    Apply,
    Seen,
    group_of,
    label_of,
    metric_of,
    patches_of,
    percent,
    title_of,
    titles,
    worst_patch,
)
from audit.corruptions.intervals import bounded_mean, mean
from audit.corruptions.patch import Patch
from audit.result import Figure, Finding, Metric, Table, finite
from audit.stats import Interval

BROKEN, STANDS = 0.5, 0.6  # share of the skill that is left: below the one broken, above the other not
TURNS, TURNS_SOME = 0.5, 0.2  # share that a patch surely turns into one class: reported as high, and as low
HURTS = 0.05  # a drop that is surely larger is reported
GALLERY, PANELS = 2, 7
SHOWN_COLUMNS = 30


# --- metrics, figures, tables -----------------------------------------------------------------------------------------


def figures_of_all(answer: Answer, seen: Seen) -> None:
    """Add the metrics of every corruption, the curves, the bars, the table of all severities, and the outcomes."""
    word = "kept" if seen.regression else "accuracy"
    params: dict[str, Any] = {"tolerance": finite(seen.tolerance)} if seen.regression else {}
    answer.metrics.append(
        metric_of(
            seen,
            f"corruption.mean_{word}",
            seen.overall(),
            "agresti-coull-t",
            params={**params, "headline": True, "corruptions": list(seen.names), "severities": list(seen.severities)},
        )
    )
    severity = seen.severities[seen.at]
    for name in seen.names:
        good = seen.good[name][:, seen.at]
        strength = corruptions.get(name).strength(severity)
        known = {**params, "severity": severity, "strength": strength, "unit": corruptions.get(name).unit}
        whole = {"outcome": f"corruption.{name}"} if seen.n == len(seen.task.data.test) else {}
        answer.metrics.append(
            metric_of(seen, f"corruption.{name}.{word}", seen.share(good), "clopper-pearson", params=known, **whole)
        )
        if not seen.regression:
            lost, won = int((seen.good_clean & ~good).sum()), int((good & ~seen.good_clean).sum())
            drop = stats.paired_difference(lost, won, seen.n, seen.task.confidence)
            answer.metrics.append(
                metric_of(seen, f"corruption.{name}.drop", drop, "mover-paired", direction="lower", params=known)
            )
        if whole:
            answer.outcomes[f"corruption.{name}"] = good
    answer.figures += [_curves(seen), _harm(seen)]
    answer.tables.append(_table(seen))


def _curves(seen: Seen) -> Figure:
    clean = seen.share(seen.good_clean)
    panels: list[Any] = []
    for name in seen.names:
        points = [clean, *(seen.share(seen.good[name][:, i]) for i in range(len(seen.severities)))]
        series = {
            "name": seen.measure,
            "x": [0, *seen.severities],
            "y": [p.value for p in points],
            "low": [p.low for p in points],
            "high": [p.high for p in points],
        }
        panels.append({"title": title_of(name), "series": [series]})
    data: dict[str, Any] = {"panels": panels, "xlabel": "severity (0: clean)", "ylabel": seen.measure, "ymin": 0, "ymax": 1}
    return Figure(id="corruption.curves", kind="small_multiples", title="Every corruption at every severity", data=data)


def _harm(seen: Seen) -> Figure:
    order = seen.by_harm()
    points = [seen.share(seen.good[name][:, seen.at]) for name in order]
    data: dict[str, Any] = {
        "labels": [title_of(name) for name in order],
        "values": [p.value for p in points],
        "low": [p.low for p in points],
        "high": [p.high for p in points],
        "n": [seen.n] * len(order),
        "xlabel": seen.measure,
        "ylabel": "",
        "reference": seen.share(seen.good_clean).value,
        "reference_label": "clean inputs",
    }
    title = f"What hurts most (severity {seen.severities[seen.at]})"
    return Figure(id="corruption.harm", kind="bars", title=title, data=data)


def _table(seen: Seen) -> Table:
    columns = ["corruption", "severity", "strength", "unit", "mean change", seen.measure, "low", "high"]
    rows: list[list[Any]] = []
    for name in seen.names:
        known = corruptions.get(name)
        for i, severity in enumerate(seen.severities):
            share = seen.share(seen.good[name][:, i])
            row = [known.title, severity, known.strength(severity), known.unit, float(seen.change[name][i]), *share]
            rows.append(row + ([_rmse(seen.y, seen.answers[name][:, i])] if seen.regression else []))
    if seen.regression:
        columns.append("root mean squared error")
        rows.insert(0, ["clean inputs", 0, None, None, 0.0, *seen.share(seen.good_clean), _rmse(seen.y, seen.clean)])
    else:
        rows.insert(0, ["clean inputs", 0, None, None, 0.0, *seen.share(seen.good_clean)])
    return Table(id="corruption.all", title="All corruptions and severities", columns=columns, rows=rows)


def _rmse(y: NDArray[Any], values: NDArray[Any]) -> float | None:
    return finite(float(np.sqrt(np.mean((y - values) ** 2)))) if len(y) else None


# --- findings ---------------------------------------------------------------------------------------------------------


def report_harm(answer: Answer, seen: Seen) -> None:
    """Report a corruption that alone breaks the network, else those that hurt most."""
    skill = {name: _skill(seen, name) for name in seen.names}
    broken = [name for name, left in skill.items() if left.high is not None and left.high < BROKEN]
    # No network survives columns that are exchanged: that one breaks it says nothing of the network.
    judged = [name for name in seen.names if not corruptions.get(name).fault]
    groups = {group_of(name) for name in broken if name in judged}
    others = [skill[name].low for name in judged if group_of(name) not in groups]
    alone = len(groups) == 1 and len(others) > 0 and all(low is not None and low >= STANDS for low in others)
    told = [name for name in broken if name in judged] if alone else []
    for name in told[:1]:
        answer.findings.append(_broken_alone(seen, name, skill[name]))
    for name in [name for name in seen.by_harm() if name not in told][:3]:
        finding = _harmful(seen, name, name in broken)
        if finding is not None:
            answer.findings.append(finding)


def _skill(seen: Seen, name: str) -> Interval:
    """Return which share of its skill beyond chance is left at the headline severity; Bonferroni over corruptions."""
    clean, chance = float(seen.good_clean.mean()), seen.chance()
    if clean <= chance:
        return Interval(None, None, None)
    share = seen.share(seen.good[name][:, seen.at], 1 - (1 - seen.task.confidence) / len(seen.names))
    value, low, high = ((float(v or 0.0) - chance) / (clean - chance) for v in share)
    return Interval(value, low, high)


def _broken_alone(seen: Seen, name: str, skill: Interval) -> Finding:
    good = seen.good[name][:, seen.at]
    share = seen.share(good)
    return Finding(
        severity="high",
        title=f"One corruption alone breaks the network: {title_of(name)}",
        detail=f"At severity {seen.severities[seen.at]} ({_strength(seen, name)}) it leaves {percent(share.value)} "
        f"({percent(share.low)} to {percent(share.high)}) of {seen.n:,} samples "
        f"{'kept' if seen.regression else 'right'}: at most {percent(skill.high)} of what the network has beyond chance, "
        f"while every other corruption leaves at least {STANDS:.0%}. Something in the network, or in what it was trained on, "
        "hangs on it.",
        samples=[int(i) for i in seen.ids[seen.good_clean & ~good][:10]],
    )


def _harmful(seen: Seen, name: str, broken: bool) -> Finding | None:
    good = seen.good[name][:, seen.at]
    lost, won = int((seen.good_clean & ~good).sum()), int((good & ~seen.good_clean).sum())
    drop = stats.paired_difference(lost, won, seen.n, seen.task.confidence)
    if drop.low is None or drop.low <= HURTS:
        return None
    what = "of the outputs are moved too far" if seen.regression else "of the answers are lost"
    return Finding(
        severity="medium" if broken and not corruptions.get(name).fault else "low",
        title=f"Under {title_of(name)} {percent(drop.value)} {what}",
        detail=f"At severity {seen.severities[seen.at]} ({_strength(seen, name)}) {lost} of {seen.n:,} samples turn "
        f"{'too far from their clean output' if seen.regression else 'from right to wrong'} and {won} the other way: a loss of "
        f"{percent(drop.low)} to {percent(drop.high)}."
        + (" No network survives that: columns and units must be checked before it." if corruptions.get(name).fault else ""),
        samples=[int(i) for i in seen.ids[seen.good_clean & ~good][:10]],
    )


def _strength(seen: Seen, name: str) -> str:
    known = corruptions.get(name)
    return f"{known.unit}: {known.strength(seen.severities[seen.at]):g}"


def report_non_finite(answer: Answer, seen: Seen) -> None:
    """Report samples whose output is finite when clean and not so when corrupted."""
    fine = np.isfinite(seen.clean) if seen.regression else seen.clean != NO_CLASS
    bad: dict[str, NDArray[np.bool_]] = {}
    for name, answers in seen.answers.items():
        here = ~np.isfinite(answers) if seen.regression else answers == NO_CLASS
        lost = here.any(axis=1) & fine
        if lost.any():
            bad[name] = lost
    if not bad:
        return
    samples = np.any(list(bad.values()), axis=0)
    answer.findings.append(
        Finding(
            severity="high",
            title=f"Corrupted inputs make the network return NaN or infinity for {int(samples.sum())} of {seen.n:,} samples",
            detail=f"Under {titles(list(bad))}. They count as {'moved too far' if seen.regression else 'wrong'}. Look for "
            "overflow, a division by zero, or inputs outside the range it was trained on.",
            samples=[int(i) for i in seen.ids[samples][:10]],
        )
    )


# --- imputations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Losses:
    """What missing values cost each sample under each imputation, shape (imputations, n); `most` is the largest loss."""

    names: list[str]
    values: NDArray[np.float64]
    most: float | None

    def interval(self, values: NDArray[np.float64], confidence: float) -> Interval:
        return mean(values, confidence) if self.most is None else bounded_mean(values, -self.most, self.most, confidence)


def conclude_imputations(answer: Answer, seen: Seen) -> str:
    """Compare the imputations on the same gaps in the same samples; return what came of it in words."""
    listed = [name for name in seen.names if group_of(name) == "missing"]
    if not listed:
        return ""
    if seen.regression:
        with np.errstate(invalid="ignore"):
            clean = np.abs(seen.y - seen.clean)
            values = np.stack([np.abs(seen.y[:, None] - seen.all_turns(name)).mean(axis=1) - clean for name in listed])
    else:
        values = np.stack([seen.good_clean - (seen.all_turns(name) == seen.y[:, None]).mean(axis=1) for name in listed])
    losses = _Losses(listed, values, None if seen.regression else 1.0)
    for name, loss in zip(listed, losses.values, strict=True):
        answer.metrics.append(_imputation_metric(seen, name, losses.interval(loss, seen.task.confidence)))
    answer.figures.append(_imputation_curves(seen, listed))
    return _compare_imputations(answer, seen, losses) if len(listed) > 1 and np.isfinite(values).all() else ""


def _imputation_metric(seen: Seen, name: str, loss: Interval) -> Metric:
    short = name.removeprefix("missing_")
    known: dict[str, Any] = {"direction": "lower", "params": {"severities": list(seen.severities)}}
    if seen.regression:
        return metric_of(seen, f"corruption.imputation.{short}.error_growth", loss, "t", unit="target units", **known)
    return metric_of(seen, f"corruption.imputation.{short}.lost", loss, "agresti-coull-t", **known)


def _compare_imputations(answer: Answer, seen: Seen, losses: _Losses) -> str:
    count = len(losses.names)
    confidence = 1 - (1 - seen.task.confidence) / (count * (count - 1))
    order = np.argsort(losses.values.mean(axis=1), kind="stable")
    best, worst = int(order[0]), int(order[-1])
    pairs = {
        (i, j): losses.interval(losses.values[i] - losses.values[j], confidence)
        for i in range(count)
        for j in range(count)
        if i != j
    }
    if not seen.regression:
        gap = Interval(
            float(losses.values[worst].mean() - losses.values[best].mean()),
            max(0.0, *(p.low or 0.0 for p in pairs.values())),
            max(p.high if p.high is not None else 1.0 for p in pairs.values()),
        )
        answer.metrics.append(
            metric_of(seen, "corruption.imputation.gap", gap, "agresti-coull-t-bonferroni", direction="lower")
        )
    beaten = [i for i in range(count) if i != best and (pairs[i, best].low or 0.0) > 0]
    text = _imputation_text(losses, best, beaten)
    turns = seen.all_turns(losses.names[0]).shape[1] // len(seen.severities)
    source = "reference" if seen.task.data.reference is not None else "test"
    answer.findings.append(
        Finding(
            severity="info",
            title=text,
            detail=f"In {turns} draws of gaps a row the same values are missing for each imputation, so that samples are "
            f"compared with themselves; intervals hold for all pairs at once. {_costs(seen, losses)} Values were filled from "
            f"the {source} part.",
        )
    )
    return f" {text}."


def _imputation_text(losses: _Losses, best: int, beaten: list[int]) -> str:
    called = [_imputation(name) for name in losses.names]
    rest = [called[i] for i in range(len(called)) if i != best and i not in beaten]
    if not beaten:
        return "For missing values, no imputation is better than another beyond noise"
    worse = " and ".join(called[i] for i in beaten)
    if not rest:
        return f"For missing values, filling in {called[best]} hurts least"
    return (
        f"For missing values, filling in {called[best]} hurts less than {worse}; between it and {' or '.join(rest)} there "
        "is no more than noise"
    )


def _costs(seen: Seen, losses: _Losses) -> str:
    parts = []
    for name, loss in zip(losses.names, losses.values, strict=True):
        v, low, high = losses.interval(loss, seen.task.confidence)
        if seen.regression:
            span = f" ({low:+.3g} to {high:+.3g})" if low is not None and high is not None else ""
            parts.append(f"{_imputation(name)}: error {v or 0:+.3g}{span}")
        else:
            parts.append(f"{_imputation(name)}: {percent(v)} of the answers ({percent(low)} to {percent(high)})")
    return f"Lost on average over the severities, by {'; '.join(parts)}."


def _imputation(name: str) -> str:
    return {
        "missing_mean": "the mean",
        "missing_median": "the median",
        "missing_frequent": "the most frequent value",
        "missing_knn": "the mean of the nearest rows",
    }.get(name, title_of(name))


def _imputation_curves(seen: Seen, listed: list[str]) -> Figure:
    clean = seen.share(seen.good_clean)
    series: list[Any] = []
    for name in listed:
        points = [clean, *(seen.share(seen.good[name][:, i]) for i in range(len(seen.severities)))]
        series.append(
            {
                "name": _imputation(name),
                "x": [0.0, *(corruptions.get(name).strength(s) for s in seen.severities)],
                "y": [p.value for p in points],
                "low": [p.low for p in points],
                "high": [p.high for p in points],
            }
        )
    data: dict[str, Any] = {"series": series, "xlabel": "share of the values that are missing", "ylabel": seen.measure}
    return Figure(id="corruption.imputation", kind="curve", title="Missing values, and how they are filled", data=data)


# --- the patch --------------------------------------------------------------------------------------------------------


def conclude_patch(answer: Answer, seen: Seen) -> str:
    """Add what the worst patch does to samples that had no part in picking it; return it in words."""
    task = seen.task
    measured = seen.found["corruption.patch.measure"]
    patch, into = worst_patch(task, seen.found)
    labels = task.data.test.y[measured.positions]
    others = labels != into
    turned = others & (measured["answers"] == into)
    share = stats.clopper_pearson(int(turned.sum()), int(others.sum()), task.confidence)
    name = task.classes[into] if into < len(task.classes) else str(into)
    answer.metrics.append(
        metric_of(
            seen,
            "corruption.patch.worst_share",
            share,
            "clopper-pearson",
            n=int(others.sum()),
            kind="lower",
            direction="lower",
            params={"top": patch.top, "left": patch.left, "side": patch.side, "bright": patch.bright, "class": name}
            | {"patches": len(patches_of(task)), "picked_on": len(seen.found["corruption.patch.pick"].positions)},
            detail="" if others.any() else "no sample of another class was right when clean",
        )
    )
    hit = measured.positions[turned]
    if share.low is not None and share.low > TURNS_SOME:
        answer.findings.append(_patch_finding(seen, patch, name, share, hit))
        answer.figures += _patch_gallery(seen, patch, name, hit)
    return (
        f" Of {len(patches_of(task))} small patches, the worst turns {percent(share.value)} of the samples of other classes "
        f"into {name} ({percent(share.low)} to {percent(share.high)})."
    )


def _patch_finding(seen: Seen, patch: Patch, name: str, share: Interval, hit: NDArray[np.int64]) -> Finding:
    surely = share.low is not None and share.low > TURNS
    return Finding(
        severity="high" if surely else "low",
        title=f"One small patch turns {percent(share.value)} of other inputs into {name}",
        detail=f"A {patch}, the same on every image, was picked on other samples and turned {len(hit)} of those it was "
        f"measured on into {name} ({percent(share.low)} to {percent(share.high)}). "
        + (
            "That is how a backdoor looks that was planted in training, or a network that trusts one corner too much: look at "
            "training images of this class, and do not deploy it where others control the input."
            if surely
            else "Small images are sensitive to any patch; that alone is no backdoor."
        ),
        samples=[int(i) for i in seen.task.data.test.ids[hit[:10]]],
    )


def _patch_gallery(seen: Seen, patch: Patch, name: str, hit: NDArray[np.int64]) -> list[Figure]:
    task = seen.task
    if not task.keep_samples or task.data.test.x.shape[1] not in (1, 3):
        return []
    low, high = task.data.box()
    lowest, highest = float(np.min(low)), float(np.max(high))
    items = []
    for position in hit[:4]:
        clean = task.data.test.x[position : position + 1]
        changed = patch.stamp(torch.as_tensor(clean, dtype=torch.float32), low, high).numpy()
        images = [figures.unit(image[0], lowest, highest) for image in (clean, changed)]
        items.append(
            figures.Item(int(task.data.test.ids[position]), images, f"{label_of(task, int(position))} is taken for {name}")
        )
    return (
        [figures.gallery("corruption.patch", "One patch, the same on every image", ["clean", "with the patch"], items)]
        if items
        else []
    )


# --- samples that a person can look at --------------------------------------------------------------------------------


def galleries(seen: Seen) -> list[Figure]:
    """Show one or two samples under every corruption, at most seven pictures a row."""
    task = seen.task
    if not task.keep_samples or task.data.kind != "image" or task.data.test.x.shape[1] not in (1, 3):
        return []
    low, high = task.data.box()
    rows = [figures.unit(image, float(np.min(low)), float(np.max(high))) for image in _examples(seen)]
    panels = ["clean", *(title_of(name) for name in seen.names)]
    positions = seen.positions[:GALLERY]
    out = []
    for start in range(0, len(panels), PANELS):
        shown = slice(start, start + PANELS)
        items = [
            figures.Item(int(task.data.test.ids[p]), [row[i] for row in rows[shown]], label_of(task, int(p)))
            for i, p in enumerate(positions)
        ]
        part = "" if start == 0 else f"_{start // PANELS + 1}"
        title = f"What each corruption does, at severity {seen.severities[seen.at]}"
        out.append(
            figures.gallery(f"corruption.examples{part}", title if start == 0 else f"{title} (more)", panels[shown], items)
        )
    return out


def rows_shown(seen: Seen) -> list[Table]:
    """Show one row of a table under every corruption."""
    task = seen.task
    if not task.keep_samples or task.data.kind != "table" or not seen.n:
        return []
    rows = _examples(seen)
    title = f"Row {int(seen.ids[0])} under each corruption, at severity {seen.severities[seen.at]}"
    columns = ["column", "clean", *(title_of(name) for name in seen.names)]
    cells: list[list[Any]] = [
        [column, *(finite(float(f"{float(row[0][i]):.5g}")) for row in rows)]
        for i, column in enumerate(task.data.columns[:SHOWN_COLUMNS])
    ]
    return [Table(id="corruption.row", title=title, columns=columns, rows=cells)]


def _examples(seen: Seen) -> list[NDArray[np.float64]]:
    """Return the first samples, clean and under each corruption."""
    task, apply = seen.task, Apply(seen.task)
    positions = seen.positions[:GALLERY]
    x = torch.as_tensor(task.data.test.x[positions], dtype=torch.float32)
    ids = torch.as_tensor(task.data.test.ids[positions])
    severity = seen.severities[seen.at]
    changed = [apply(name, x, severity, apply.draws(name, x, ids)) for name in seen.names]
    return [image.double().numpy() for image in (x, *changed)]
