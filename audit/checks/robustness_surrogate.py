"""The surrogate of the transfer attack: trained on the network's own answers, or a network that the user gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from audit.attacks.base import Attack
from audit.attacks.noise import UniformNoise
from audit.attacks.transfer import Transfer, fit_surrogate, refitted, weights
from audit.checks.base import Arrays, Block, CheckOptions, Found, Stage, Task, spread_positions
from audit.checks.robustness_evidence import suspicious
from audit.checks.robustness_state import SURROGATE, Attacked
from audit.errors import UsageError
from audit.model.wrapper import Model

LEARNT_FROM = 2000  # inputs that a surrogate learns from
ASKED = 8  # samples that a network which was given is asked with


class SurrogateOptions(CheckOptions):
    """``[robustness.surrogate]``: a network for the same inputs and classes, in a file that holds all of it.

    The hash is that of the file as it is when the options are read, where none is stated: it stands in the result, and what an
    earlier run found with another file is not taken for this one's.
    """

    path: str
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, value: Any) -> Any:
        given = {"path": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or given.get("sha256") or not isinstance(given.get("path"), str):
            return given
        try:
            return {**given, "sha256": hashlib.sha256(Path(given["path"]).read_bytes()).hexdigest()}
        except OSError:
            return given  # loading says what is wrong


def given(task: Task) -> Model | None:
    """Load the surrogate that the user gives; None where none is given. Nothing of its file is run.

    Raises
    ------
    AuditError
        The file cannot be read, or holds a network that is for other inputs or classes.
    """
    options = task.options.surrogate
    if options is None:
        return None
    target = task.model
    mean, std = (None if side is None else side.cpu().numpy() for side in (target.mean, target.std))
    surrogate = Model.load(
        options.path,
        expect_sha256=options.sha256,
        task=target.task,
        bounds=target.bounds,
        mean=mean,
        std=std,
        device=str(target.device),
        batch_size=target.batch_size.current,
    )
    surrogate.resolve(task.data.tensor(np.arange(min(ASKED, len(task.data.test)))), task.data.test.y[:ASKED])
    if surrogate.classes != target.classes:
        raise UsageError(
            f"robustness.surrogate should be for {target.classes} classes, as the audited network is; "
            f"{options.path} is for {surrogate.classes}"
        )
    return surrogate


def preflight(task: Task) -> None:
    """Refuse a surrogate that cannot be read or does not fit."""
    given(task)


def stage(one: Attacked, after: tuple[str, ...]) -> Stage:
    """Return the stage that trains a surrogate where none is given, on reference data, or on test data where there is none."""
    task = one.task
    part = "test" if task.data.reference is None else "reference"

    def job(block: Block) -> Arrays:
        if len(block.ids) < 2:
            return {}
        return weights(fit_surrogate(task.model, block.x, seed=task.seed))

    def select(found: Found) -> NDArray[np.int64]:
        wanted = task.options.surrogate is None and (task.profile != "quick" or suspicious(one, found))
        standing = one.standing(found, one.evaluated()).any()
        return spread_positions(len(task.part(part)), LEARNT_FROM) if wanted and standing else np.arange(0)

    return Stage(
        id=one.id(SURROGATE),
        job=job,
        cost_of=one.id("transfer"),
        part=part,
        select=select,
        after=("predictions.test", *(one.id(other) for other in after)),
        passes=0.1,
        whole=True,
    )


def available(one: Attacked, found: Found) -> bool:
    """Tell whether there is a surrogate: one that was given, or trained."""
    return one.task.options.surrogate is not None or len(found[one.id(SURROGATE)].arrays) > 0


def on_surrogate(one: Attacked) -> Callable[[Attack, Block], Attack]:
    """Return what hands the surrogate to the attack; an attack that does nothing where there is none."""
    loaded: list[Model] = []

    def prepared(attack: Attack, block: Block) -> Attack:
        if not isinstance(attack, Transfer) or not available(one, block.earlier):
            return UniformNoise(one.threat.norm, one.threat.eps, draws=0)
        if one.task.options.surrogate is None:
            arrays = block.earlier[one.id(SURROGATE)].arrays
            attack.surrogate = refitted(one.task.model, tuple(block.x.shape[1:]), arrays)
        else:
            if not loaded:
                loaded.extend(model for model in [given(one.task)] if model is not None)
            attack.surrogate = loaded[0]
        return attack

    return prepared
