"""Asks what the network looks at when it decides, and whether the explanations that say so can be believed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from audit.checks.base import (
    Answer,
    Check,
    CheckOptions,
    Found,
    MetricDoc,
    Stage,
    Task,
    check,
    predictions,
    repeatability,
    repeatability_evidence,
)
from audit.checks.explanation_columns import conclude_columns
from audit.checks.explanation_judged import judge, methods_sentence
from audit.checks.explanation_plan import Plan
from audit.checks.explanation_shown import show_curves, show_samples
from audit.errors import UsageError
from audit.explain import get
from audit.explain.base import NOT_OF_LABELS, OUTPUTS
from audit.result import CheckResult

# Figures in the order in which a reader wants them: what it leans on, whether that can be believed, then single answers.
ORDER = tuple(f"explanation.{name}" for name in ("importance", "deletion", "heat_maps", "flips", "sample", "dependence"))


class ExplanationOptions(CheckOptions):
    """``[explanation]``."""

    methods: list[str] | None = Field(default=None, description="explainers to ask; unstated: by kind of data and profile")
    samples: int | None = Field(default=None, ge=2, le=10_000, description="samples that methods are tested on; by profile")
    show: int = Field(default=3, ge=0, le=20, description="samples to show of each group: right, wrong, uncertain")
    background: int | None = Field(default=None, ge=2, le=10_000, description="baseline rows; unstated: by profile")
    output: str = Field(default="logits", description="what is explained: logits or probabilities")

    @field_validator("methods", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) or value is None else [value]

    @field_validator("methods")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        for name in value:
            try:
                get(name)
            except UsageError as error:
                raise ValueError(str(error)) from None
        if len(set(value)) != len(value) or not value:
            raise ValueError("name each method once, and at least one")
        return value

    @field_validator("output")
    @classmethod
    def _one_of(cls, value: str) -> str:
        if value not in OUTPUTS:
            raise ValueError(f"output is one of {', '.join(OUTPUTS)}, got {value!r}")
        return value


@check
class Explanation(Check):
    """Attributions by several methods, each put to the test, and for tables what single columns do."""

    id = "explanation"
    question = "What does it look at when it decides, and can that explanation be believed?"
    Options = ExplanationOptions
    metrics: ClassVar = (
        MetricDoc(
            id="explanation.<method>.faithfulness",
            definition="how much lower the deletion curve of a method lies than those of random rankings of the same sample: "
            "mean difference of the probability of the predicted class, over steps at which the inputs that the method calls "
            "most important were replaced by the baseline's; for regression, difference of the move of the output as a share "
            "of the outputs' standard deviation",
            unit="fraction",
            range="-1 to 1 (regression: any); 0 is a random ranking",
            interval="Student's t over samples; none below 10 samples",
            bias="depends on what replaces an input, and replaced inputs may be like none that the network knows",
            source="Petsiuk, Das & Saenko (2018), BMVC; Samek et al. (2017), IEEE TNNLS 28:2660",
        ),
        MetricDoc(
            id="explanation.<method>.stability",
            definition="mean rank correlation of the attributions of a sample under two seeds, which draw other baseline rows "
            "and all else that the method draws; only for methods that depend on any draw",
            unit="fraction",
            range="-1 to 1",
            interval="Student's t over samples; none below 10 samples",
            bias="two seeds for all samples; inputs that are always equal agree for nothing",
            source="Spearman (1904), American Journal of Psychology 15:72",
        ),
        MetricDoc(
            id="explanation.<method>.completeness_gap",
            definition="share of the output's change from the baseline that the attributions leave over: mean of |sum of "
            "values − change| / mean of |change|; only for methods whose values promise to add up",
            unit="fraction",
            range="0 and more",
            interval="ratio of means, linearised, Student's t over samples; none below 10 samples",
            bias="says nothing of Kernel SHAP and permutation SHAP, whose values are made to add up",
            source="Sundararajan, Taly & Yan (2017), ICML, proposition 1; Lundberg & Lee (2017), NeurIPS, property 1",
            direction="lower",
        ),
        MetricDoc(
            id="explanation.agreement.top3",
            definition="mean share of the three strongest columns that two of SHAP, LIME and permutation importance have in "
            "common, over the three pairs; strength is the mean size of the values over samples, or the rise of the loss",
            unit="fraction",
            range="0 to 1",
            interval="percentile bootstrap over samples, fixed seed, widened to hold the value",
            bias="low where columns stand in for each other, or where the third and the fourth are about equally strong",
            source="Krishna et al. (2024), TMLR, top-k feature agreement; Efron & Tibshirani (1993), section 13.3",
        ),
        MetricDoc(
            id="explanation.<column>.flip_share",
            definition="share of the decisions that change when one column of two values alone takes its other value",
            unit="fraction",
            range="0 to 1",
            interval="Clopper–Pearson over samples",
            bias="the row with the flipped value may be like no row that there is, and other columns may stand in for this one",
            source="Galhotra, Brun & Meliou (2017), ESEC/FSE (causal discrimination); Clopper & Pearson 1934",
            direction="lower",
        ),
    )

    def not_applicable(self, task: Task) -> str | None:
        """Return why nothing can be explained, or None."""
        if task.model.task == "multilabel":
            return NOT_OF_LABELS
        if int(np.prod(task.data.test.x.shape[1:])) < 2:
            return "there is one input only, so that there is nothing to compare"
        plan = Plan(task)
        if not plan.explainers and task.data.kind != "table":
            return "; ".join(plan.left_out) or "no method fits this network"
        return None

    def stages(self, task: Task) -> list[Stage]:
        """List the work: each method with its repetition and on shuffled weights, the curves, and single columns."""
        plan = Plan(task)
        listed = [predictions(task, cost_of="explanation.predictions"), *repeatability(task, self.id)]
        for name in plan.explainers:
            listed += plan.method_stages(name)
        if plan.explainers:
            listed.append(plan.curves())
        if task.data.kind == "table":
            listed += plan.column_stages()
        return listed

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn attributions into what they are worth, and show some."""
        answer, plan = Answer(type(self)), Plan(task)
        answer.evidence += repeatability_evidence(self.id, task, found)
        judged = {name: judge(answer, plan, found, name) for name in plan.explainers}
        sentences = [methods_sentence(plan, judged)]
        if plan.explainers:
            show_curves(answer, plan, found, judged)
            show_samples(answer, plan, found, judged)
        if task.data.kind == "table":
            sentences += conclude_columns(answer, plan, found, judged)
        answer.figures.sort(
            key=lambda figure: next((i for i, name in enumerate(ORDER) if figure.id.startswith(name)), len(ORDER))
        )
        answer.reasons += [text for text in plan.left_out if "pip install" in text]
        answer.not_tested += [*plan.left_out, *_not_tested(task)]
        return answer.result(task, " ".join(s for s in sentences if s))


def _not_tested(task: Task) -> list[str]:
    listed = ["whether a person finds the explanations helpful, and concepts that no single input stands for"]
    if task.data.kind == "table":
        listed += [
            "whether the rows with a shuffled, flipped or moved column could exist: columns that go together were taken apart"
        ]
        if task.model.task == "regression":
            listed.append("flips of single columns: a decision is needed, and this network returns a number")
    if task.data.reference is None:
        listed.append("baseline rows from the training data: no reference part was given, so test samples stand in")
    return listed
