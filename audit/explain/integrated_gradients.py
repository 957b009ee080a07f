"""Integrated gradients along the straight line from the baseline (Sundararajan, Taly & Yan 2017), through captum."""

from __future__ import annotations

from torch import Tensor

from audit.errors import UsageError
from audit.explain.base import Explainer, Question, Raw


class IntegratedGradients(Explainer):
    """Gradient of the answer, averaged on the way from the baseline to the sample, times the way.

    The values add up to the change of the answer (completeness, their proposition 1). With several baseline rows the
    line starts at their mean.

    Parameters
    ----------
    steps
        Points on the line: Gauss–Legendre nodes.
    """

    name = "integrated_gradients"
    needs = ("captum",)
    complete = True

    def __init__(self, steps: int = 50) -> None:
        if steps < 2:
            raise UsageError(f"steps must be at least 2, got {steps}")
        self.steps = steps

    def attribute(self, question: Question) -> Raw:
        """Return captum's IntegratedGradients."""
        from captum.attr import IntegratedGradients as CaptumIntegratedGradients

        captum, baseline = CaptumIntegratedGradients(question.value), question.baseline

        def integrate(x: Tensor, target: Tensor) -> Tensor:
            out: Tensor = captum.attribute(x, baseline, additional_forward_args=(target,), n_steps=self.steps)
            question.model.backwards += len(x) * self.steps
            return out

        start = question.mean_answer(baseline)
        return Raw(question.batched(integrate, copies=self.steps), start, notes=("from the mean of the baseline rows",))
