"""Asks what the network looks at when it decides, and whether the explanations that say so can be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from audit.checks.base import (
    Answer,
    Arrays,
    Block,
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
    spread_positions,
)
from audit.checks.explanation_columns import conclude_columns, suspects
from audit.checks.explanation_judged import judge, methods_sentence
from audit.checks.explanation_shown import show_curves, show_samples, softmax
from audit.errors import UsageError
from audit.explain import Explainer, columns, faithfulness, get, sanity
from audit.explain.base import NOT_OF_LABELS, OUTPUTS, Question
from audit.model.batching import is_out_of_memory
from audit.result import CheckResult, slugs

METHODS = {
    "image": ("saliency", "integrated_gradients", "gradcam", "shap.auto", "lime"),
    "table": ("saliency", "integrated_gradients", "shap.kernel", "lime"),
    "array": ("saliency", "integrated_gradients", "shap.auto", "lime"),
}
MORE_METHODS = {"image": (), "table": ("shap.permutation", "shap.deep"), "array": ()}  # of the thorough profiles


@dataclass(frozen=True)
class Effort:
    """How much a profile spends: samples that put methods to the test, rankings, networks with shuffled weights, draws."""

    samples: int
    rankings: int
    networks: int
    background: int
    repeats: int
    options: dict[str, dict[str, int]]


EFFORTS = {
    "quick": Effort(
        16, 5, 3, 16, 3,
        {"integrated_gradients": {"steps": 32}, "shap.kernel": {"samples": 512}, "shap.auto": {"samples": 100},
         "lime": {"samples": 300}},
    ),
    "standard": Effort(
        32, 10, 5, 24, 5,
        {"integrated_gradients": {"steps": 50}, "shap.kernel": {"samples": 1024}, "shap.auto": {"samples": 200},
         "lime": {"samples": 600}},
    ),
    "thorough": Effort(
        64, 20, 10, 50, 10,
        {"integrated_gradients": {"steps": 100}, "shap.kernel": {"samples": 2048}, "shap.auto": {"samples": 500},
         "lime": {"samples": 2000}},
    ),
    "exhaustive": Effort(
        128, 40, 20, 100, 20,
        {"integrated_gradients": {"steps": 200}, "shap.kernel": {"samples": 4096}, "shap.auto": {"samples": 1000},
         "lime": {"samples": 5000}},
    ),
}  # fmt: skip
MIDDLE = 1000  # rows whose mean stands for an absent input
SHUFFLED_SAMPLES = 4  # explained again on each network with shuffled weights
FEW_INPUTS, MORE_NETWORKS = 6, 10  # rankings of few inputs agree by chance: more networks make up for it
# Figures in the order in which a reader wants them: what it leans on, whether that can be believed, then single answers.
ORDER = tuple(f"explanation.{name}" for name in ("importance", "deletion", "heat_maps", "flips", "sample", "dependence"))
PERMUTED = 2000  # samples whose columns are shuffled
MOST_COLUMNS = 500
CURVES, ICE_SAMPLES = 4, 200


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


class Plan:
    """Which methods are asked about which samples, and the stages that do it."""

    def __init__(self, task: Task) -> None:
        self.task, self.effort = task, EFFORTS[task.profile]
        self.explainers: dict[str, Explainer] = {}
        self.left_out: list[str] = []
        kind = task.data.kind
        thorough = task.profile in ("thorough", "exhaustive")
        names = task.options.methods or METHODS[kind] + (MORE_METHODS[kind] if thorough else ())
        look = task.model.to_input(task.data.test.x[:2])
        for name in names:
            explainer = get(name)(**self.effort.options.get(name, {}))
            reason = explainer.missing() or self._unsuited(explainer, look)
            if reason is None:
                self.explainers[name] = explainer
            else:
                self.left_out.append(f"{name}: {reason}")
        self.slugs = slugs(self.explainers)

    def _unsuited(self, explainer: Explainer, look: torch.Tensor) -> str | None:
        with self.task.model.session():
            return explainer.unsuited(self.task.model, look, self.task.data.kind)

    @property
    def samples(self) -> int:
        """How many samples put the methods to the test."""
        return int(self.task.options.samples or self.effort.samples)

    @property
    def networks(self) -> int:
        """How many networks with shuffled weights there are."""
        few = int(np.prod(self.task.data.test.x.shape[1:])) <= FEW_INPUTS
        return max(MORE_NETWORKS, self.effort.networks) if few else self.effort.networks

    def tested(self, found: Found) -> NDArray[np.int64]:
        """Return the positions of the samples that put the methods to the test, spread evenly over the part."""
        (outputs,) = found["predictions.test"].arrays.values()
        known = np.flatnonzero(np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1))
        return known[spread_positions(len(known), self.samples)] if len(known) else known

    def shown(self, found: Found) -> dict[str, NDArray[np.int64]]:
        """Return the positions of the samples to show, by what they show."""
        task, n = self.task, self.task.options.show
        if not task.keep_samples or n == 0:
            return {}
        if task.model.task == "regression":
            error = np.abs(found["predictions.test"]["values"].astype(np.float64) - task.data.test.y)
            order = np.argsort(error, kind="stable")
            order = order[np.isfinite(error[order])]
            return {"closest to its label": order[:n], "furthest from its label": order[n:][::-1][:n]}
        logits = found["predictions.test"]["logits"].astype(np.float64)
        finite_rows = np.isfinite(logits.sum(axis=1))
        p = softmax(np.where(finite_rows[:, None], logits, 0.0))
        top = np.sort(p, axis=1)
        right = np.equal(p.argmax(axis=1), task.data.test.y)
        sure, near = np.argsort(-top[:, -1], kind="stable"), np.argsort(top[:, -1] - top[:, -2], kind="stable")
        uncertain = near[finite_rows[near]][:n]
        return {
            "right and sure": sure[(right & finite_rows)[sure]][:n],
            "wrong and sure": sure[(~right & finite_rows)[sure]][:n],
            "uncertain": uncertain,
        }

    def explained(self, found: Found) -> NDArray[np.int64]:
        """Return the positions of all samples that are explained."""
        return np.unique(np.concatenate([self.tested(found), *self.shown(found).values()])).astype(np.int64)

    def question(self, block: Block, seed: int) -> Question:
        """Put together what is asked about the samples of a block: the answer that the network gives."""
        task = self.task
        if task.model.task == "regression":
            target = torch.zeros(len(block.x), dtype=torch.long)
        else:
            target = torch.from_numpy(block.earlier["predictions.test"]["logits"][block.positions].argmax(axis=1))
        return Question(
            model=task.model,
            x=block.x,
            target=target.to(block.x.device),
            ids=block.ids.cpu(),
            background=self.background(seed),
            output="values" if task.model.task == "regression" else task.options.output,
            kind=task.data.kind,
            seed=seed,
            middle=self.middle(seed),
        )

    def background(self, seed: int) -> torch.Tensor:
        """Draw the baseline rows from the reference part, else from the test part."""
        part = self.task.data.reference or self.task.data.test
        rows = min(len(part), self.task.options.background or self.effort.background)
        chosen = np.sort(np.random.default_rng([seed, 20170]).choice(len(part), rows, replace=False))
        return self.task.model.to_input(part.x[chosen])

    def middle(self, seed: int) -> torch.Tensor:
        """Return the mean of many rows: that of a background's few is so noisy that explanations would not repeat."""
        part = self.task.data.reference or self.task.data.test
        rows = min(len(part), MIDDLE)
        chosen = np.sort(np.random.default_rng([seed, 20171]).choice(len(part), rows, replace=False))
        return self.task.model.to_input(part.x[chosen]).mean(dim=0, keepdim=True)

    @property
    def headline(self) -> str:
        """The method whose faithfulness stands in the scorecard: SHAP, else the first."""
        return next((name for name in self.explainers if name.startswith("shap")), next(iter(self.explainers), ""))

    def drawn(self, name: str) -> bool:
        """Tell whether another seed can give other values."""
        explainer = self.explainers[name]
        return explainer.random or explainer.needs_baseline

    # --- stages -------------------------------------------------------------------------------------------------------

    def method_stages(self, name: str) -> list[Stage]:
        """List the stages of one method: its values, the values under another seed, and on shuffled weights."""
        explainer, stage = self.explainers[name], f"explanation.{self.slugs[name]}"
        after = ("predictions.test",)
        listed = [
            Stage(
                id=stage,
                job=self._values(explainer, 0),
                cost_of=f"{stage}.faithfulness",
                select=self.explained,
                after=after,
                holds_inputs=True,
            ),
            Stage(
                id=f"{stage}.shuffled",
                job=self._shuffled(explainer, stage),
                cost_of=f"{stage}.depends_on_weights",
                select=lambda found: self.tested(found)[spread_positions(len(self.tested(found)), SHUFFLED_SAMPLES)],
                after=(*after, stage),
            ),
        ]
        if self.drawn(name):
            listed.append(
                Stage(
                    id=f"{stage}.again",
                    job=self._values(explainer, 1),
                    cost_of=f"{stage}.stability",
                    select=self.tested,
                    after=after,
                    holds_inputs=True,
                )
            )
        return listed

    def _values(self, explainer: Explainer, shift: int) -> Callable[[Block], Arrays]:
        def job(block: Block) -> Arrays:
            n = len(block.x)
            nothing, no_text = np.full(n, np.nan), np.full(n, "", dtype="U300")
            out: Arrays = {
                "values": np.full(tuple(block.x.shape), np.nan, dtype=np.float32),
                "gap": nothing,
                "change": nothing,
                "used": no_text,
                "notes": no_text,
                "failed": no_text,
            }
            if n == 0:
                return out
            try:
                told = explainer.answer(self.question(block, self.task.seed + shift))
            except Exception as error:
                # One method that cannot cope with a network must not take the others with it: it is reported as failed.
                if is_out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or ["no message"])[0]
                return out | {"failed": np.full(n, f"{type(error).__name__}: {reason}"[:300], dtype="U300")}
            out["values"] = told.values.astype(np.float32)
            out["used"] = np.full(n, told.used, dtype="U300")
            out["notes"] = np.full(n, "; ".join(told.notes)[:300], dtype="U300")
            if told.change is not None and told.completeness_gap is not None:
                out["gap"], out["change"] = told.completeness_gap, told.change
            return out

        return job

    def _shuffled(self, explainer: Explainer, stage: str) -> Callable[[Block], Arrays]:
        def job(block: Block) -> Arrays:
            found = block.earlier[stage]
            values = found["values"][np.searchsorted(found.positions, block.positions)].astype(np.float64)
            agreement = np.full((len(block.x), self.networks), np.nan)
            if not np.isfinite(values).all() or len(block.x) == 0 or not sanity.can_shuffle(self.task.model):
                return {"agreement": agreement}
            question = self.question(block, self.task.seed)
            for index in range(self.networks):
                with sanity.shuffled_weights(self.task.model, self.task.seed * 1000 + index):
                    try:
                        other = explainer.answer(question).values
                    except Exception as error:
                        if is_out_of_memory(error):
                            raise
                        continue  # a shuffled network may overflow: it tells nothing, and NaN stays
                agreement[:, index] = sanity.rank_agreement(values, other, self.task.data.kind)
            return {"agreement": agreement}

        return job

    def curves(self) -> Stage:
        """Plan the deletion and insertion curves of all methods and of random rankings, on the same samples."""

        def job(block: Block) -> Arrays:
            question, spread = self.question(block, self.task.seed), self.output_spread(block.earlier)
            out: Arrays = {}
            for direction, insert in (("deletion", False), ("insertion", True)):
                drawn = [
                    faithfulness.curve(question, faithfulness.random_rank(question, draw), spread=spread, insert=insert)
                    for draw in range(self.effort.rankings)
                ]
                out[f"random.{direction}"] = np.mean(drawn, axis=0)
                for name, explainer in self.explainers.items():
                    found = block.earlier[f"explanation.{self.slugs[name]}"]
                    values = found["values"][np.searchsorted(found.positions, block.positions)].astype(np.float64)
                    order = faithfulness.rank(values, question, signed=explainer.signed)
                    scores = faithfulness.curve(question, order, spread=spread, insert=insert)
                    scores[~np.isfinite(values.reshape(len(values), -1)).all(axis=1)] = np.nan
                    out[f"{self.slugs[name]}.{direction}"] = scores
            return out

        return Stage(
            id="explanation.curves",
            job=job,
            cost_of="explanation.curves",
            select=self.tested,
            after=("predictions.test", *(f"explanation.{self.slugs[name]}" for name in self.explainers)),
        )

    def output_spread(self, found: Found) -> float:
        """Return the standard deviation of a regression network's outputs; 1 for classification."""
        if self.task.model.task != "regression":
            return 1.0
        values = found["predictions.test"]["values"]
        return float(np.std(values[np.isfinite(values)])) or 1.0

    def column_stages(self) -> list[Stage]:
        """List the stages that ask about single columns of a table."""
        task, n = self.task, len(self.task.data.test)
        width = task.data.test.x.shape[1]
        some = spread_positions(n, PERMUTED)

        def permute(block: Block) -> Arrays:
            y, repeats = block.y, self.effort.repeats
            groups = [[j] for j in range(width)]
            rise = columns.permutation_rise(task.model, block.x, y, groups, repeats=repeats, seed=task.seed)
            scores = np.full(width, np.nan)
            if width <= MOST_COLUMNS:
                regression = task.model.task == "regression"
                x, labels = block.x.double().cpu().numpy(), y.cpu().numpy()
                scores = columns.alone(x, labels, regression=regression, seed=task.seed)
            leaks = suspects(scores, block.x.cpu().numpy())
            together = np.zeros((0, len(block.x)))
            if leaks:
                together = columns.permutation_rise(task.model, block.x, y, [leaks], repeats=repeats, seed=task.seed)
            return {
                "rise": rise,
                "alone": scores,
                "suspects": np.asarray(leaks, dtype=np.int64),
                "together": together,
                "loss": columns.losses(task.model, block.x, y),
            }

        def depend(block: Block) -> Arrays:
            found = block.earlier["explanation.columns"]
            strongest = np.argsort(-found["rise"].mean(axis=1), kind="stable")[:CURVES]
            x, target = task.data.test.x.astype(np.float64), self.curve_class(block.earlier)
            grids = np.full((len(strongest), columns.GRID), np.nan)
            lines = np.full((len(strongest), len(block.x), columns.GRID), np.nan)
            for row, column in enumerate(strongest):
                grid = columns.grid_of(x[:, column])
                grids[row, : len(grid)] = grid
                lines[row, :, : len(grid)] = columns.dependence(task.model, block.x, int(column), grid, target)
            return {"columns": strongest.astype(np.int64), "grid": grids, "lines": lines}

        listed = [
            Stage(
                id="explanation.columns",
                job=permute,
                cost_of="explanation.importance",
                select=lambda _: some,
                whole=True,
                passes=float(width * self.effort.repeats),
            ),
            Stage(
                id="explanation.dependence",
                job=depend,
                cost_of="explanation.dependence",
                select=lambda _: spread_positions(n, ICE_SAMPLES),
                after=("predictions.test", "explanation.columns"),
                whole=True,
            ),
        ]
        binary = self.binary()
        if binary:
            listed.append(
                Stage(
                    id="explanation.flips",
                    job=lambda block: {"changed": columns.flipped(task.model, block.x, binary)},
                    cost_of="explanation.flips",
                    passes=float(len(binary) + 1),
                )
            )
        return listed

    def binary(self) -> dict[int, tuple[float, float]]:
        """Return the columns of two values, with the values as the network gets them; none for regression."""
        data = self.task.data
        if self.task.model.task == "regression":
            return {}
        parts = [part.x.astype(np.float32) for part in (data.test, data.reference) if part is not None]
        return columns.binary_columns(parts)

    def curve_class(self, found: Found) -> int:
        """Return the class whose probability the curves of dependence show."""
        if self.task.model.task == "regression" or self.task.model.classes == 2:
            return 1
        answers = found["predictions.test"]["logits"].argmax(axis=1)
        return int(np.bincount(answers).argmax())


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
