"""Explanations of single answers: one file a method, on the base class that owns targets, baselines and completeness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from audit.errors import UsageError, closest
from audit.explain.base import Attribution, Explainer
from audit.explain.gradcam import GradCAM
from audit.explain.integrated_gradients import IntegratedGradients
from audit.explain.lime import Lime
from audit.explain.saliency import Saliency
from audit.explain.shap_auto import AutoSHAP
from audit.explain.shap_deep import DeepSHAP
from audit.explain.shap_gradient import GradientSHAP
from audit.explain.shap_kernel import KernelSHAP
from audit.explain.shap_permutation import PermutationSHAP

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from audit.data.base import Kind
    from audit.model.wrapper import Model

EXPLAINERS: dict[str, type[Explainer]] = {
    explainer.name: explainer
    for explainer in (
        Saliency,
        IntegratedGradients,
        GradCAM,
        KernelSHAP,
        PermutationSHAP,
        GradientSHAP,
        DeepSHAP,
        AutoSHAP,
        Lime,
    )
}

__all__ = ["EXPLAINERS", "Attribution", "Explainer", "explain", "get", "registry"]


def registry() -> dict[str, type[Explainer]]:
    """Return all explainers by name: those of this package, then those of the entry-point group ``audit.explainers``."""
    from importlib.metadata import entry_points

    third_party = {point.name: point.load() for point in entry_points(group="audit.explainers")}
    return {**EXPLAINERS, **{name: cls for name, cls in third_party.items() if name not in EXPLAINERS}}


def get(name: str) -> type[Explainer]:
    """Return the explainer with this name; a UsageError names what is close."""
    known = registry()
    if name not in known:
        raise UsageError(f"no explainer {name!r}; {closest(name, list(known))}")
    return known[name]


def explain(
    model: Model | nn.Module,
    x: Tensor | ArrayLike,
    *,
    method: str = "integrated_gradients",
    baseline: Tensor | ArrayLike | None = None,
    target: int | Tensor | ArrayLike | None = None,
    output: str = "logits",
    seed: int = 0,
    ids: Tensor | ArrayLike | None = None,
    kind: Kind | None = None,
    **options: Any,
) -> Attribution:
    """Say how much each input speaks for an answer of the network.

    Parameters
    ----------
    model
        A Model, or a live ``torch.nn.Module``.
    x
        Samples of shape (n, …).
    method
        Name of an explainer; ``audit list explainers`` names them.
    baseline
        What an absent input is replaced by: rows of shape (b, …), some training data say, or one row.
    target
        The class to explain, for all or for each; the predicted class where None. Regression has one output only.
    output
        ``logits``, or ``probabilities``, whose changes are small where the network is sure.
    seed
        Of everything that is drawn.
    ids
        Stable sample ids, which draws belong to; row numbers where None.
    kind
        ``table``, ``image`` or ``array``; told from the shape where None.
    options
        Parameters of the method.

    Raises
    ------
    UsageError
        There is no such method, it does not fit the network or the data, or a package that it needs is not installed.

    Examples
    --------
    >>> import torch
    >>> from audit.explain import explain
    >>> network = torch.nn.Linear(3, 2)
    >>> x = torch.randn(4, 3)
    >>> a = explain(network, x, method="integrated_gradients", baseline=torch.zeros(1, 3), target=1)
    >>> a.values.shape, bool(a.completeness_gap.max() < 1e-4)
    ((4, 3), True)
    """
    from audit.model.wrapper import Model

    network = model if isinstance(model, Model) else Model(model)
    try:
        explainer = get(method)(**options)
    except TypeError as error:
        raise UsageError(f"{method} cannot be made with {options}: {error}") from None
    return explainer(network, x, baseline=baseline, target=target, output=output, seed=seed, ids=ids, kind=kind)
