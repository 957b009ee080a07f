"""Grad-CAM: where the last convolution sees what speaks for the answer (Selvaraju et al. 2017), through captum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audit.data.base import Kind
from audit.explain.base import Explainer, Question, Raw
from audit.model.graph import Step
from audit.model.wrapper import Model


class GradCAM(Explainer):
    """Feature maps of the last convolution, weighted by their mean gradients, what is positive of them, enlarged.

    The last convolution is found by looking at which ones run, and when. Values of a pixel are shared evenly among its
    channels.
    """

    name = "gradcam"
    needs = ("captum",)
    signed = False
    needs_baseline = False

    def unsuited(self, model: Model, x: Tensor, kind: Kind) -> str | None:
        """Return why there is no map to look at, or None."""
        if kind != "image":
            return "it is for images"
        if last_convolution(model, x) is None:
            return "the network has no two-dimensional convolution that is used once and sees more than one place"
        return None

    def attribute(self, question: Question) -> Raw:
        """Return captum's LayerGradCam, enlarged to the size of the input."""
        from captum.attr import LayerAttribution, LayerGradCam

        found = last_convolution(question.model, question.x[:1])
        if found is None:
            raise ValueError("no convolution to look at")
        name, layer = found
        captum = LayerGradCam(question.value, layer)
        channels, height, width = question.x.shape[1:]

        def look(x: Tensor, target: Tensor) -> Tensor:
            coarse = captum.attribute(
                x.detach().requires_grad_(True), additional_forward_args=(target,), relu_attributions=True
            )
            question.model.backwards += len(x)
            fine: Tensor = LayerAttribution.interpolate(coarse.detach(), (height, width), interpolate_mode="bilinear")
            return fine.expand(-1, channels, -1, -1) / channels

        return Raw(question.batched(look), notes=(f"of the last convolution, {name}",))


def last_convolution(model: Model, x: Tensor) -> tuple[str, nn.Module] | None:
    """Return name and module of the convolution that runs last, or None where none can be looked at."""
    order: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def note(name: str) -> object:
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                order.append((name, module))

        return hook

    hooks = []
    try:
        for name, module in model.module.named_modules():
            if _convolves(module) and id(module) not in seen:
                seen.add(id(module))
                hooks.append(module.register_forward_hook(note(name)))
        if not hooks:
            return None
        with model.session(), torch.no_grad():
            model.outputs(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    # captum takes the output of one call of a layer: one that runs twice has two.
    once = [entry for entry in order if sum(other is entry[1] for _, other in order) == 1]
    return once[-1] if once and once[-1] is order[-1] else None


def _convolves(module: nn.Module) -> bool:
    if isinstance(module, Step):
        return module.kind in ("conv2d", "conv_transpose2d")
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
