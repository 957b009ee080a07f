"""Shows what the explainers said: deletion curves, heat maps over images, signed bars for rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import softmax

from audit.checks.base import Answer, Found, Task
from audit.checks.explanation_columns import TOP, column_names
from audit.checks.explanation_judged import Judged
from audit.checks.explanation_plan import Plan
from audit.explain import faithfulness, pictures
from audit.result import Figure, Table


def show_curves(answer: Answer, plan: Plan, found: Found, judged: dict[str, Judged]) -> None:
    """Add the deletion and insertion curves of each method beside random rankings."""
    arrays = found["explanation.curves"].arrays
    if not len(found["explanation.curves"].positions):
        return
    rows: list[list[Any]] = []
    for direction, title in (
        ("deletion", "How fast the answer falls when what a method calls important is taken away"),
        ("insertion", "How fast the answer comes back when what a method calls important is put in"),
    ):
        names = {**{plan.slugs[name]: name for name in judged}, "random": "random rankings"}
        series: list[Any] = []
        for part, name in names.items():
            scores = arrays[f"{part}.{direction}"]
            scores = scores[np.isfinite(scores).all(axis=1)]
            if len(scores):
                steps = scores.shape[1] - 1
                mean = scores.mean(axis=0)
                series.append({"name": name, "x": [s / steps for s in range(steps + 1)], "y": [float(v) for v in mean]})
                better = faithfulness.area(scores) - faithfulness.area(arrays[f"random.{direction}"][: len(scores)])
                sign = -1 if direction == "deletion" else 1
                interval = faithfulness.mean_interval(sign * better, plan.task.confidence)
                if part != "random":
                    rows.append([name, direction, float(scores[:, 1:].mean()), *interval])
        score = "1 − move of the output / spread" if plan.task.model.task == "regression" else "probability of the answer"
        answer.figures.append(
            Figure(
                id=f"explanation.{direction}",
                kind="curve",
                title=title,
                data={
                    "series": series,
                    "xlabel": "share of the inputs " + ("taken away" if direction == "deletion" else "put in"),
                    "ylabel": score,
                },
            )
        )
    answer.tables.append(
        Table(
            id="explanation.curves",
            title="Deletion and insertion: mean of the curve, and by how much it beats random rankings",
            columns=["method", "curve", "mean", "beats random by", "low", "high"],
            rows=rows,
        )
    )


def show_samples(answer: Answer, plan: Plan, found: Found, judged: dict[str, Judged]) -> None:
    """Add heat maps over images, or signed bars for rows, of the samples that are shown."""
    task, data = plan.task, plan.task.data
    groups = plan.shown(found)
    samples = [
        replace(_explained(plan, found, judged, int(position)), caption=f"{group}: {_caption(task, found, int(position))}")
        for group, positions in groups.items()
        for position in positions
    ]
    samples = [sample for sample in samples if sample.told]
    if not samples:
        return
    if pictures.can_be_drawn(data.test.x.shape[1:]):
        low, high = pictures.value_range(data)
        title = "What the network looks at: red speaks for its answer, blue against it (saliency and Grad-CAM know no against)"
        answer.figures.append(pictures.heat_maps("explanation.heat_maps", title, samples, low, high))
    elif data.kind == "table":
        names = column_names(task)
        for sample in samples:
            told = _main(sample)
            title = f"Sample {sample.id} ({sample.caption}), by {told.method}"
            answer.figures.append(
                pictures.signed_bars(f"explanation.sample_{sample.id}", title, sample, told, names, _output_name(task))
            )
        answer.tables.append(_strongest_table(samples, names))


def _explained(plan: Plan, found: Found, judged: dict[str, Judged], position: int) -> pictures.Explained:
    told = []
    for name, judgement in judged.items():
        stage = found[f"explanation.{plan.slugs[name]}"]
        row = int(np.searchsorted(stage.positions, position))
        values = stage["values"][row].astype(np.float64)
        if np.isfinite(values).all():
            told.append(pictures.Told(judgement.used, values, judgement.believed, plan.explainers[name].signed))
    test = plan.task.data.test
    return pictures.Explained(int(test.ids[position]), test.x[position], "", tuple(told))


def _caption(task: Task, found: Found, position: int) -> str:
    label = task.data.test.y[position]
    if task.model.task == "regression":
        return f"says {found['predictions.test']['values'][position]:.4g}, is {label:.4g}"
    p = softmax(found["predictions.test"]["logits"][position].astype(np.float64))
    says, names = int(p.argmax()), task.classes
    return f"says {names[says]} ({p[says]:.0%})" + ("" if says == int(label) else f", is {names[int(label)]}")


def _main(sample: pictures.Explained) -> pictures.Told:
    """Return what the method says whose bars are shown: SHAP where it is believed, else the first that is."""
    order = sorted(
        sample.told, key=lambda told: (not told.believed, not told.method.startswith("shap"), told.method == "saliency")
    )
    return order[0]


def _strongest_table(samples: list[pictures.Explained], names: list[str]) -> Table:
    rows: list[list[Any]] = []
    for sample in samples:
        for told in sample.told:
            order = np.argsort(-np.abs(told.values), kind="stable")[:TOP]
            rows.append([sample.id, told.method, ", ".join(f"{names[j]} ({told.values[j]:+.3g})" for j in order)])
    return Table(
        id="explanation.samples",
        title="The strongest columns of each sample shown, method by method",
        columns=["sample", "method", "strongest columns"],
        rows=rows,
    )


def _output_name(task: Task) -> str:
    return "output" if task.model.task == "regression" else "logit" if task.options.output == "logits" else "probability"
