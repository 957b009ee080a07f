"""Saliency: how steeply the answer changes with each input (Simonyan, Vedaldi & Zisserman 2014), through captum."""

from __future__ import annotations

from torch import Tensor

from audit.explain.base import Explainer, Question, Raw


class Saliency(Explainer):
    """Size of the gradient of the answer in each input, for tables times the column's spread."""

    name = "saliency"
    needs = ("captum",)
    signed = False
    needs_baseline = False

    def attribute(self, question: Question) -> Raw:
        """Return captum's Saliency."""
        from captum.attr import Saliency as CaptumSaliency

        captum = CaptumSaliency(question.value)

        def sizes(x: Tensor, target: Tensor) -> Tensor:
            out: Tensor = captum.attribute(x.detach().requires_grad_(True), additional_forward_args=(target,))
            question.model.backwards += len(x)
            return out

        values = question.batched(sizes)
        if question.kind != "table" or len(question.background) < 2:
            return Raw(values)
        # A steep gradient in a column that hardly varies says nothing: columns have units of their own.
        spread = question.background.double().std(dim=0, correction=0).cpu().numpy()
        return Raw(values * spread, notes=("gradients are taken per standard deviation of each column",))
