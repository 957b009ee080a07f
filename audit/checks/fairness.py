"""Asks whether the network treats groups of people alike: who is selected, who is wrongly treated, who is served worst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from audit import stats
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
from audit.errors import UsageError, closest
from audit.result import CheckResult, Evidence, Figure, Finding, Table, finite

if TYPE_CHECKING:
    from audit.fairness.groups import Attribute
    from audit.fairness.metrics import Assessment, Rate

NO_CLASS = -1  # the prediction of a sample whose logits are not finite: never selected, never right
BASE_RATE_GAP = 0.05
MOST_WARNED = 8


class FairnessOptions(CheckOptions):
    """The section ``[fairness]`` of audit.toml."""

    min_group_size: int = Field(30, ge=1, description="a smaller group leaves the check incomplete")
    min_labelled: int | None = Field(
        None, ge=1, description="the same for people with, or without, the label of a class; a third of min_group_size"
    )
    positive: int | str | None = Field(None, description="class that counts as selected: its number or name; 1 of two classes")
    bins: dict[str, list[float]] = Field(default_factory=dict, description="attribute to the edges of its ranges")
    names: dict[str, dict[str, str]] = Field(
        default_factory=dict, description='what groups are called: {sex = {"0" = "women", "1" = "men"}}'
    )
    intersections: bool = Field(True, description="also compare groups by all pairs of attributes")
    attributes: list[str] | None = Field(None, description="sensitive attributes to use; all where not stated")
    gap: float = Field(0.1, ge=0, le=1, description="a difference between groups is reported when it is surely larger")


@check
class Fairness(Check):
    """Differences between groups in selection, in errors and in accuracy."""

    id = "fairness"
    question = "Does the network treat groups of people alike?"
    Options = FairnessOptions
    metrics = (
        MetricDoc(
            "fairness.<attribute>.demographic_parity_difference",
            "Largest difference between two groups in the share of people who are predicted as the positive class. With more "
            "than two classes and none stated, the largest over the classes, each against the rest.",
            "fraction",
            "0 to 1",
            "the largest limits of the differences of all ordered pairs of groups (Bonferroni or MOVER over Clopper–Pearson), "
            "the lower one corrected for the number of pairs, both for that of classes (Bonferroni)",
            "The value is biased upward where groups are many or small; the interval allows for that. Differences that the "
            "labels justify count, too.",
            "Agarwal et al. (2018), ICML; Zou & Donner (2008), Statistics in Medicine 27:1693",
            direction="lower",
        ),
        MetricDoc(
            "fairness.<attribute>.equalized_odds_difference",
            "Largest difference between two groups in the true positive rate or in the false positive rate, whichever is "
            "larger; over classes as for demographic parity. A group in which a rate is undefined leaves the value to the "
            "others and the upper limit at 1.",
            "fraction",
            "0 to 1",
            "as for demographic parity, corrected for both rates",
            "The value is biased upward where groups are many or small. It takes the labels for the truth: biased labels hide "
            "from it.",
            "Hardt, Price & Srebro (2016), NeurIPS; Zou & Donner (2008), Statistics in Medicine 27:1693",
            direction="lower",
        ),
        MetricDoc(
            "fairness.<attribute>.worst_group_accuracy",
            "Accuracy in the group where it is lowest.",
            "fraction",
            "0 to 1",
            "the smallest limits of Clopper–Pearson, the upper one with Bonferroni over the groups",
            "The value is biased downward: the lowest of several noisy figures. The interval allows for that.",
            "Sagawa et al. (2020), ICLR; Clopper & Pearson (1934), Biometrika 26:404",
        ),
    )

    def not_applicable(self, task: Task) -> str | None:
        """Only classifiers with sensitive attributes can be asked."""
        if not task.data.test.sensitive:
            return "no sensitive attributes are known: name them with --sensitive COLUMN,COLUMN"
        if task.model.task == "regression":
            return "group fairness is measured for classification only; this network returns numbers"
        if task.model.task == "multilabel":
            return (
                "group fairness is measured for one label at a time, and this network tells several: audit a module that "
                "returns the logit of one of them, with that label as y"
            )
        return None

    def preflight(self, task: Task) -> None:
        """Check attributes, bins and positive class before any work."""
        from audit.fairness.groups import make_attributes

        options = task.options
        make_attributes(
            _sensitive(task),
            bins=options.bins,
            names=options.names,
            intersections=options.intersections,
            min_group_size=options.min_group_size,
        )
        if task.model.classes:
            _positive(task)

    def stages(self, task: Task) -> list[Stage]:
        """Share the clean predictions, and the test whether they can be repeated, with all other checks."""
        return [predictions(task), *repeatability(task, self.id)]

    def conclude(self, task: Task, found: Found) -> CheckResult:
        """Count by group, and report what surely differs."""
        from audit.fairness.metrics import assess

        test, options = task.data.test, task.options
        logits = found["predictions.test"].spread("logits", len(test), np.nan)
        known = np.isfinite(logits).all(axis=1)
        predicted = np.where(known, np.where(known[:, None], logits, 0.0).argmax(axis=1), NO_CLASS)
        names = {label: _class_name(task, label) for label in sorted({*range(logits.shape[1]), *test.y.tolist()})}
        assessed = assess(
            test.y,
            predicted,
            _sensitive(task),
            positive=_positive(task),
            min_group_size=options.min_group_size,
            min_labelled=options.min_labelled,
            bins=options.bins,
            names=options.names,
            intersections=options.intersections,
            confidence=task.confidence,
            labels=names,
        )
        answer = Answer(type(self))
        answer.metrics += assessed.metrics
        if len(assessed.positives) == 1:
            answer.outcomes["fairness.selected"] = predicted == assessed.positives[0]
        _judge(answer, assessed, known)
        answer.evidence += repeatability_evidence(self.id, task, found)
        reported = _report_gaps(answer, task, assessed, predicted, names)
        _report_base_rates(answer, task, assessed, names)
        _report_cuts(answer, assessed)
        _draw(answer, task, assessed, names)
        _tell_limits(answer, task, assessed)
        return answer.result(task, _answer_text(task, assessed, reported))


# --- what was asked ---------------------------------------------------------------------------------------------------


def _sensitive(task: Task) -> Mapping[str, NDArray[np.str_]]:
    sensitive = task.data.test.sensitive
    wanted = task.options.attributes
    if wanted is None:
        return sensitive
    for name in wanted:
        if name not in sensitive:
            raise UsageError(
                f"fairness.attributes names {name!r}, which is no sensitive attribute; {closest(name, list(sensitive))}"
            )
    return {name: sensitive[name] for name in wanted}


def _positive(task: Task) -> int | None:
    """Return the number of the positive class: as stated, 1 of two classes, else None for each against the rest."""
    stated, count = task.options.positive, task.model.classes or len(task.classes)
    if stated is None:
        return 1 if count == 2 else None
    if isinstance(stated, str) and stated in task.classes:
        return task.classes.index(stated)
    if isinstance(stated, int) or stated.isdigit():
        if 0 <= int(stated) < count:
            return int(stated)
        raise UsageError(f"fairness.positive should be a class from 0 to {count - 1}, got {stated}")
    raise UsageError(f"fairness.positive names no class: {stated!r}; {closest(stated, task.classes)}")


def _class_name(task: Task, label: int) -> str:
    return task.classes[label] if 0 <= label < len(task.classes) else str(label)


# --- tests of the measurement -----------------------------------------------------------------------------------------


def _judge(answer: Answer, assessed: Assessment, known: NDArray[np.bool_]) -> None:
    """Say for each attribute whether enough is known of its groups, since one that is weak says nothing of the others."""
    for attribute in assessed.attributes:
        answer.evidence += _enough_known(attribute, assessed)
    answer.evidence.append(
        Evidence(
            id="fairness.finite_outputs",
            ok=bool(known.all()),
            detail=f"{int((~known).sum())} of {len(known)} samples have a NaN or infinite output: not selected, not right",
            value=float((~known).mean()),
        )
    )


def _enough_known(attribute: Attribute, assessed: Assessment) -> Iterator[Evidence]:
    """Test whether an attribute has several groups, each of enough people, and of enough with and without the label."""
    about = [m.id for m in assessed.metrics if m.id.startswith(f"fairness.{attribute.slug}.")]
    weak = [group for group in assessed.weak_groups if group.attribute is attribute]
    few = [group.told(group.few) for group in weak if group.few]
    unlabelled = [group.told(group.unlabelled) for group in weak if group.unlabelled]
    mend = (
        "more people of these groups are needed, or state with fairness.bins, fairness.attributes or "
        "fairness.intersections = false what is not asked"
    )
    smallest = int(np.bincount(attribute.index).min())
    labelled = [rate.n.min() for rate in _error_rates(attribute, assessed)]
    if not attribute.is_intersection:
        lone = len(attribute.groups) < 2
        yield Evidence(
            id=f"fairness.{attribute.slug}.more_than_one_group",
            ok=not lone,
            detail=f"all people are in one group of {attribute.name}: nothing to compare"
            if lone
            else f"{attribute.name} has {len(attribute.groups)} groups",
            value=float(len(attribute.groups)),
            about=about,
        )
    yield Evidence(
        id=f"fairness.{attribute.slug}.group_sizes",
        ok=not few,
        detail=f"too little is known of {_listed(few)}: {mend}"
        if few
        else f"the smallest group by {attribute.name} has {smallest} people",
        value=float(smallest),
        about=about,
    )
    yield Evidence(
        id=f"fairness.{attribute.slug}.label_sizes",
        ok=not unlabelled,
        detail=f"error rates rest on too few of {_listed(unlabelled)}: {mend}"
        if unlabelled
        else f"every error rate by {attribute.name} is about {int(min(labelled, default=0))} people or more",
        value=float(min(labelled, default=0)),
        about=[f"fairness.{attribute.slug}.equalized_odds_difference"],
    )


def _error_rates(attribute: Attribute, assessed: Assessment) -> list[Rate]:
    """Return the true and false positive rates of an attribute, but of classes that nobody has or everybody."""
    return [
        rate
        for rate in assessed.rates
        if rate.attribute is attribute and rate.name in ("true positive rate", "false positive rate") and rate.n.sum() > 0
    ]


# --- findings ---------------------------------------------------------------------------------------------------------


def _report_gaps(
    answer: Answer, task: Task, assessed: Assessment, predicted: NDArray[np.int64], names: Mapping[int, str]
) -> list[str]:
    """Report each gap that is surely larger than the limit; return which.

    Bonferroni over all rates of all attributes: an accusation must hold after looking at every one of them. A gap between
    groups of two attributes is left out where one of the two shows it alone.
    """
    families = len(assessed.rates)
    reported: set[tuple[str, str, Any]] = set()
    for rate in assessed.rates:
        proven = rate.proven(task.confidence, families)
        if proven is None or proven[2] <= task.options.gap:
            continue
        if any((name, rate.name, rate.positive) in reported for name in rate.attribute.made_of):
            continue
        reported.add((rate.attribute.name, rate.name, rate.positive))
        answer.findings.append(_gap_finding(task, rate, proven, predicted, names))
    return [f"{name} by {attribute}" for attribute, name, _ in sorted(reported, key=str)]


def _gap_finding(
    task: Task, rate: Rate, proven: tuple[int, int, float], predicted: NDArray[np.int64], names: Mapping[int, str]
) -> Finding:
    high, low, surely = proven
    groups, k, n = rate.attribute.groups, rate.k, rate.n
    about = "" if rate.positive is None else f" of class {names[rate.positive]}"
    return Finding(
        severity="high",
        title=f"{rate.name.capitalize()} differs by {rate.attribute.name}: {groups[high]} {k[high] / n[high]:.1%}, "
        f"{groups[low]} {k[low] / n[low]:.1%}",
        detail=f"The {rate.name}{about} is {k[high] / n[high]:.1%} for {groups[high]} ({k[high]} of {n[high]}) and "
        f"{k[low] / n[low]:.1%} for {groups[low]} ({k[low]} of {n[low]}). The difference is surely more than {surely:.1%}, "
        f"after allowing for {len(groups)} groups and all rates that were compared (less than a metric's own interval says); "
        f"a difference is reported from {task.options.gap:.0%} on.",
        samples=_wronged(task, rate, high, low, predicted),
    )


def _wronged(task: Task, rate: Rate, high: int, low: int, predicted: NDArray[np.int64]) -> list[int]:
    """Ids of up to ten people who show the gap: wrongly rejected, wrongly selected, or simply got wrong."""
    test = task.data.test
    chosen, labelled = predicted == rate.positive, test.y == rate.positive
    if rate.name == "false positive rate":
        shown = (rate.attribute.index == high) & chosen & ~labelled
    elif rate.name == "accuracy":
        shown = (rate.attribute.index == low) & (predicted != test.y)
    else:
        rejected = (rate.attribute.index == low) & ~chosen
        wrongly = rejected & labelled
        shown = wrongly if wrongly.any() else rejected
    ids: list[int] = test.ids[shown][:10].tolist()
    return ids


def _report_base_rates(answer: Answer, task: Task, assessed: Assessment, names: Mapping[int, str]) -> None:
    for rate in assessed.rates:
        if rate.name != "true positive rate" or rate.attribute.is_intersection:
            continue
        size = np.bincount(rate.attribute.index)
        gap = stats.max_min_gap(rate.n, size, task.confidence, len(assessed.rates))
        if gap.low is None or gap.low <= BASE_RATE_GAP:
            continue
        shares = rate.n / size
        high, low = int(shares.argmax()), int(shares.argmin())
        groups = rate.attribute.groups
        answer.findings.append(
            Finding(
                severity="info",
                title=f"Base rates differ by {rate.attribute.name}",
                detail=f"The label {names[rate.positive]} is held by {shares[high]:.1%} of {groups[high]} and "
                f"{shares[low]:.1%} of {groups[low]}. Then no useful network satisfies demographic parity and equalised odds "
                "both: which of them is right here, and whether the labels are, is for people to decide.",
            )
        )


def _report_cuts(answer: Answer, assessed: Assessment) -> None:
    for attribute in assessed.attributes:
        if attribute.note and not attribute.is_intersection:
            answer.findings.append(
                Finding(
                    severity="info",
                    title=f"{attribute.name} was cut into ranges",
                    detail=f"{attribute.name} was {attribute.note}: {', '.join(attribute.groups)}. Other cuts can show other "
                    "gaps; state yours with fairness.bins.",
                )
            )


def _tell_limits(answer: Answer, task: Task, assessed: Assessment) -> None:
    weak = [str(group) for group in assessed.weak_groups]
    if weak:
        answer.not_tested.append(f"{len(weak)} groups of which too little is known: {_listed(weak)}")
    if not task.options.intersections and len(assessed.attributes) > 1:
        answer.not_tested.append("groups by two attributes together: intersections are switched off")
    answer.not_tested += [
        "groups by three attributes and more, and attributes that are not in the data",
        "whether the labels treat groups alike: error rates take them for the truth",
        "fairness to individuals, and what decisions made from the predictions do to people",
    ]


# --- figures and words ------------------------------------------------------------------------------------------------


def _draw(answer: Answer, task: Task, assessed: Assessment, names: Mapping[int, str]) -> None:
    for attribute in assessed.attributes:
        own = [rate for rate in assessed.rates if rate.attribute is attribute]
        if not attribute.is_intersection:
            answer.figures += _forests(task, attribute, own, assessed, names)
        answer.tables.append(_table(attribute, own, assessed, names))
        answer.tables.append(_predictive_table(task, attribute, assessed, names))
        if len(assessed.positives) == 1:
            answer.tables.append(_gap_table(task, attribute, assessed))


def _forests(
    task: Task, attribute: Attribute, rates: Sequence[Rate], assessed: Assessment, names: Mapping[int, str]
) -> Iterator[Figure]:
    """Draw one figure a rate; of many classes the one whose gap is largest."""
    for name in dict.fromkeys(rate.name for rate in rates):
        rate = max((r for r in rates if r.name == name), key=lambda r: r.gap(task.confidence).value or 0.0)
        low, high = stats.clopper_pearson_limits(rate.k, rate.n, task.confidence)
        of_class = f", class {names[rate.positive]}" if len(assessed.positives) > 1 and rate.positive is not None else ""
        yield Figure(
            id=f"fairness.{attribute.slug}.{name.replace(' ', '_')}",
            kind="forest",
            title=f"{name.capitalize()} by {attribute.name}{of_class}",
            data={
                "labels": list(attribute.groups),
                "values": [_share(k, n) for k, n in zip(rate.k, rate.n, strict=True)],
                "low": low.tolist(),
                "high": high.tolist(),
                "n": rate.n.tolist(),
                "xlabel": name,
                "ylabel": attribute.name,
            },
        )


def _table(attribute: Attribute, rates: Sequence[Rate], assessed: Assessment, names: Mapping[int, str]) -> Table:
    many = len(assessed.positives) > 1
    weak = {group.group: group.why for group in assessed.weak_groups if group.attribute is attribute}
    rows: list[list[Any]] = []
    for positive in assessed.positives:
        own = {rate.name: rate for rate in rates if rate.positive == positive or rate.positive is None}
        for i, group in enumerate(attribute.groups):
            cells = [_share(own[name].k[i], own[name].n[i]) for name in own]
            counts = [int(own["accuracy"].n[i]), int(own["true positive rate"].n[i])]
            rows.append([*([names[positive]] if many else []), group, *counts, *cells, weak.get(group, "")])
    cut = f" ({attribute.note})" if attribute.note else ""
    return Table(
        id=f"fairness.{attribute.slug}.groups",
        title=f"Groups by {attribute.name}{cut}",
        columns=[
            *(["class"] if many else []),
            "group",
            "people",
            "with the label",
            "selection rate",
            "true positive rate",
            "false positive rate",
            "accuracy",
            "too little known",
        ],
        rows=rows,
    )


def _predictive_table(task: Task, attribute: Attribute, assessed: Assessment, names: Mapping[int, str]) -> Table:
    """Show what is no rate of a fixed set of people, with intervals; see `audit.fairness.confusion`."""
    from audit.fairness.confusion import BALANCED_ACCURACY, F1, PRECISION

    many, shown = len(assessed.positives) > 1, {"precision": PRECISION, "F1": F1, "balanced accuracy": BALANCED_ACCURACY}
    rows: list[list[Any]] = []
    for counts in assessed.counts:
        if counts.attribute is not attribute:
            continue
        columns = [
            column
            for measure in shown.values()
            for column in (measure.values(counts.cells), *measure.limits(counts.cells, task.confidence))
        ]
        for i, group in enumerate(attribute.groups):
            rows.append([*([names[counts.positive]] if many else []), group, *(finite(column[i]) for column in columns)])
    return Table(
        id=f"fairness.{attribute.slug}.predictive",
        title=f"Precision, F1 and balanced accuracy by {attribute.name}, with {task.confidence:.0%} intervals",
        columns=[*(["class"] if many else []), "group", *(f"{name}{end}" for name in shown for end in ("", ", low", ", high"))],
        rows=rows,
    )


def _gap_table(task: Task, attribute: Attribute, assessed: Assessment) -> Table:
    """Show how far apart the groups lie in each of ten measures."""
    from audit.fairness.confusion import MEASURES

    (counts,) = (one for one in assessed.counts if one.attribute is attribute)
    return Table(
        id=f"fairness.{attribute.slug}.gaps",
        title=f"How far apart groups by {attribute.name} lie, with {task.confidence:.0%} intervals over all pairs of groups",
        columns=["measure", "largest difference", "low", "high", "smallest over largest", "ratio, low", "ratio, high"],
        rows=[
            [measure.name, *measure.gap(counts.cells, task.confidence), *measure.ratio(counts.cells, task.confidence)]
            for measure in MEASURES
        ],
    )


def _answer_text(task: Task, assessed: Assessment, reported: list[str]) -> str:
    attributes = [a for a in assessed.attributes if not a.is_intersection]
    parity = [assessed.metric(f"fairness.{a.slug}.demographic_parity_difference") for a in attributes]
    known = [(a, m) for a, m in zip(attributes, parity, strict=True) if m.value is not None]
    if not known:
        return f"There is nothing to compare: all people are in one group of {_listed([a.name for a in attributes])}."
    count = len(assessed.attributes)
    asked = f"Of all rates over {count} grouping{'s' if count > 1 else ''} of people"
    more = f"{asked}, no difference is surely larger than {task.options.gap:.0%}."
    if reported:
        more = f"{asked}, surely larger than {task.options.gap:.0%}: {_listed(reported)}."
    # The widest gap is mostly that of the smallest groups, where chance is: the one that is proven to be wide comes first.
    attribute, worst = max(known, key=lambda pair: (pair[1].low or 0.0, pair[1].value or 0.0))
    surely = f"surely by more than {worst.low:.1%}" if worst.low else "which may be chance"
    return (
        f"Selection rates of groups by {attribute.name} differ by up to {worst.value:.1%}, {surely} "
        f"({task.confidence:.0%} interval {worst.low:.1%} to {worst.high:.1%}). {more}"
    )


def _share(k: int, n: int) -> float | None:
    return finite(k / n) if n else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_WARNED])
    return shown if len(names) <= MOST_WARNED else f"{shown} and {len(names) - MOST_WARNED} more"
