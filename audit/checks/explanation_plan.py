"""Which methods explain which samples, and the stages that do it and put them to the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from audit.checks.base import Arrays, Block, Found, Stage, Task, spread_positions
from audit.explain import Explainer, columns, faithfulness, get, sanity
from audit.explain.base import Question
from audit.model.batching import is_out_of_memory
from audit.result import slugs

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
PERMUTED = 2000  # samples whose columns are shuffled
MOST_COLUMNS = 500
CURVES, ICE_SAMPLES = 4, 200


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
        p = softmax(np.where(finite_rows[:, None], logits, 0.0), axis=1)
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
            leaks = columns.suspects(scores, block.x.cpu().numpy())
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
