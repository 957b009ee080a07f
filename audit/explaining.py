"""Explains one answer of a network, with the tests of each explanation: what ``audit explain`` does."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from audit.before_after import split_off
from audit.checks.base import Task
from audit.checks.explanation import Explanation
from audit.checks.explanation_judged import ADDS_UP, ADDS_UP_DRAWN, REPEATS, SAME_WITHOUT_WEIGHTS
from audit.checks.explanation_plan import Plan
from audit.config import Config, validate
from audit.data.base import Dataset
from audit.errors import InputError, OutputError, UsageError, closest
from audit.explain import Attribution, faithfulness, pictures, sanity
from audit.explain.base import NOT_OF_LABELS, Floats, Question, segments
from audit.model.batching import is_out_of_memory
from audit.model.wrapper import Model
from audit.preflight import preflight
from audit.provenance import data_info, model_info, spec_of
from audit.report.explanation import render
from audit.result import CheckResult, Cost, Evidence, Figure, Finding, Result, Table, finite, write_atomically
from audit.workflows import Code, configuration, open_both

if TYPE_CHECKING:
    from torch import nn

RANKINGS = 99  # random ones that an explanation is compared with: 1 % is the finest share that they can tell
FASTER_THAN = 0.95


@dataclass(frozen=True)
class ExplainedAnswer:
    """One explained answer.

    Attributes
    ----------
    attributions
        By method; each of one sample.
    result
        What the page is drawn from: one check without metrics or limits.
    """

    attributions: dict[str, Attribution]
    result: Result

    def html(self) -> str:
        """Return the page."""
        return render(self.result)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; an OutputError says why it cannot be written."""
        file = Path(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder of {file}: {error.strerror or error}; choose another --out") from None
        if file.is_dir():
            raise OutputError(f"expected a file to write, got the folder {file}: give --out {file / 'explanation.html'}")
        write_atomically(file, self.html().encode(errors="backslashreplace"))
        return file


def explain_one(
    model: Model | nn.Module | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str] | Any = None,
    *,
    index: int,
    methods: Sequence[str] | None = None,
    explain_class: int | str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    arch: Code | None = None,
    arch_args: dict[str, Any] | list[Any] | None = None,
    trust_model: bool = False,
    reference: Any = None,
    preprocess: Code | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Sequence[str] = (),
    command: str = "",
) -> ExplainedAnswer:
    """Explain the answer that a network gives to one sample.

    Parameters
    ----------
    model, data, config, arch, arch_args, trust_model, reference, preprocess, settings, command
        As in `audit.run`.
    index
        The sample's id: its row number in the data.
    methods
        Explainers to ask; those of the explanation check where None.
    explain_class
        Number or name of the class to explain; the predicted one where None.
    sections
        More of the configuration, by section: ``{"data": {"target": "label"}}``.

    Raises
    ------
    UsageError
        There is no such sample, class or method, or no method fits.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    options: dict[str, Any] = {
        **{name: dict(values) for name, values in (sections or {}).items()},
        "explanation": {"methods": None if methods is None else list(methods)},
    }
    options["data"] = {
        **options.get("data", {}),
        "source": str(data) if isinstance(data, str | os.PathLike) else None,
        "reference": str(reference) if isinstance(reference, str | os.PathLike) else None,
    }
    resolved, _ = split_off(configuration(config, None, options, settings))
    network, samples = open_both(
        model, data, resolved, arch=arch, arch_args=arch_args, trust_model=trust_model, preprocess=preprocess,
        reference=reference,
    )  # fmt: skip
    with network.session():
        preflight(network, samples)
        one = _One(network, samples, resolved, index, explain_class)
        check = one.explain()
    seconds = round(time.monotonic() - clock, 3)
    result = Result(
        verdict="unjudged",
        exit_code=0,
        started_at=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=seconds,
        spec=spec_of(resolved, network, command, ["explanation"]),
        model=model_info(network, samples),
        data=data_info(samples),
        checks=[
            check.model_copy(update={"cost": Cost(forwards=network.forwards, backwards=network.backwards, seconds=seconds)})
        ],
    )
    return ExplainedAnswer(one.attributions, result)


class _One:
    """One answer: what is asked about it, and what comes of it."""

    def __init__(self, model: Model, data: Dataset, config: Config, index: int, explain_class: int | str | None) -> None:
        options = validate(Explanation.Options, config.checks.get("explanation", {}), "explanation")
        if model.task == "multilabel":
            raise UsageError(NOT_OF_LABELS)
        self.task = Task(model, data, options, config.run.seed, config.policy.confidence, config.run.profile)
        self.model, self.data, self.index = model, data, index
        positions = np.flatnonzero(data.test.ids == index)
        if not len(positions):
            low, high = int(data.test.ids.min()), int(data.test.ids.max())
            raise UsageError(f"--index should be the row number of a sample, {low} to {high}, got {index}")
        self.position = int(positions[0])
        self.plan = Plan(self.task)
        if not self.plan.explainers:
            raise UsageError(f"no method can explain this answer: {'; '.join(self.plan.left_out)}")
        self.x = model.to_input(data.test.x[self.position : self.position + 1].copy())
        self.output = self._output()
        self.target = self._target(explain_class)
        self.attributions: dict[str, Attribution] = {}
        self.failed: dict[str, str] = {}
        self.flaws: dict[str, list[str]] = {}

    def explain(self) -> CheckResult:
        """Ask each method, test what it says, and draw it."""
        evidence: list[Evidence] = []
        for name, explainer in self.plan.explainers.items():
            try:
                self.attributions[name] = explainer.answer(self._question(self.task.seed))
            except Exception as error:
                # One method that cannot cope with the network must not take the others with it.
                self.failed[name] = f"{name} failed: {type(error).__name__}: {error}"
                continue
            found = self._test(name)
            evidence += found
            self.flaws[name] = [e.detail for e in found if not e.ok]
        if not self.attributions:
            raise InputError(f"no method could explain this answer: {'; '.join(self.failed.values())}")
        missing = [text for text in self.plan.left_out if "pip install" in text]
        reasons = [*missing, *self.failed.values(), *(f"{e.id}: {e.detail}" for e in evidence if not e.ok)]
        figures, tables = self._drawn()
        return CheckResult(
            id="explanation",
            status="incomplete" if reasons else "measured",
            reason="; ".join(reasons) or None,
            question=f"What spoke for the answer to sample {self.index}?",
            answer=self._sentence(),
            evidence=evidence,
            findings=self._findings(),
            figures=figures,
            tables=tables,
            not_tested=[*self.plan.left_out, *self._not_tested()],
        )

    def _not_tested(self) -> list[str]:
        told = ["how the methods fare on other samples: the explanation check of audit run says"]
        if self._orders <= RANKINGS:
            told.append(f"whether rankings of this sample beat chance: of so few inputs there are {self._orders} rankings only")
        return told

    # --- what is asked ------------------------------------------------------------------------------------------------

    def _output(self) -> Floats:
        """Return the probabilities of the classes, shape (classes,), or the value, shape (1,)."""
        with torch.no_grad():
            if self.model.task == "regression":
                return self.model.values(self.x).double().cpu().numpy()
            return self.model.logits(self.x).double().softmax(dim=1)[0].cpu().numpy()

    def _target(self, wanted: int | str | None) -> int:
        if self.model.task == "regression":
            if wanted is not None:
                raise UsageError("a regression network has one output and no classes: leave --class out")
            return 0
        if wanted is None:
            return int(self.output.argmax())
        names = self.task.classes
        if str(wanted) in names:
            return names.index(str(wanted))
        if str(wanted) in map(str, range(len(self.output))):
            return int(wanted)
        raise UsageError(
            f"--class should be a class by name or by number, 0 to {len(self.output) - 1}, got {wanted!r}; "
            f"{closest(str(wanted), names)}"
        )

    def _question(self, seed: int) -> Question:
        return Question(
            model=self.model,
            x=self.x,
            target=torch.full((1,), self.target, dtype=torch.long, device=self.x.device),
            ids=torch.tensor([self.index]),
            background=self.plan.background(seed),
            output="values" if self.model.task == "regression" else self.task.options.output,
            kind=self.data.kind,
            seed=seed,
            middle=self.plan.middle(seed),
        )

    # --- can it be believed? ------------------------------------------------------------------------------------------

    def _test(self, name: str) -> list[Evidence]:
        listed = [self._depends_on_weights(name)]
        if self._orders > RANKINGS:
            listed.insert(0, self._beats_random(name))
        if self.plan.drawn(name):
            listed.append(self._repeatable(name))
        if self.attributions[name].change is not None:
            listed.append(self._adds_up(name))
        return listed

    @property
    def _orders(self) -> int:
        """How many rankings of the inputs there are: of few inputs, too few to tell one from chance."""
        return math.factorial(min(10, int(segments(tuple(self.x.shape[1:]), self.data.kind).max()) + 1))

    def _beats_random(self, name: str) -> Evidence:
        question, told = self._question(self.task.seed), self.attributions[name]
        spread = 1.0
        if self.model.task == "regression":
            spread = float(self.model.predict(self.data.test.x).double().std()) or 1.0
        own = faithfulness.area(
            faithfulness.curve(question, faithfulness.rank(told.values, question, signed=told.signed), spread=spread)
        )[0]
        random = [
            faithfulness.area(faithfulness.curve(question, faithfulness.random_rank(question, draw), spread=spread))[0]
            for draw in range(RANKINGS)
        ]
        beaten = float(np.mean(np.asarray(random) > own + 1e-9))
        ok = beaten >= FASTER_THAN
        return Evidence(
            id=f"explanation.{self.plan.slugs[name]}.beats_random",
            ok=ok,
            detail=f"taking away what {name} calls important lowers the answer faster than {beaten:.0%} of {RANKINGS} random "
            "rankings do" + ("" if ok else f" ({FASTER_THAN:.0%} or more is asked for)"),
            value=beaten,
        )

    def _depends_on_weights(self, name: str) -> Evidence:
        told, question = self.attributions[name], self._question(self.task.seed)
        agreements = []
        if sanity.can_shuffle(self.model):
            for network in range(self.plan.networks):
                with sanity.shuffled_weights(self.model, self.task.seed * 1000 + network):
                    try:
                        other = self.plan.explainers[name].answer(question).values
                    except Exception as error:
                        if is_out_of_memory(error):
                            raise
                        continue  # a shuffled network may overflow: it tells nothing
                agreements.append(sanity.rank_agreement(told.values, other, self.data.kind)[0])
        known = [a for a in agreements if np.isfinite(a)]
        same = float(np.mean(known)) if known else None
        return Evidence(
            id=f"explanation.{self.plan.slugs[name]}.depends_on_weights",
            ok=same is not None and same < SAME_WITHOUT_WEIGHTS,
            detail=f"whether {name} looks at the weights could not be tested: shuffled, they give nothing to compare"
            if same is None
            else f"with shuffled weights ({len(known)} networks) {name} gives values of rank correlation {same:.2f} with these",
            value=same,
        )

    def _repeatable(self, name: str) -> Evidence:
        again = self.plan.explainers[name].answer(self._question(self.task.seed + 1))
        agreement = sanity.rank_agreement(self.attributions[name].values, again.values, self.data.kind)[0]
        return Evidence(
            id=f"explanation.{self.plan.slugs[name]}.repeatable",
            ok=bool(agreement >= REPEATS),
            detail=f"under another seed {name} ranks the inputs with a correlation of {agreement:.2f} to this ranking",
            value=finite(float(agreement)),
        )

    def _adds_up(self, name: str) -> Evidence:
        told = self.attributions[name]
        gap, change = told.completeness_gap, told.change
        share = None if gap is None or change is None else sanity.left_over(gap, change)
        most = ADDS_UP_DRAWN if told.used == "shap.gradient" else ADDS_UP
        left = "cannot be told: the answer is the baseline's" if share is None else f"{share:.2%} ({most:.0%} may be)"
        return Evidence(
            id=f"explanation.{self.plan.slugs[name]}.adds_up",
            ok=share is not None and share <= most,
            detail=f"share of the answer's change from the baseline that {name}'s values leave over: {left}",
            value=share,
        )

    # --- what is shown ------------------------------------------------------------------------------------------------

    def _sentence(self) -> str:
        label = self.data.test.y[self.position]
        if self.model.task == "regression":
            text = f"The network says {self.output[0]:.4g}; the label is {label:.4g}."
        else:
            names, says = self.task.classes, int(self.output.argmax())
            text = f"The network says {names[says]} with a probability of {_share(self.output[says])}; the label is "
            text += f"{names[int(label)]}."
            if self.target != says:
                text += f" What is explained is {names[self.target]}, which it gives {_share(self.output[self.target])}."
        believed = [name for name in self.attributions if not self.flaws[name]]
        return f"{text} {len(believed)} of {len(self.attributions)} explanations passed their tests."

    def _findings(self) -> list[Finding]:
        listed = [
            Finding(severity="medium", title=f"What {name} says here is not to be believed", detail="; ".join(flaws))
            for name, flaws in self.flaws.items()
            if flaws
        ]
        return [*listed, *(Finding(severity="medium", title=text[:200], detail=text) for text in self.failed.values())]

    def _drawn(self) -> tuple[list[Figure], list[Table]]:
        data, x = self.data, self.data.test.x[self.position]
        told = [pictures.Told(name, a.values[0], not self.flaws[name], a.signed) for name, a in self.attributions.items()]
        sample = pictures.Explained(self.index, x, "", told)
        figures = [self._probabilities()] if self.model.task != "regression" else []
        names = list(data.columns) or [f"column {j}" for j in range(x.shape[0])]
        if data.kind == "table":
            unit = "output" if self.model.task == "regression" else self.task.options.output.removesuffix("s")
            figures += [
                pictures.signed_bars(f"explanation.{self.plan.slugs[t.method]}", f"By {t.method}", sample, t, names, unit)
                for t in told
            ]
        elif pictures.can_be_drawn(x.shape):
            low, high = pictures.value_range(data)
            figures.append(
                pictures.heat_maps("explanation.heat_maps", "Red speaks for the answer, blue against it", [sample], low, high)
            )
        if len(told) > 1:
            figures.append(self._agreement())
        return figures, [self._used()]

    def _probabilities(self) -> Figure:
        order = np.argsort(-self.output, kind="stable")[:5]
        return Figure(
            id="explanation.probabilities",
            kind="bars",
            title="How sure the network is",
            data={
                "labels": [self.task.classes[j] for j in order],
                "values": [float(self.output[j]) for j in order],
                "xlabel": "probability",
                "ylabel": "class",
            },
        )

    def _agreement(self) -> Figure:
        names = list(self.attributions)
        values = [
            [
                finite(
                    float(sanity.rank_agreement(_sizes(self.attributions[a]), _sizes(self.attributions[b]), self.data.kind)[0])
                )
                for b in names
            ]
            for a in names
        ]
        data: dict[str, Any] = {
            "rows": names,
            "columns": names,
            "values": values,
            "xlabel": "method",
            "ylabel": "method",
        }
        title = "How far the methods agree on what matters: rank correlation of the sizes"
        return Figure(id="explanation.agreement", kind="matrix", title=title, data=data)

    def _used(self) -> Table:
        rows: list[list[Any]] = []
        for name, told in self.attributions.items():
            gap, change = told.completeness_gap, told.change
            rows.append(
                [
                    name,
                    told.used,
                    None if change is None else float(change[0]),
                    float(told.values.sum()) if told.signed else None,
                    None if gap is None else float(gap[0]),
                    told.forwards,
                    told.backwards,
                    "; ".join(told.notes),
                ]
            )
        return Table(
            id="explanation.used",
            title=f"What was used; changes of the {self._what()} are from {len(self.plan.background(0))} baseline rows",
            columns=["method", "used", "change to explain", "sum of values", "gap", "forwards", "backwards", "notes"],
            rows=rows,
        )

    def _what(self) -> str:
        return "output" if self.model.task == "regression" else self.task.options.output.removesuffix("s")


def _sizes(told: Attribution) -> Floats:
    return np.abs(told.values)


def _share(probability: float) -> str:
    """Write a probability so that rounding makes no certainty of it."""
    if 0.9995 <= probability < 1:
        return "more than 99.9%"
    return "less than 0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"
