"""Permutation SHAP: Shapley values from walks through the inputs in random orders, there and back, through shap."""

from __future__ import annotations

import numpy as np

from audit.data.base import Kind
from audit.errors import UsageError
from audit.explain.base import Explainer, Question, Raw, numpy_seeded
from audit.model.wrapper import Model


class PermutationSHAP(Explainer):
    """What each column adds to the answer, averaged over some random orders, each walked forwards and backwards.

    Each walk adds up exactly (Mitchell et al. 2022 on antithetic orders). For tables.

    Parameters
    ----------
    walks
        Orders a sample.
    """

    name = "shap.permutation"
    needs = ("shap",)
    complete = True
    random = True

    def __init__(self, walks: int = 10) -> None:
        if walks < 1:
            raise UsageError(f"walks must be at least 1, got {walks}")
        self.walks = walks

    def unsuited(self, model: Model, x: object, kind: Kind) -> str | None:  # noqa: ARG002
        """Return that it is for tables, or None."""
        return None if kind == "table" else "it is for tables; shap.gradient and shap.kernel take images and sequences"

    def attribute(self, question: Question) -> Raw:
        """Explain row by row, each with a seed of its own."""
        from shap import PermutationExplainer
        from shap.maskers import Independent

        x, background = (t.double().cpu().numpy() for t in (question.x, question.background))
        masker = Independent(background, max_samples=len(background))
        values = np.zeros(x.shape)
        for row in range(len(x)):
            seed = question.row_seed(row, "shap.permutation")
            with numpy_seeded(seed):
                explainer = PermutationExplainer(question.ask(row), masker, seed=seed)
                told = explainer(x[row : row + 1], max_evals=self.walks * (2 * x.shape[1] + 1), silent=True)
            values[row] = told.values[0]
        return Raw(values, question.mean_answer(question.background))
