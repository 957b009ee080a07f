"""LIME: a linear model of the network around one sample (Ribeiro, Singh & Guestrin 2016), through the lime package."""

from __future__ import annotations

import numpy as np
import torch

from audit.errors import UsageError
from audit.explain.base import MOST_SEGMENTS, Explainer, Floats, Question, Raw, over_segment, segments

FEW_VALUED = 20  # a column of whole numbers with at most so many values is a category to lime,
REPEATED = 10  # if each stands in the background so many times on average: of few rows every column has few values
KERNEL_WIDTH = 0.25  # lime's own for images


class Lime(Explainer):
    """Weights of a ridge regression that imitates the network on neighbours of the sample.

    Tables: lime's tabular explainer with its defaults: columns in quartiles of the baseline rows, columns of few whole
    numbers as categories. Images and arrays: blocks of a grid are replaced by the mean of the baseline rows, each with
    chance one half; a block's weight is shared evenly among its inputs. lime's own segmentation (quickshift) finds one
    segment only in small pictures, and its explainer copies pictures one by one.

    Parameters
    ----------
    samples
        Neighbours of each sample.
    """

    name = "lime"
    needs = ("lime",)
    random = True

    def __init__(self, samples: int = 1000) -> None:
        if samples < 10:
            raise UsageError(f"samples must be at least 10, got {samples}")
        self.samples = samples

    def attribute(self, question: Question) -> Raw:
        """Explain sample by sample, each with a seed of its own."""
        return self._tables(question) if question.kind == "table" else self._segments(question)

    def _tables(self, question: Question) -> Raw:
        from lime.lime_tabular import LimeTabularExplainer

        if len(question.background) < 2:
            raise UsageError("lime needs several baseline rows for a table: it draws neighbours from their spread")
        background, x = (t.double().cpu().numpy() for t in (question.background, question.x))
        few = [j for j, column in enumerate(background.T) if _is_category(column)]
        explainer = LimeTabularExplainer(background, mode="regression", categorical_features=few, random_state=0)
        values = np.zeros(x.shape)
        for row in range(len(x)):
            state = np.random.RandomState(question.row_seed(row, "lime"))
            explainer.random_state = explainer.base.random_state = state
            if explainer.discretizer is not None:
                explainer.discretizer.random_state = state
            told = explainer.explain_instance(x[row], question.ask(row), num_features=x.shape[1], num_samples=self.samples)
            for column, weight in told.local_exp[1]:
                values[row, column] = weight
        return Raw(values, notes=(f"{len(few)} of {x.shape[1]} columns taken as categories",) if few else ())

    def _segments(self, question: Question) -> Raw:
        from lime.lime_base import LimeBase
        from sklearn.metrics import pairwise_distances

        shape = tuple(question.x.shape[1:])
        segment = segments(shape, question.kind, MOST_SEGMENTS)
        count, flat = int(segment.max()) + 1, torch.from_numpy(segment).to(question.x.device)
        values = np.zeros((len(question.x), count))
        for row in range(len(question.x)):
            seed = question.row_seed(row, "lime")
            on = np.random.default_rng(seed).integers(0, 2, (self.samples, count)).astype(np.float64)
            on[0] = 1.0
            base = LimeBase(_kernel, random_state=np.random.RandomState(seed))
            labels = self._ask(question, row, torch.from_numpy(on).to(question.x), flat)
            distances = pairwise_distances(on, on[:1], metric="cosine").ravel()
            _, weights, _, _ = base.explain_instance_with_data(
                on, labels[:, None], distances, 0, count, feature_selection="none"
            )
            for index, weight in weights:
                values[row, index] = weight
        notes = (f"over {count} blocks of a grid",) if count < int(np.prod(shape)) else ()
        return Raw(over_segment(values, segment), notes=notes)

    def _ask(self, question: Question, row: int, on: torch.Tensor, segment: torch.Tensor) -> Floats:
        """Return the answers with some segments replaced by the baseline's, shape (samples,)."""
        size, parts = max(1, question.model.batch_size.current), []
        for start in range(0, len(on), size):
            keep = on[start : start + size][:, segment]
            x = keep * question.x[row] + (1 - keep) * question.baseline
            parts.append(question.answers(x, question.target[row].expand(len(x))))
        return np.concatenate(parts)


def _kernel(distances: Floats) -> Floats:
    return np.asarray(np.sqrt(np.exp(-(distances**2) / KERNEL_WIDTH**2)), dtype=np.float64)


def _is_category(column: Floats) -> bool:
    values = np.unique(column)
    return bool(len(values) <= min(FEW_VALUED, len(column) // REPEATED) and np.all(values == np.round(values)))
