"""What the explanation check says of a table's columns: importance, agreement, flips, leaks, and curves of dependence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import stats
from audit.checks.base import Answer, Found, Task, spread_positions
from audit.checks.explanation_plan import Plan
from audit.explain import faithfulness
from audit.explain.base import Floats
from audit.result import Figure, Finding, Metric, Table, finite, slug, slugs
from audit.stats import Interval

TOP = 3
RESAMPLES = 500
LEANS = 0.5  # see _leak
ICE_SHOWN = 20


def conclude_columns(answer: Answer, plan: Plan, found: Found, asked: Mapping[str, object]) -> list[str]:
    """Add what shuffling, flipping and moving single columns showed; return sentences."""
    importance = _importance(answer, plan, found)
    _leak(answer, plan, found)
    _curves_of_dependence(answer, plan, found)
    return [importance, _agreement(answer, plan, found, asked), _flips(answer, plan, found)]


def _importance(answer: Answer, plan: Plan, found: Found) -> str:
    task, rise, names = plan.task, found["explanation.columns"]["rise"], column_names(plan.task)
    intervals = [faithfulness.mean_interval(row, task.confidence) for row in rise]
    order = np.argsort(-rise.mean(axis=1), kind="stable")
    loss = "mean absolute error" if task.model.task == "regression" else "share of wrong answers"
    rows: list[list[Any]] = [
        [names[j], intervals[j].value, intervals[j].low, intervals[j].high, finite(found["explanation.columns"]["alone"][j])]
        for j in order
    ]
    answer.tables.append(
        Table(
            id="explanation.importance",
            title=f"Permutation importance: by how much the {loss} rises when a column is shuffled "
            f"({rise.shape[1]} samples, {plan.effort.repeats} shuffles)",
            columns=["column", "rise", "low", "high", "score of the column alone"],
            rows=rows,
        )
    )
    top = order[:20]
    answer.figures.append(
        Figure(
            id="explanation.importance",
            kind="forest",
            title="Which columns the network cannot do without",
            data={
                "labels": [names[j] for j in top],
                "values": [intervals[j].value for j in top],
                "low": [intervals[j].low for j in top],
                "high": [intervals[j].high for j in top],
                "xlabel": f"rise of the {loss} when the column is shuffled",
                "ylabel": "column",
                "reference": 0.0,
                "reference_label": "no rise",
            },
        )
    )
    return f"It leans most on {listed([names[j] for j in order[:TOP]])} (shuffled one at a time)."


def _agreement(answer: Answer, plan: Plan, found: Found, asked: Mapping[str, object]) -> str:
    """Compare the strongest columns by SHAP, LIME and permutation importance."""
    names, width = column_names(plan.task), plan.task.data.test.x.shape[1]
    shap = next((name for name in asked if name.startswith("shap")), None)
    if shap is None or "lime" not in asked or width <= TOP or not len(plan.tested(found)):
        if width > TOP:
            answer.not_tested.append("whether SHAP, LIME and permutation importance agree: they were not all asked")
        return ""
    strengths = {}
    for name in (shap, "lime"):
        stage = found[f"explanation.{plan.slugs[name]}"]
        strengths[name] = np.abs(stage["values"][np.searchsorted(stage.positions, plan.tested(found))].astype(np.float64))
    strengths["permutation importance"] = found["explanation.columns"]["rise"].T
    if not all(np.isfinite(values).all() for values in strengths.values()):
        answer.not_tested.append("whether SHAP, LIME and permutation importance agree: one of them failed")
        return ""
    tops = {name: _top(values) for name, values in strengths.items()}
    interval = _overlap_interval(list(strengths.values()), plan)
    answer.metrics.append(
        metric(plan, "agreement.top3", interval, len(plan.tested(found)), method="percentile bootstrap",
                params={"headline": True, **{name: [names[j] for j in top] for name, top in tops.items()}})
    )  # fmt: skip
    told = "; ".join(f"{name}: {', '.join(names[j] for j in top)}" for name, top in tops.items())
    if interval.value == 1:
        return f"SHAP, LIME and permutation importance name the same three strongest columns ({told})."
    names_of = {name: set(top) for name, top in tops.items()}
    odd = [name for name in tops if len({frozenset(top) for other, top in names_of.items() if other != name}) == 1]
    who = f"{odd[0]} names other columns than the two others do" if len(odd) == 1 else "no two name the same"
    answer.findings.append(
        Finding(
            severity="low",
            title="SHAP, LIME and permutation importance disagree on the three strongest columns",
            detail=f"{told}: {who}. They ask different questions (what moves the output, what a line around the sample "
            "says, what the accuracy rests on): do not rest a decision on the ranking of one of them.",
        )
    )
    return f"SHAP, LIME and permutation importance disagree on the three strongest columns ({told}: {who})."


def _overlap_interval(strengths: list[Floats], plan: Plan) -> Interval:
    generator, draws = np.random.default_rng(plan.task.seed), []
    for _ in range(RESAMPLES):
        paired = generator.integers(0, len(strengths[0]), len(strengths[0]))
        others = generator.integers(0, len(strengths[2]), len(strengths[2]))
        draws.append(_overlap([strengths[0][paired], strengths[1][paired], strengths[2][others]]))
    value, tail = _overlap(strengths), (1 - plan.task.confidence) / 2
    low, high = (float(v) for v in np.quantile(draws, [tail, 1 - tail]))
    return Interval(value, min(low, value), max(high, value))


def _overlap(strengths: list[Floats]) -> float:
    tops = [set(_top(values)) for values in strengths]
    return float(np.mean([len(tops[i] & tops[j]) / TOP for i in range(3) for j in range(i)]))


def _top(strength: Floats) -> list[int]:
    return [int(j) for j in np.argsort(-strength.mean(axis=0), kind="stable")[:TOP]]


def _flips(answer: Answer, plan: Plan, found: Found) -> str:
    """Add the share of decisions that each binary column changes when it alone is flipped."""
    task, names = plan.task, column_names(plan.task)
    binary = plan.binary()
    if not binary:
        return ""
    changed, n = found["explanation.flips"]["changed"], len(task.data.test)
    parts, shares = slugs(names[j] for j in binary), {}
    for index, (column, values) in enumerate(binary.items()):
        name = names[column]
        share = stats.clopper_pearson(int(changed[:, index].sum()), n, task.confidence)
        shares[name] = share
        sensitive = _is_sensitive(task, name)
        params: dict[str, Any] = {"column": name, "values": list(values), "sensitive": sensitive}
        if sensitive:
            params["headline"] = True
        flipped = f"explanation.{parts[name]}.flipped"
        flips = metric(plan, f"{parts[name]}.flip_share", share, n, method="clopper-pearson", direction="lower", params=params)
        answer.metrics.append(flips.model_copy(update={"outcome": flipped}))
        answer.outcomes[flipped] = changed[:, index]
        if sensitive and share.value:
            _sensitive_finding(answer, task, name, share, changed[:, index])
    answer.figures.append(
        Figure(
            id="explanation.flips",
            kind="bars",
            title="Decisions that change when one column alone is flipped",
            data={
                "labels": list(shares),
                "values": [s.value for s in shares.values()],
                "low": [s.low for s in shares.values()],
                "high": [s.high for s in shares.values()],
                "n": [n] * len(shares),
                "xlabel": "share of decisions that change",
                "ylabel": "column",
            },
        )
    )
    told = [f"flipping {name} alone changes {s.value:.2%}" for name, s in shares.items() if _is_sensitive(task, name)]
    return f"Of the decisions, {listed(told)}." if told else ""


def _sensitive_finding(answer: Answer, task: Task, name: str, share: Interval, changed: NDArray[np.bool_]) -> None:
    answer.findings.append(
        Finding(
            severity="medium" if (share.low or 0) >= 0.01 else "low",
            title=f"Flipping {name} alone changes {share.value:.1%} of the decisions",
            detail=f"Everything else stays as it is, so these decisions rest on {name} itself "
            f"({task.confidence:.0%} interval {share.low:.2%} to {share.high:.2%}). Columns that go with {name} are not "
            "counted: it may weigh more through them.",
            samples=[int(i) for i in task.data.test.ids[np.flatnonzero(changed)[:10]]],
        )
    )


def _leak(answer: Answer, plan: Plan, found: Found) -> None:
    """Report columns that look like the answer itself, and say whether the network leans on them."""
    stage, names, task = found["explanation.columns"], column_names(plan.task), plan.task
    leaks = [int(j) for j in stage["suspects"]]
    if np.isnan(stage["alone"]).all():
        answer.not_tested.append("whether one column alone gives the answer away: too many columns, or too few labels to tell")
    if not leaks:
        return
    y = task.data.test.y[stage.positions]
    guess = (
        float(np.abs(y - np.median(y)).mean()) if task.model.task == "regression" else 1 - float(np.bincount(y).max()) / len(y)
    )
    room = guess - float(stage["loss"].mean())
    lost = faithfulness.mean_interval(stage["together"][0], task.confidence)
    leans = room > 0 and lost.low is not None and lost.low >= LEANS * room
    score = float(stage["alone"][leaks].max())
    rest = float(np.nanmax(np.delete(stage["alone"], leaks)))
    what = "R²" if task.model.task == "regression" else "balanced accuracy above guessing"
    told = (
        f"A small tree that sees {listed([names[j] for j in leaks])} alone reaches {score:.3f} ({what}); the best other "
        f"column {rest:.3f}. "
    )
    if leans:
        detail = (
            f"{told}Shuffled, it costs the network {(lost.value or 0) / room:.0%} of what it does better than guessing. Such a "
            "column is often written down after the answer is known: if it cannot be there when the network has to decide, "
            "every figure of this audit is too good. If it can, a rule would do."
        )
    else:
        detail = f"{told}The network hardly leans on it: shuffling it does little."
    title = f"{listed([names[j] for j in leaks])} look{'s' if len(leaks) == 1 else ''} like the answer itself"
    answer.findings.append(Finding(severity="high" if leans else "info", title=title, detail=detail))


def _curves_of_dependence(answer: Answer, plan: Plan, found: Found) -> None:
    stage, names, task = found["explanation.dependence"], column_names(plan.task), plan.task
    target = plan.curve_class(found)
    ylabel = "output" if task.model.task == "regression" else f"probability of {task.classes[target]}"
    shown = spread_positions(len(stage.positions), ICE_SHOWN if task.keep_samples else 0)
    for row, column in enumerate(stage["columns"]):
        known = np.isfinite(stage["grid"][row])
        grid, lines = [float(v) for v in stage["grid"][row][known]], stage["lines"][row][:, known]
        whole = lines[np.isfinite(lines).all(axis=1)]
        mean = whole.mean(axis=0) if len(whole) else np.full(len(grid), np.nan)
        series: list[Any] = [{"name": "mean of all (partial dependence)", "x": grid, "y": [finite(v) for v in mean]}]
        series += [{"name": f"sample {i}", "x": grid, "y": [finite(v) for v in lines[i]], "faint": True} for i in shown]
        answer.figures.append(
            Figure(
                id=f"explanation.dependence_{slug(names[column])}",
                kind="curve",
                title=f"How the answer moves with {names[column]}, all else as it is",
                data={"series": series, "xlabel": names[column], "ylabel": ylabel},
            )
        )


# --- words ------------------------------------------------------------------------------------------------------------


def column_names(task: Task) -> list[str]:
    """Return the names of the columns, made up from their numbers where they have none."""
    width = task.data.test.x.shape[1]
    return list(task.data.columns) or [f"column {j}" for j in range(width)]


def _is_sensitive(task: Task, column: str) -> bool:
    return column in task.data.test.sensitive


def listed(names: list[str]) -> str:
    """Return names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def metric(
    plan: Plan,
    measure: str,
    interval: Interval,
    n: int,
    *,
    method: str = "student-t",
    direction: Any = "higher",
    params: dict[str, Any] | None = None,
    detail: str = "",
) -> Metric:
    """Return a metric of the check, ``explanation.<measure>``."""
    return Metric(
        id=f"explanation.{measure}",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        confidence=plan.task.confidence,
        n=n,
        method=method,
        direction=direction,
        params=params or {},
        detail=detail,
    )
