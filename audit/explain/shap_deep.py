"""Deep SHAP: DeepLIFT's rules, averaged over baseline rows (Lundberg & Lee 2017, section 4.2), through shap, where it fits."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from audit.data.base import Kind
from audit.explain import deep_steps
from audit.explain.base import Explainer, Question, Raw
from audit.explain.deep_graph import why_not_deep
from audit.model.graph import Graph
from audit.model.wrapper import Model


class DeepSHAP(Explainer):
    """Differences from the baseline, handed back through the layers by rules of their own.

    Only for networks whose graph is all of steps that shap knows: on others its values are wrong without a word. What is
    explained are logits or values, since shap has no rule for a softmax that holds.
    """

    name = "shap.deep"
    needs = ("shap",)
    complete = True

    def unsuited(self, model: Model, x: Tensor, kind: Kind) -> str | None:  # noqa: ARG002
        """Return what in the graph shap would get wrong, or None."""
        return deep_steps.why_not_deep(model, x) if isinstance(model.module, Graph) else why_not_deep(model)

    def attribute(self, question: Question) -> Raw:
        """Explain in batches, on a copy of the network: shap writes to the modules that it looks at."""
        from shap import DeepExplainer

        if question.output == "probabilities":
            raise ValueError("Deep SHAP explains logits: give output='logits'")
        network = _Copy(question.model).to(question.x.device).eval()
        if isinstance(network.network, Graph):
            deep_steps.dress(question.model, network.network, question.x)
        values = np.zeros(tuple(question.x.shape))
        model, background = question.model, question.background
        size = max(1, model.batch_size.current // len(background))
        with torch.enable_grad():
            explainer = DeepExplainer(network, background)
            for start in range(0, len(values), size):
                part = question.take(slice(start, start + size))
                values[start : start + size] = _of_target(explainer, part, model)
                # Each sample goes through beside each baseline row, and once more to see which outputs there are.
                model.forwards += len(part.x) * (2 * len(background) + 1)
                model.backwards += len(part.x) * 2 * len(background)
        model.forwards += len(background)
        return Raw(values, question.mean_answer(background))


def _of_target(explainer: object, question: Question, model: Model) -> np.ndarray:
    """Return the values for each sample's own target, shape like x; those of a single logit are turned round for class 0."""
    out = np.zeros(tuple(question.x.shape))
    single = (model.output or "").startswith("binary") or model.task == "regression"
    for target in torch.unique(question.target).tolist():
        rows = (question.target == target).cpu().numpy()
        network: _Copy = explainer.explainer.model  # type: ignore[attr-defined]
        network.column = 0 if single else int(target)
        told = explainer.shap_values(question.x[torch.from_numpy(rows)], check_additivity=False)  # type: ignore[attr-defined]
        sign = -1.0 if single and model.task != "regression" and target == 0 else 1.0
        out[rows] = sign * np.asarray(told).reshape(-1, *question.x.shape[1:])
    return out


class _Copy(nn.Module):
    """A copy of the network, mean and std included, that returns one of its outputs, shape (n, 1)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.module)
        self.normalise, self.dtype = model.normalise, model.dtype
        self.column = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(self.normalise(x).to(self.dtype))
        return out.reshape(len(x), -1)[:, self.column : self.column + 1].to(x.dtype)  # NumPy knows no bfloat16
