"""Asks whether the answer depends on what an explanation calls important: deletion and insertion against random rankings.

Source: deletion and insertion curves as in Petsiuk, Das & Saenko (2018), BMVC, section 4.2 (and Samek et al. 2017); here each
curve is compared with those of random rankings of the same sample, which no explanation can be worth less than.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from torch import Tensor

from audit.data.noise import uniform_noise
from audit.explain.base import Floats, Question, by_segment, segments
from audit.stats import Interval

STEPS = 16
REPLACEMENTS = 10  # baseline rows that a table's absent columns are filled from
FEWEST = 10  # samples below which no interval of a mean is stated


def rank(values: Floats, question: Question, *, signed: bool) -> NDArray[np.int64]:
    """Rank what can be taken away (pixels, columns, entries), most important first; shape (n, units).

    Important is what speaks for the answer; in regression, and where values have no sign, what is large. Equal values stand
    in an order drawn for each sample: the order of columns or pixels must not help.
    """
    unit = segments(tuple(question.x.shape[1:]), question.kind)
    relevance = by_segment(values, unit)
    if not signed or question.model.task == "regression":
        relevance = np.abs(relevance)
    ties = uniform_noise(question.ids, (relevance.shape[1],), seed=question.seed, purpose="explanation.ties").numpy()
    return np.lexsort((ties, -np.nan_to_num(relevance, nan=-np.inf)), axis=1).astype(np.int64)


def random_rank(question: Question, draw: int) -> NDArray[np.int64]:
    """Return one random ranking for each sample, shape (n, units)."""
    units = int(segments(tuple(question.x.shape[1:]), question.kind).max()) + 1
    drawn = uniform_noise(question.ids, (units,), seed=question.seed, purpose="explanation.random", draw=draw)
    return drawn.argsort(dim=1).numpy().astype(np.int64)


def curve(question: Question, order: NDArray[np.int64], *, spread: float = 1.0, insert: bool = False) -> Floats:
    """Return the score after each step of taking away (or putting in) inputs in this order, shape (n, steps + 1).

    Classification: the probability of the target. Regression: 1 − |move of the output| / `spread`. What is taken away is
    replaced by the mean of the baseline rows, in a table by the rows themselves, over which the score is averaged.
    """
    unit = torch.from_numpy(segments(tuple(question.x.shape[1:]), question.kind)).to(question.x.device)
    place = np.argsort(order, axis=1)  # the step at which each unit goes
    many = question.background[:REPLACEMENTS] if question.kind == "table" else question.baseline
    asked = replace(question, output="probabilities") if question.model.task != "regression" else question
    clean = question.answers(question.x, question.target) if question.model.task == "regression" else None
    units = order.shape[1]
    steps = min(units, STEPS)
    columns = []
    for step in range(steps + 1):
        taken = place < round(units * step / steps)
        gone = torch.from_numpy(taken != insert).to(question.x.device)[:, unit]
        columns.append(_score(asked, gone, many, clean, spread))
    return np.stack(columns, axis=1)


def area(scores: Floats) -> Floats:
    """Return the mean of each curve over its steps after the first, shape (n,): small where it falls fast."""
    return np.asarray(scores[:, 1:].mean(axis=1), dtype=np.float64)


def mean_interval(values: NDArray[Any], confidence: float) -> Interval:
    """Return a mean with the interval of Student's t over samples; no limits below 10 values or where all are equal.

    With 20 to 60 differences of bounded curves it covers about what it states; where a few values rule the mean, less.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known) == 0:
        return Interval(None, None, None)
    mean, error = float(known.mean()), float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    if len(known) < FEWEST or float(np.ptp(known)) == 0:
        return Interval(mean, None, None)
    half = float(scipy_stats.t.isf((1 - confidence) / 2, len(known) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def _score(question: Question, gone: Tensor, many: Tensor, clean: Floats | None, spread: float) -> Floats:
    total = np.zeros(len(question.x))
    for row in many:
        answers = question.answers(torch.where(gone, row, question.x), question.target)
        total += answers if clean is None else 1 - np.abs(answers - clean) / spread
    return np.asarray(total / len(many), dtype=np.float64)
