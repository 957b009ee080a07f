"""Asks whether inputs that the network was never made for would be noticed, by detectors that are put to the test."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from audit.anomaly import names as detector_names
from audit.checks.anomaly_conclusion import Conclusion, sentence
from audit.checks.anomaly_trials import Trial, fitting, too_little
from audit.checks.base import Answer, Check, CheckOptions, Found, MetricDoc, Stage, Task, check
from audit.errors import closest
from audit.result import CheckResult


class AnomalyOptions(CheckOptions):
    """``[anomaly]``."""

    detectors: list[str] = Field(
        default_factory=lambda: ["autoencoder", "knn", "isolation_forest", "pca"],
        description="detectors to try; alarms and examples are the first one's",
    )
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="false-alarm rate that the threshold is set for")
    rows: int | None = Field(
        default=None, ge=1, description="reference samples to fit and calibrate on at most; unstated: by profile"
    )
    held_out_classes: int | None = Field(
        default=None, ge=0, description="classes left out in turn, one fit each; unstated: by profile"
    )

    @field_validator("detectors")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in detector_names():
                raise ValueError(f"no detector {name!r}; {closest(name, detector_names())}")
        if len(set(value)) != len(value) or not value:
            raise ValueError("name each detector once")
        return value


def _doc(measure: str, what: str, interval: str, source: str, bias: str, direction: str = "higher") -> MetricDoc:
    return MetricDoc(
        id=f"anomaly.<detector>.{measure}",
        definition=what,
        unit="fraction",
        range="0 to 1",
        interval=interval,
        bias=bias,
        source=source,
        direction=direction,
    )


AUROC = "DeLong's variance as an effective number of draws, Clopper–Pearson"
MADE_UP = "anomalies that were made up are easier, or harder, than those that will come"


@check
class Anomaly(Check):
    """Detectors fitted on the reference part, with a split-conformal threshold, tried on what should be noticed."""

    id = "anomaly"
    question = "Would we notice inputs that the network was never made for?"
    Options = AnomalyOptions
    metrics: ClassVar = (
        _doc(
            "auroc",
            "chance that the detector scores an anomaly higher than a test sample; against labelled anomalies where there are "
            "any, else classes held out (three or more classes), else corrupted images or rows of shuffled columns: "
            "`params` says which",
            AUROC,
            "DeLong et al. 1988; Korn & Graubard 1998",
            MADE_UP,
        ),
        _doc(
            "average_precision",
            "precision averaged over the recall of the same anomalies among the test samples; without skill it is their share",
            "bootstrap, at least as wide as Clopper–Pearson over the anomalies",
            "Boyd, Eng & Page 2013",
            "depends on the share of anomalies, which is not the share in use; a little too high with few of them",
        ),
        _doc(
            "detection_rate",
            "share of the same anomalies above the threshold",
            "Clopper–Pearson",
            "Clopper & Pearson 1934",
            MADE_UP,
        ),
        _doc(
            "false_alarm_rate",
            "share of the test samples above the threshold, which held-out reference samples set for `anomaly.alpha`",
            "Clopper–Pearson over the test samples",
            "Vovk, Gammerman & Shafer 2005; Clopper & Pearson 1934",
            "none for samples like the test part",
            "lower",
        ),
        _doc(
            "<against>.auroc",
            "as `auroc`, against each other kind: `corrupted`, `shuffled`, `held_out`, `adversarial_<norm>` (this run's own "
            "adversarial examples)",
            AUROC,
            "DeLong et al. 1988; Korn & Graubard 1998",
            MADE_UP,
        ),
        _doc(
            "<against>.detection_rate",
            "share of that kind above the threshold",
            "Clopper–Pearson",
            "Clopper & Pearson 1934",
            MADE_UP,
        ),
    )

    def not_applicable(self, task: Task) -> str | None:
        """Return why there is nothing to fit on, or None."""
        if task.data.reference is None:
            return "detectors are fitted on the data that the network was trained on: give it with --reference"
        if not np.issubdtype(task.data.test.x.dtype, np.number):
            return "the inputs are not numbers"
        return None

    def stages(self, task: Task) -> list[Stage]:
        """List what is fitted and scored for each detector."""
        if too_little(task):
            return []
        return [stage for name in fitting(task) for stage in Trial(task, name).stages()]

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Turn scores into metrics, evidence, findings and figures."""
        answer = Answer(type(self))
        reason = too_little(task)
        if reason is not None:
            answer.reasons.append(reason)
            return answer.result(task, "No detector was fitted.")
        Conclusion(task, found, answer).draw()
        return answer.result(task, sentence(task, answer))
