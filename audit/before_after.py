"""Hardens a network and proves it: an audit before, the training, an audit after on the same samples, and their comparison."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit import figures
from audit.attacks.geometry import ThreatModel
from audit.attacks.goal import Goal
from audit.checks.base import Task
from audit.checks.robustness import Robustness, threat_model
from audit.config import Config, Limit, validate
from audit.data.base import Dataset
from audit.errors import UsageError
from audit.hardening import (
    Ascent,
    HardeningOptions,
    History,
    Method,
    check_task,
    harden,
    method_named,
    robust_accuracy,
    training_data,
)
from audit.hardening.saved import NAME, saved
from audit.hardening.validation import split
from audit.model.graph import Graph
from audit.model.wrapper import Model, Origin
from audit.plan import check_limits
from audit.policy import judge
from audit.preflight import preflight
from audit.progress import Progress
from audit.provenance import data_info, model_info, spec_of
from audit.result import CheckResult, Cost, Figure, Passes, Result, make_folder, own_folder, write_atomically
from audit.runner import execute
from audit.tradeoff import CHECK, METRICS, Trial, conclude

CHECKS = ["performance", "robustness"]
SHOWN, SHOWN_STEPS = 6, 40
DEPLOYED = "the network was trained as its file deploys it: batch normalisation and dropout stay as in evaluation"
WRITTEN = {f"{NAME}.{ending}" for ending in ("pt", "pt2", "onnx")}


@dataclass(frozen=True)
class Hardened:
    """What came of hardening: the network, its training, and the result that compares before and after.

    `opens` says how the file is opened that the network was written to; it is empty where none was.
    """

    model: Model
    history: History
    result: Result
    opens: str = ""


def execute_hardening(
    model: Model,
    data: Dataset,
    config: Config,
    options: HardeningOptions,
    *,
    method: str | type[Method] | None = None,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    command: str = "",
    debug: bool = False,
) -> Hardened:
    """Audit the network, harden a copy of it on the reference part, audit that on the same test samples, and compare.

    Parameters
    ----------
    model, data, config
        What to harden, with what, and how both audits are made; its limits judge the comparison.
    options
        How to train. Norm and radius hold for training and audits alike.
    method
        A class of your own in place of ``options.method``.
    out
        Folder for the hardened network, both audits (``before``, ``after``) and the training's checkpoint; nothing is
        written where None. What is finished is kept: a second call goes on where the first was stopped.
    fresh
        Train and audit anew.

    Raises
    ------
    UsageError
        There is no reference part, or an option cannot be used.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    progress = progress or Progress(quiet=True)
    training_data(data)  # without a reference part nothing can be trained: said before the first audit
    chosen = method_named(method or options.method)
    stated, config = config.policy.limit, _with_limit(config, options.norm)
    config = config.model_copy(update={"run": config.run.model_copy(update={"checks": CHECKS, "skip": []})})
    check_limits(config.policy, METRICS)
    audited = _audits(config, options)
    if config.run.samples is not None:
        data = data.sample(config.run.samples, config.run.seed)
    with model.session():
        preflight(model, data)
    check_task(chosen, model)

    before = _audit(model, data, audited, out, "before", fresh, progress, debug)
    audited = _same_tolerance(audited, before, options.norm)
    threat = _threat(model, data, audited, options)
    hardened, history = harden(
        model,
        data,
        method=chosen,
        threat=threat,
        seed=config.run.seed,
        out=None if out is None else own_folder(out, "training"),
        fresh=fresh,
        say=progress.say,
        norm=options.norm,
        eps=threat.eps,
        **options.model_dump(exclude={"method", "norm", "eps"}),
    )
    if isinstance(hardened.module, Graph):
        hardened.notes.extend((*model.notes, DEPLOYED))
        progress.say(DEPLOYED)
    opens = ""
    if out is not None:
        hardened, opens = _written(hardened, model, out)
    after = _audit(hardened, data, audited, out, "after", fresh, progress, debug)

    trial = Trial(
        before,
        after,
        history,
        _same_attack(hardened, data, threat, history, options, config.run.seed),
        _errors(model, hardened, data),
        None if hardened.task == "regression" else data.test.y,
    )
    shown = _gallery(model, hardened, data, threat, trial) if config.run.save_samples else []
    answer = _billed(conclude(trial, config.policy.confidence, more=shown), trial)
    checks = [answer, *(_moved(check) for check in after.checks)]
    verdict = judge(config.policy, checks, gate=config.run.gate, required=CHECKS, today=started.date())
    if verdict.word == "pass" and not stated:
        # That it helped is no verdict on whether the network may be used: only limits of the user's own give one.
        config = config.model_copy(update={"policy": config.policy.model_copy(update={"limit": []})})
        verdict = judge(config.policy, checks, gate=config.run.gate, required=CHECKS, today=started.date())
    spec = spec_of(config, hardened, command, CHECKS)
    result = Result(
        verdict=verdict.word,
        sentence=verdict.sentence,
        exit_code=verdict.exit_code,
        started_at=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - clock, 3),
        spec=spec.model_copy(update={"config": {**spec.config, CHECK: options.model_dump(mode="json")}}),
        model=model_info(hardened, data),
        data=data_info(data),
        checks=checks,
        policy=verdict.judgements,
    )
    if out is not None:
        result.save(out)
    return Hardened(hardened, history, result, opens)


# --- the two audits ---------------------------------------------------------------------------------------------------


def _with_limit(config: Config, norm: str) -> Config:
    """Add the limit that hardening must be shown to have helped, where the policy states none on the gain."""
    metric = f"{CHECK}.{norm}.accuracy_gain"
    if any(limit.metric == metric for limit in config.policy.limit):
        return config
    limits = [*config.policy.limit, Limit(metric=metric, min=0.0)]
    return config.model_copy(update={"policy": config.policy.model_copy(update={"limit": limits})})


def _audits(config: Config, options: HardeningOptions) -> Config:
    """Return the configuration of both audits: two checks, one norm and radius, and no limits, which are for the whole."""
    robustness = {**config.checks.get("robustness", {}), "norm": [options.norm]}
    robustness.pop("eps", None)
    if options.eps is not None:
        robustness["eps"] = [options.eps]
    checks = {name: section for name, section in config.checks.items() if name in CHECKS}
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"samples": None}),
            "policy": config.policy.model_copy(update={"limit": []}),
            "checks": {**checks, "robustness": robustness},
        }
    )


def _same_tolerance(config: Config, before: Result, norm: str) -> Config:
    """Hold both networks to one tolerance (regression): its default grows with a network's own errors."""
    check = before["robustness"]
    if before.model.task != "regression" or check.status not in ("measured", "incomplete"):
        return config
    tolerance = check.metric(f"robustness.{norm}.accuracy").params.get("tolerance")
    section = {**config.checks["robustness"], **({"tolerance": tolerance} if tolerance else {})}
    return config.model_copy(update={"checks": {**config.checks, "robustness": section}})


def _audit(
    model: Model, data: Dataset, config: Config, out: Path | None, name: str, fresh: bool, progress: Progress, debug: bool
) -> Result:
    progress.say(f"--- {'the given network' if name == 'before' else 'the hardened network'} ---")
    folder = None if out is None else make_folder(own_folder(out, name))
    result = execute(model, data, config, out=folder, fresh=fresh, progress=progress, debug=debug)
    if folder is not None:
        result.save(folder)
    return result


def _threat(model: Model, data: Dataset, config: Config, options: HardeningOptions) -> ThreatModel:
    """Return what training may change: the radius that the audits attack with, in the box of the training samples."""
    section = validate(Robustness.Options, config.checks["robustness"], "robustness")
    threat = threat_model(Task(model, training_data(data), section), options.norm)
    audited = threat_model(Task(model, data, section), options.norm)
    if threat.eps != audited.eps:
        raise UsageError(
            f"training and audit should change inputs by the same, got {threat.eps:g} and {audited.eps:g}: state --eps"
        )
    return threat


def _written(hardened: Model, given: Model, out: Path) -> tuple[Model, str]:
    """Write the network, and return it as it lies in the file, and how that is opened."""
    file = saved(hardened, given)
    path = out / file.name
    for name in WRITTEN - {file.name}:
        (out / name).unlink(missing_ok=True)  # of an earlier run: two hardened networks would lie there
    write_atomically(path, file.content)
    hardened._origin = Origin(
        source=str(path),
        sha256=hashlib.sha256(file.content).hexdigest(),
        format=file.format,
        arch_sha256=given.origin.arch_sha256,
        trusted=given.origin.trusted,
    )
    return hardened, file.opens


# --- what the comparison needs beside them ----------------------------------------------------------------------------


def _same_attack(
    hardened: Model, data: Dataset, threat: ThreatModel, history: History, options: HardeningOptions, seed: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Count what stays right under the attack of early stopping, on the validation part and as many test samples."""
    if hardened.task == "regression":
        return None
    _, validation = split(training_data(data), options.validation, seed)
    test = data.sample(min(len(data.test), history.n_validation), seed).test
    counts = []
    for part in (validation, test):
        _, robust = robust_accuracy(hardened, part, threat, steps=options.validation_steps, seed=seed)
        counts.append((round(robust * len(part)), len(part)))
    return counts[0], counts[1]


def _errors(given: Model, hardened: Model, data: Dataset) -> NDArray[np.float64] | None:
    """Return how much larger the absolute error of each test sample became; None for classification."""
    if given.task != "regression":
        return None
    x = torch.from_numpy(data.test.x)
    before, after = (np.abs(m.predict(x).cpu().numpy().astype(np.float64) - data.test.y) for m in (given, hardened))
    change: NDArray[np.float64] = after - before
    return change if np.isfinite(change).all() else None


def _gallery(given: Model, hardened: Model, data: Dataset, threat: ThreatModel, trial: Trial) -> list[Figure]:
    """Show the worst inputs that were found for both networks, side by side, where inputs are images."""
    if data.kind != "image" or data.test.x.shape[1] not in (1, 3) or given.task == "regression":
        return []
    right = trial.correct(trial.before), trial.correct(trial.after)
    if right[0] is None or right[1] is None:
        return []
    positions = np.flatnonzero(right[0] & right[1])[:SHOWN]
    if len(positions) == 0:
        return []
    x, y = data.tensor(positions), torch.from_numpy(data.test.y[positions])
    worst = [_worst(model, x, y, threat) for model in (given, hardened)]
    said = [model.predict(points) for model, points in zip((given, hardened), worst, strict=True)]
    low, high = (float(np.min(side)) if i == 0 else float(np.max(side)) for i, side in enumerate(data.box()))
    names = list(data.classes) or given.class_names or [str(k) for k in range(given.classes or 0)]
    items = [
        figures.Item(
            id=int(data.test.ids[p]),
            images=[figures.unit(image[i].cpu().numpy(), low, high) for image in (x, *worst)],
            caption=f"{names[int(y[i])]}: taken for {names[int(said[0][i])]} before, for {names[int(said[1][i])]} after",
        )
        for i, p in enumerate(positions)
    ]
    panels = ["clean", "worst for the given network", "worst for the hardened one"]
    return [figures.gallery("hardening.worst", "The worst inputs that were found for each network", panels, items)]


def _worst(model: Model, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    inputs = model.to_input(x)
    goal = Goal("classification", y.to(model.device))
    with model.session():
        ascend = Ascent(threat.on(inputs), SHOWN_STEPS, 2.5 / SHOWN_STEPS, 0, 0)
        return ascend(model, inputs, goal.raw_loss)


def _billed(answer: CheckResult, trial: Trial) -> CheckResult:
    """Add what the training cost, and the audit before it; the one after is billed by its own checks."""
    seconds = round(sum(epoch.seconds for epoch in trial.history.epochs), 3)
    training = Passes(forwards=trial.history.forwards, backwards=trial.history.backwards, seconds=seconds)
    before = sum((Passes(**check.cost.model_dump(exclude={"parts"})) for check in trial.before.checks), Passes())
    total = training + before
    parts = {"hardening.training": training, "hardening.before": before}
    return answer.model_copy(update={"cost": Cost(**total.model_dump(), parts=parts)})


def _moved(check: CheckResult) -> CheckResult:
    """Return a check of the audit after, as part of the whole: its arrays lie in that audit's folder."""
    return check if check.artifact is None else check.model_copy(update={"artifact": f"after/{check.artifact}"})


def split_off(config: Config) -> tuple[Config, HardeningOptions]:
    """Return a configuration without its section ``[hardening]``, and that section, validated.

    Raises
    ------
    UsageError
        An option that there is none of, or a value that cannot be used.
    """
    checks = {name: section for name, section in config.checks.items() if name != CHECK}
    options: HardeningOptions = validate(HardeningOptions, config.checks.get(CHECK, {}), CHECK)
    return config.model_copy(update={"checks": checks}), options
