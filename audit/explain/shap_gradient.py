"""Gradient SHAP (expected gradients, Erion et al. 2021): gradients between the sample and baseline rows, through shap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from audit.errors import UsageError
from audit.explain.base import Explainer, Question, Raw, numpy_seeded


class GradientSHAP(Explainer):
    """Mean of the gradient times the way, over baseline rows and points on the way that are drawn.

    Its values add up to the change of the answer on average over draws: with few draws there is a gap.

    Parameters
    ----------
    samples
        Draws for each sample.
    """

    name = "shap.gradient"
    needs = ("shap",)
    complete = True
    random = True

    def __init__(self, samples: int = 200) -> None:
        if samples < 2:
            raise UsageError(f"samples must be at least 2, got {samples}")
        self.samples = samples

    def attribute(self, question: Question) -> Raw:
        """Explain sample by sample, each with a seed of its own."""
        from shap import GradientExplainer

        values = np.zeros(tuple(question.x.shape))
        for row in range(len(question.x)):
            network = _OneAnswer(question, row)
            explainer = GradientExplainer(network, question.background, batch_size=question.model.batch_size.current)
            with numpy_seeded(0), torch.enable_grad():
                told = explainer.shap_values(
                    question.x[row : row + 1], nsamples=self.samples, rseed=question.row_seed(row, "shap.gradient")
                )
            question.model.backwards += self.samples
            values[row] = np.asarray(told).reshape(question.x.shape[1:])
        return Raw(values, question.mean_answer(question.background))


class _OneAnswer(nn.Module):
    """The network as shap's gradient explainer calls it: the answer for one sample's target, shape (n, 1)."""

    def __init__(self, question: Question, row: int) -> None:
        super().__init__()
        self.question, self.row = question, row

    def forward(self, x: Tensor) -> Tensor:
        return self.question.value(x, self.question.target[self.row].expand(len(x)))[:, None]
