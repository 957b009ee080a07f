"""Resize and Upsample: each axis is resampled by itself, from the nearest numbers or from weighted neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import (
    MOST,
    axes_of,
    check,
    check_padded,
    data,
    integer,
    integers,
    number,
    read,
    read_numbers,
    text,
)

_PLACES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class _How:
    """How an axis is resampled.

    Attributes
    ----------
    mode
        ``nearest``, ``linear`` or ``cubic``.
    place
        Which place of the input a place of the output stands for: the specification's ``coordinate_transformation_mode``.
    rounding
        To which neighbour ``nearest`` goes.
    coefficient
        The one of cubic interpolation: -0.75 in torch.
    renormalise
        Whether neighbours beyond the edge have no weight, and the others more.
    """

    mode: str
    place: str
    rounding: str = "round_prefer_floor"
    coefficient: float = -0.75
    renormalise: bool = False


@operator("Upsample")
def upsample(node: Node) -> Operation:
    """Resample by factors; the axes' first places stand for each other."""
    modes = ("nearest", "bilinear") if node.opset < 7 else ("nearest", "linear")
    mode = text(node, "mode", "nearest", modes)
    how = _How("nearest" if mode == "nearest" else "linear", "asymmetric", "floor")
    if node.opset >= 9:
        check(node, 2, 2, ("mode",))
        return Operation("interpolate", lambda x, scales: _scaled(x, read_numbers("Upsample", "scales", scales), how))
    if node.opset >= 7:
        check(node, 1, 1, ("mode", "scales"))
        scales = node.attributes.get("scales")
        if not isinstance(scales, list | tuple) or not all(isinstance(scale, int | float) for scale in scales):
            raise ValueError("Upsample needs the attribute scales")
        return Operation("interpolate", lambda x: _scaled(x, list(scales), how))
    check(node, 1, 1, ("height_scale", "mode", "width_scale"))
    height, width = number(node, "height_scale"), number(node, "width_scale")
    return Operation("interpolate", lambda x: _scaled(x, [1.0, 1.0, height, width], how))


def _scaled(x: Tensor, scales: Sequence[float], how: _How) -> Tensor:
    if len(scales) != x.ndim:
        raise ValueError(f"{len(scales)} scales for {x.ndim} axes")
    return _resampled(x, dict(enumerate(scales)), {}, how)


@operator("Resize")
def resize(node: Node) -> Operation:
    """Resample by factors or to lengths, in the ways of the specification that do not depend on a region of interest."""
    if node.opset < 11:
        check(node, 2, 2, ("mode",))
        how = _How(text(node, "mode", "nearest", ("nearest", "linear")), "asymmetric", "floor")
        return Operation("interpolate", lambda x, scales: _scaled(x, read_numbers("Resize", "scales", scales), how))
    newer = ("antialias", "axes", "keep_aspect_ratio_policy") if node.opset >= 18 else ()
    check(node, 1, 4, (*_KNOWN, *newer))
    policy = text(node, "keep_aspect_ratio_policy", "stretch", ("stretch", "not_larger", "not_smaller"))
    how = _how(node)
    named = integers(node, "axes") if "axes" in node.attributes else None

    # The second input, the region of interest, is for tf_crop_and_resize alone, which is not read.
    def compute(x: Tensor, region: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:  # noqa: ARG001
        axes = list(range(x.ndim)) if named is None else axes_of("Resize", named, x.ndim)
        if scales is not None and scales.numel():
            factors = read_numbers("Resize", "scales", scales)
            if len(factors) != len(axes) or (sizes is not None and sizes.numel()):
                raise ValueError(f"Resize: {len(factors)} scales for {len(axes)} axes, or both scales and sizes")
            return _resampled(x, dict(zip(axes, factors, strict=True)), {}, how)
        lengths = read("Resize", "sizes", sizes) if sizes is not None else []
        if len(lengths) != len(axes) or any(not 1 <= n <= MOST for n in lengths) or 0 in x.shape:
            raise ValueError(f"Resize: sizes {lengths[:8]} for a tensor of {tuple(x.shape)}")
        factors = [n / x.shape[axis] for n, axis in zip(lengths, axes, strict=True)]
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(axes)
            lengths = [math.floor(factor * x.shape[axis] + 0.5) for factor, axis in zip(factors, axes, strict=True)]
        return _resampled(x, dict(zip(axes, factors, strict=True)), dict(zip(axes, lengths, strict=True)), how)

    return Operation("interpolate", compute)


_KNOWN = (
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "mode",
    "nearest_mode",
)


def _how(node: Node) -> _How:
    if integer(node, "antialias", 0):
        raise Unsupported("Resize with antialias")
    return _How(
        text(node, "mode", "nearest", ("nearest", "linear", "cubic")),
        text(node, "coordinate_transformation_mode", "half_pixel", _PLACES),
        text(node, "nearest_mode", "round_prefer_floor", _ROUNDINGS),
        number(node, "cubic_coeff_a", -0.75),
        bool(integer(node, "exclude_outside", 0)),
    )


def _resampled(x: Tensor, scales: dict[int, float], lengths: dict[int, int], how: _How) -> Tensor:
    (x,) = data("Resize", x)
    for axis, scale in scales.items():
        if not (math.isfinite(scale) and 0 < scale <= MOST):
            raise ValueError(f"Resize: a scale of {scale}")
        # In float32, as the scales are stored and as other readers multiply.
        stretched = float(torch.tensor(scale, dtype=torch.float32) * x.shape[axis])
        length = lengths.get(axis, math.floor(stretched))
        if scale == 1 and length == x.shape[axis]:
            continue
        if length > MOST or x.shape[axis] == 0:
            raise ValueError(f"Resize: an axis of {x.shape[axis]} to {length}")
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        check_padded("Resize", shape if axis else (1, *shape))
        if how.place == "align_corners" and axis not in lengths and stretched != length:
            # Readers of the standard differ on whether the fraction that is cut off counts.
            raise Unsupported("Resize with align_corners and a scale that makes no whole number")
        x = _along(x, axis, scale, length, stretched if axis not in lengths else float(length), how)
    return x


def _along(x: Tensor, axis: int, scale: float, length: int, stretched: float, how: _How) -> Tensor:
    n = x.shape[axis]
    place = _places(n, scale, length, stretched, how.place).to(x.device)
    if how.mode == "nearest":
        return x.index_select(axis, _rounded(place, how.rounding).long().clamp(0, n - 1))
    low = place.floor()
    fraction = (place - low).to(x.dtype)
    steps = [0, 1] if how.mode == "linear" else [-1, 0, 1, 2]
    if how.mode == "linear":
        weights = [1 - fraction, fraction]
    else:
        weights = [_cubic((fraction - step).abs(), how.coefficient) for step in steps]
    neighbours = [low.long() + step for step in steps]
    if how.renormalise and how.mode == "cubic":
        weights = [torch.where((at >= 0) & (at < n), weight, 0.0) for at, weight in zip(neighbours, weights, strict=True)]
        total = sum(weights[1:], weights[0])
        weights = [weight / total for weight in weights]
    fit = (-1, *(1,) * (x.ndim - 1 - axis))
    parts = [
        x.index_select(axis, at.clamp(0, n - 1)) * weight.reshape(fit) for at, weight in zip(neighbours, weights, strict=True)
    ]
    return sum(parts[1:], parts[0])


def _places(n: int, scale: float, length: int, stretched: float, kind: str) -> Tensor:
    """Return for each place of the output the place of the input that it stands for."""
    at = torch.arange(length, dtype=torch.float32)
    factor = torch.tensor(scale, dtype=torch.float32)
    if kind == "asymmetric":
        return at / factor
    if kind == "align_corners":
        return at * (n - 1) / (length - 1) if length > 1 else torch.zeros(length)
    if kind == "pytorch_half_pixel" and length <= 1:
        return torch.zeros(length)
    shift = n / 2 * (1 - length / stretched) if kind == "half_pixel_symmetric" else 0.0
    return shift + (at + 0.5) / factor - 0.5


def _rounded(place: Tensor, rounding: str) -> Tensor:
    if rounding == "floor":
        return place.floor()
    if rounding == "ceil":
        return place.ceil()
    # Halves go down or up, not to the even neighbour.
    return (place - 0.5).ceil() if rounding == "round_prefer_floor" else (place + 0.5).floor()


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Return the weight of a neighbour at this distance: Keys 1981, equation 4, with the coefficient `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
