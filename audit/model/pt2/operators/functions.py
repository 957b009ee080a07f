"""Operators that need another call than torch's own of that name: checks first, or a call that is seen or safe.

Keywords are those of the operator's schema. Where the file names a device, the value is made where the network's input is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from audit.model.graph import TooLarge

MOST_PARTS = 4096
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
# Layers times time steps: each takes about 50 µs.
MOST_STEPS = 2**16


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """``softmax.int``, called so that the softmax at a network's end is noticed and undone."""
    return torch.softmax(x, dim, dtype=dtype)


def softmax_kernel(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """``_softmax``: what softmax decomposes to."""
    return torch.softmax(x, dim, dtype=torch.float32 if half_to_float else None)


def sigmoid(x: Tensor) -> Tensor:
    """Compute ``sigmoid`` by the call that is noticed."""
    return torch.sigmoid(x)


def sigmoid_in_place(x: Tensor) -> Tensor:
    """Compute ``sigmoid_`` by the call that is noticed."""
    return torch.sigmoid_(x)


def unchanged(x: Tensor, **_: Any) -> Tensor:
    """Dropout in evaluation: the very tensor that came in."""
    return x


def rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, **_: Any) -> Tensor:
    """Compute ``rrelu`` in evaluation: its slope is the middle of those that it draws from in training."""
    return torch.rrelu(x, lower, upper, False)


def rrelu_in_place(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, **_: Any) -> Tensor:
    """Compute ``rrelu_`` in evaluation."""
    return torch.rrelu_(x, lower, upper, False)


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    """Normalise with the running statistics; unlike the kernels, this call checks that they fit."""
    return torch.batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, torch.backends.cudnn.enabled)


def batch_norm_kernel(x: Tensor, **keywords: Any) -> tuple[Tensor, None, None]:
    """``native_batch_norm`` and its kin, whose other results nothing reads in evaluation."""
    return batch_norm(x, **keywords), None, None


def batch_norm_of_one(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    """``_native_batch_norm_legit.no_stats``: how instance norm is decomposed, all samples and channels laid side by side.

    Raises
    ------
    ValueError
        Several samples stand in the first dimension: they would be normalised with one another.
    """
    if len(x) != 1 or not training:
        raise ValueError("it normalises samples with one another: export it after model.eval()")
    return torch.batch_norm(x, weight, bias, None, None, True, momentum, eps, torch.backends.cudnn.enabled), None, None


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    **_: Any,
) -> Tensor:
    """Compute ``instance_norm``, which may not change its running statistics.

    Raises
    ------
    ValueError
        It would.
    """
    if use_input_stats and (running_mean is not None or running_var is not None):
        raise ValueError("it changes its running statistics: export it after model.eval()")
    return torch.instance_norm(
        x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, torch.backends.cudnn.enabled
    )


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Compute ``_weight_norm``: the direction of `v` with lengths `g`, of which the kernel reads as many as it needs.

    Raises
    ------
    ValueError
        There is not one length for each entry of `dim`, or one in all where that is -1.
    """
    wanted = tuple(n if axis == dim else 1 for axis, n in enumerate(v.shape)) if dim != -1 else ()
    if tuple(g.shape) != wanted or not -1 <= dim < v.ndim:
        raise ValueError(f"a weight of shape {tuple(v.shape)} needs lengths of shape {wanted}, got {tuple(g.shape)}")
    return v * (g / torch.norm_except_dim(v, 2, dim))


def group_norm_kernel(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    eps: float,
    **sizes: int,
) -> tuple[Tensor, None, None]:
    """``native_group_norm``, whose sizes must be those of its input.

    Raises
    ------
    ValueError
        They are not.
    """
    n, channels, places = sizes["N"], sizes["C"], sizes["HxW"]
    if x.ndim < 2 or tuple(x.shape[:2]) != (n, channels) or x.numel() != n * channels * places:
        raise ValueError(f"it is told {n} samples, {channels} channels and {places} places, and gets shape {tuple(x.shape)}")
    return torch.group_norm(x, group, weight, bias, eps, torch.backends.cudnn.enabled), None, None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """``convolution``: what each convolution decomposes to."""
    return torch.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def view(x: Tensor, size: Sequence[int]) -> Tensor:
    """``view``, which must not fail where a kernel lays its output out in another way than on the exporter's machine."""
    return x.reshape(size)


def divided(x: Tensor, other: Tensor | float, rounding_mode: str | None = None) -> Tensor:
    """Divide and round; by -1 without the kernel, which the smallest whole number would stop the process in (SIGFPE)."""
    if rounding_mode is not None and torch.result_type(x, other) in SIGNED:
        divisor, by_minus_one = _without_minus_one(x, other)
        found = torch.div(x, divisor, rounding_mode=rounding_mode)
        return torch.where(by_minus_one, -found, found)
    return torch.div(x, other, rounding_mode=rounding_mode)


def divided_down(x: Tensor, other: Tensor | float) -> Tensor:
    """Divide and round down."""
    return divided(x, other, "floor")


def rest(x: Tensor, other: Tensor | float) -> Tensor:
    """Compute what a division leaves; by -1 nothing, without asking the kernel."""
    if torch.result_type(x, other) in SIGNED:
        return torch.remainder(x, _without_minus_one(x, other)[0])
    return torch.remainder(x, other)


def rest_towards_zero(x: Tensor, other: Tensor | float) -> Tensor:
    """Compute ``fmod``; by -1 without asking the kernel."""
    if torch.result_type(x, other) in SIGNED:
        return torch.fmod(x, _without_minus_one(x, other)[0])
    return torch.fmod(x, other)


def _without_minus_one(x: Tensor, other: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return a divisor with 1 in the place of -1, and where that was; in the type of the result, in which 255 is not -1."""
    divisor = torch.as_tensor(other, device=x.device).to(torch.result_type(x, other))
    by_minus_one = divisor == -1
    return torch.where(by_minus_one, 1, divisor), by_minus_one


def squeeze(x: Tensor, dim: Sequence[int]) -> Tensor:
    """``squeeze.default`` without the dimensions that happen to be 1, such as a batch of one sample."""
    return x.squeeze(tuple(dim)) if dim else x.view(x.shape)


def copied(x: Tensor, src: Tensor, **_: Any) -> Tensor:
    """Compute ``copy``: the shape and type of `x` with the values of `src`. torch's own has no gradient."""
    return src.to(x.dtype).expand(x.shape).clone()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Tensor:
    """Compute ``scaled_dot_product_attention`` without dropout."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> tuple[Tensor | None, ...]:
    """Compute attention by whatever kernel suits the device; nothing reads the kernels' other results."""
    mask = attn_bias if attn_mask is None else attn_mask
    return (attention(query, key, value, mask, is_causal=is_causal, scale=scale), *[None] * 8)


def recurrent(gates: int, operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``lstm.input``, ``gru.input`` or ``rnn_tanh.input`` with its weights checked before they reach a kernel.

    Parameters
    ----------
    gates
        Blocks of rows in each weight: 4 in an LSTM, 3 in a GRU, 1 else.
    """

    def run(
        x: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
        **_: Any,
    ) -> Any:
        states = list(hx) if isinstance(hx, list | tuple) else [hx]
        _check_recurrent(gates, x, states, params, has_biases, num_layers, bidirectional, batch_first)
        axis = 1 if batch_first and x.ndim == 3 else 0
        long = x.shape[axis]
        if long * num_layers > MOST_STEPS:
            raise TooLarge(f"a recurrent layer would take {long * num_layers:,} steps; at most {MOST_STEPS:,} are computed")
        states_in = states if gates == 4 else states[0]
        if x.is_meta and long > 2:
            x = x.narrow(axis, 0, 2)  # on the meta device one step has the shapes of all
        out, *last = operator(x, states_in, params, has_biases, num_layers, 0.0, False, bidirectional, batch_first)
        if x.is_meta and long > 2:
            shape = list(out.shape)
            shape[axis] = long
            out = out.new_empty(shape)
        return (out, *last)

    return run


def _check_recurrent(
    gates: int,
    x: Tensor,
    states: list[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    directions = 2 if bidirectional else 1
    if len(states) != (2 if gates == 4 else 1) or not 1 <= num_layers <= 1024 or x.ndim not in (2, 3):
        raise ValueError("a recurrent layer has other states, layers or dimensions than torch writes")
    hidden, output = states[-1].shape[-1], states[0].shape[-1]  # an LSTM's output is smaller where it is projected
    each = (4 if has_biases else 2) + (hidden != output)
    batch = () if x.ndim == 2 else (x.shape[0 if batch_first else 1],)
    if (
        any(tuple(s.shape[:-1]) != (num_layers * directions, *batch) for s in states)
        or len(params) != num_layers * directions * each
    ):
        raise ValueError("the states or weights of a recurrent layer do not fit its layers and directions")
    width = x.shape[-1]
    for layer in range(num_layers):
        for direction in range(directions):
            start = (layer * directions + direction) * each
            got = [tuple(part.shape) for part in params[start : start + each]]
            want: list[tuple[int, ...]] = [(gates * hidden, width), (gates * hidden, output)]
            want += [(gates * hidden,)] * 2 if has_biases else []
            want += [(output, hidden)] if hidden != output else []
            if got != want:
                raise ValueError(f"the weights of a recurrent layer should have the shapes {want}, got {got}")
        width = output * directions


def split(x: Tensor, split_size: Any, dim: int = 0) -> Any:
    """``split``, ``split_with_sizes``, into a number of parts that the machine survives."""
    if isinstance(split_size, int):
        if split_size < 1 or x.shape[dim] > split_size * MOST_PARTS:
            raise TooLarge(
                f"a dimension of {x.shape[dim]:,} is split into parts of {split_size}; at most {MOST_PARTS:,} are made"
            )
        return torch.split(x, split_size, dim)
    return torch.split_with_sizes(x, list(split_size), dim)


def split_with_sizes(x: Tensor, split_sizes: Sequence[int], dim: int = 0) -> Any:
    """Split into parts of these sizes."""
    return torch.split_with_sizes(x, list(split_sizes), dim)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> Any:
    """Split into so many parts."""
    if not 1 <= chunks <= MOST_PARTS:
        raise TooLarge(f"a value is split into {chunks:,} parts; at most {MOST_PARTS:,} are made")
    return torch.chunk(x, chunks, dim)


def unbind(x: Tensor, dim: int = 0) -> Any:
    """Split into single entries."""
    if x.shape[dim] > MOST_PARTS:
        raise TooLarge(f"a value is split into {x.shape[dim]:,} parts; at most {MOST_PARTS:,} are made")
    return torch.unbind(x, dim)


def repeat_interleave(x: Tensor, repeats: int, dim: int | None = None, **_: Any) -> Tensor:
    """Repeat each entry; checked before it is made, for torch makes a list of indices first."""
    long = x.numel() if dim is None else x.shape[dim]
    if not 0 <= repeats <= MOST_PARTS or long * repeats > 2**26:
        raise TooLarge(f"{long:,} entries are repeated {repeats:,} times")
    return torch.repeat_interleave(x, repeats, dim)


def einsum(equation: str, tensors: Sequence[Tensor], path: Sequence[int] | None = None) -> Tensor:
    """Sum products of at most two tensors: with more, what is made on the way could be larger than what comes out."""
    if len(tensors) > 2 or len(equation) > 200 or path:
        raise ValueError("an einsum of more than two tensors is not computed: call it twice")
    return torch.einsum(equation, list(tensors))


def converted(
    x: Tensor,
    dtype: torch.dtype | None = None,
    copy: bool = False,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """``to`` in all its forms: another type, never another device."""
    return x.to(
        dtype=x.dtype if dtype is None else dtype,
        copy=copy,
        memory_format=torch.preserve_format if memory_format is None else memory_format,
    )


def converted_copy(x: Tensor, dtype: torch.dtype | None = None, memory_format: torch.memory_format | None = None) -> Tensor:
    """``_to_copy``: another type, in memory of its own."""
    return converted(x, dtype, True, memory_format)


def converted_as(x: Tensor, other: Tensor, **keywords: Any) -> Tensor:
    """``type_as``, ``to.other``."""
    return converted(x, other.dtype, **keywords)


def fresh(x: Tensor) -> Tensor:
    """``lift_fresh``: a constant that is made anew each time, so that writing into it changes no other pass."""
    return x.clone()


def made(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator that makes values from nothing, on the device of the network's input (its first argument)."""

    def make(like: Tensor, *arguments: Any, **keywords: Any) -> Any:
        return operator(*arguments, **keywords, device=like.device)

    return make
