"""SHAP by whichever way fits: deep where the graph allows it, else gradients, else subsets; it says which, and why."""

from __future__ import annotations

from torch import Tensor

from audit.data.base import Kind
from audit.explain.base import Explainer, Question, Raw
from audit.explain.shap_deep import DeepSHAP
from audit.explain.shap_gradient import GradientSHAP
from audit.explain.shap_kernel import KernelSHAP
from audit.model.wrapper import Model

FEW_COLUMNS = 10  # of which all 1,022 subsets can be asked for: exact values, whatever the network is


class AutoSHAP(Explainer):
    """Shapley values by the first way that fits: all subsets (tables of few columns), deep, gradient.

    Parameters
    ----------
    samples
        Draws for each sample, where any are made.
    """

    name = "shap.auto"
    needs = ("shap",)
    complete = True
    random = True

    def __init__(self, samples: int = 200) -> None:
        self.samples = samples

    def attribute(self, question: Question) -> Raw:
        """Choose, explain, and say what was used."""
        if question.kind == "table" and question.x.shape[1] <= FEW_COLUMNS:
            return _said(KernelSHAP(1024), question, "all subsets of so few columns can be asked for")
        reason = self._not_deep(question.model, question.x[:2], question.kind, question.output)
        if reason is None:
            return _said(DeepSHAP(), question, "every step of the network's graph is one that shap knows")
        return _said(GradientSHAP(self.samples), question, f"shap.deep would be wrong here: {reason}")

    def _not_deep(self, model: Model, x: Tensor, kind: Kind, output: str) -> str | None:
        return "probabilities are explained" if output == "probabilities" else DeepSHAP().unsuited(model, x, kind)


def _said(explainer: Explainer, question: Question, why: str) -> Raw:
    raw = explainer.attribute(question)
    return Raw(raw.values, raw.start, used=explainer.name, notes=(f"{explainer.name} was used: {why}", *raw.notes))
