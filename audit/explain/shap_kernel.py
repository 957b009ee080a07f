"""Kernel SHAP: Shapley values by a weighted regression over subsets of the inputs (Lundberg & Lee 2017), through shap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from audit.errors import UsageError
from audit.explain.base import MOST_SEGMENTS, Explainer, Floats, Question, Raw, numpy_seeded, over_segment, segments


class KernelSHAP(Explainer):
    """What each input adds to the answer, on average over the orders in which inputs are put in place of the baseline rows'.

    With few inputs all subsets are asked for, and the values are exact. Pixels, and the entries of larger arrays, are
    taken in blocks of a grid.

    Parameters
    ----------
    samples
        Subsets a sample, at most; but at least four for each input, since the regression has as many unknowns.
    """

    name = "shap.kernel"
    needs = ("shap",)
    complete = True
    random = True

    def __init__(self, samples: int = 1024) -> None:
        if samples < 10:
            raise UsageError(f"samples must be at least 10, got {samples}")
        self.samples = samples

    def attribute(self, question: Question) -> Raw:
        """Explain sample by sample, each with a seed of its own."""
        from shap import KernelExplainer

        segment = segments(tuple(question.x.shape[1:]), question.kind, MOST_SEGMENTS)
        count = int(segment.max()) + 1
        background = question.background if question.kind == "table" else question.baseline
        values, subsets = np.zeros((len(question.x), count)), max(self.samples, 4 * count)
        for row in range(len(question.x)):
            ask = subsets_asked(question, row, background, segment)
            with numpy_seeded(question.row_seed(row, "shap.kernel")):
                # The features that shap switches are whether a segment is the sample's (1) or the baseline's (0).
                explainer = KernelExplainer(ask, np.zeros((1, count)))
                values[row] = explainer.shap_values(np.ones(count), nsamples=subsets, l1_reg=False, silent=True)
        notes = (f"over {count} blocks of a grid",) if count < int(np.prod(segment.shape)) and question.kind != "image" else ()
        return Raw(over_segment(values, segment), question.mean_answer(background), notes=notes)


def subsets_asked(
    question: Question, row: int, background: torch.Tensor, segment: NDArray[np.int64]
) -> Callable[[NDArray[Any]], Floats]:
    """Return the mean answer over the background rows with some segments taken from the sample: the game that is shared out.

    What is returned takes an array of shape (subsets, segments), 1 where the segment is the sample's.
    """
    place = torch.from_numpy(segment).to(question.x.device)

    def ask(subsets: NDArray[Any]) -> Floats:
        on = torch.as_tensor(np.ascontiguousarray(subsets)).to(question.x)
        size, parts = max(1, question.model.batch_size.current // len(background)), []
        for start in range(0, len(on), size):
            keep = on[start : start + size][:, place][:, None]
            x = torch.where(keep > 0.5, question.x[row], background[None]).flatten(0, 1)
            answers = question.answers(x, question.target[row].expand(len(x)))
            parts.append(answers.reshape(-1, len(background)).mean(axis=1))
        return np.concatenate(parts)

    return ask
