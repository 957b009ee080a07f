"""Arguments for each operator that a ``.pt2`` program may use: made from one input of shape (n, 3, 8, 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from audit.model.pt2.operators import names

Case = Callable[[Tensor], tuple[Any, ...]]


def row(x: Tensor) -> Tensor:
    """(n, 8), all signs."""
    return x[:, 0, 0]


def seq(x: Tensor) -> Tensor:
    """(n, 8, 8)."""
    return x[:, 0]


def positive(x: Tensor) -> Tensor:
    return row(x).abs() + 0.5


def unit(x: Tensor) -> Tensor:
    """Between 0 and 1."""
    return row(x).sigmoid() * 0.8 + 0.1


def mask(x: Tensor) -> Tensor:
    return row(x) > 0


def vol(x: Tensor) -> Tensor:
    """(n, 2, 3, 8, 8)."""
    return torch.stack((x, x * 0.5), 1)


def w(*shape: int) -> Tensor:
    """Weights that are the same each time."""
    count = 1
    for n in shape:
        count *= n
    return ((torch.arange(count, dtype=torch.float32) * 0.37).sin() * 0.5).reshape(shape)


def heads(x: Tensor) -> Tensor:
    """(n, 3, 8, 8): three heads."""
    return x


def case(name: str, x: Tensor) -> tuple[Any, ...]:
    """Return positional arguments, and a dict of keywords at the end where there are any."""
    if name in CASES:
        return CASES[name](x)
    packet, overload = name.split(".")
    packet = packet.removesuffix("_") if name in names.IN_PLACE.split() else packet
    if f"{packet}.{overload}" in CASES:
        return CASES[f"{packet}.{overload}"](x)
    if packet in POSITIVE:
        return (positive(x),)
    if overload in ("Tensor", "Tensor_Tensor", "other") or packet in BINARY:
        return (row(x), w(8))
    if overload in ("Scalar", "Tensor_Scalar"):
        return (row(x), 2)
    if packet in UNIT:
        return (unit(x),)
    return (row(x),)


POSITIVE = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"}
UNIT = {"asin", "acos", "logit"}
BINARY = {"maximum", "minimum", "fmax", "fmin", "atan2", "logaddexp", "hypot", "logical_and", "logical_or", "logical_xor"}


def _rnn(gates: int, x: Tensor, *, layers: int = 2, directions: int = 2) -> tuple[Any, ...]:
    n, hidden = x.shape[0], 5
    params, width = [], 8
    for _ in range(layers):
        for _ in range(directions):
            params += [w(gates * hidden, width), w(gates * hidden, hidden), w(gates * hidden), w(gates * hidden)]
        width = hidden * directions
    state = torch.zeros(layers * directions, n, hidden)
    states: Any = [state, state] if gates == 4 else state
    return (seq(x), states, params, True, layers, 0.0, False, directions == 2, True)


def _cell(gates: int, x: Tensor) -> tuple[Any, ...]:
    state = torch.zeros(x.shape[0], 5)
    states: Any = [state, state] if gates == 4 else state
    return (row(x), states, w(gates * 5, 8), w(gates * 5, 5), w(gates * 5), w(gates * 5))


def _norm(x: Tensor) -> tuple[Any, ...]:
    return (x, w(3), w(3), w(3), w(3).abs() + 0.5)


CASES: dict[str, Case] = {
    "linear.default": lambda x: (row(x), w(4, 8), w(4)),
    "addmm.default": lambda x: (w(4), row(x), w(8, 4)),
    "addmv.default": lambda x: (w(1), row(x), w(8)),
    "addbmm.default": lambda x: (w(8, 5), seq(x), w(1, 8, 5).expand(x.shape[0], 8, 5)),
    "mm.default": lambda x: (row(x), w(8, 4)),
    "bmm.default": lambda x: (seq(x), seq(x)),
    "mv.default": lambda x: (row(x), w(8)),
    "dot.default": lambda x: (row(x).sum(0), w(8)),
    "baddbmm.default": lambda x: (w(8, 8), seq(x), seq(x), {"beta": 0.5, "alpha": 2}),
    "matmul.default": lambda x: (x, w(8, 4)),
    "bilinear.default": lambda x: (row(x), row(x), w(4, 8, 8), w(4)),
    "outer.default": lambda x: (row(x).sum(0), w(8)),
    "conv1d.default": lambda x: (seq(x), w(4, 8, 3), w(4), [2], [1]),
    "conv1d.padding": lambda x: (seq(x), w(4, 8, 3), None, [1], "same"),
    "conv2d.default": lambda x: (x, w(6, 1, 3, 3), w(6), [2, 1], [1, 0], [1, 2], 3),
    "conv2d.padding": lambda x: (x, w(4, 3, 3, 3), w(4), [1, 1], "valid"),
    "conv3d.default": lambda x: (vol(x), w(4, 2, 2, 3, 3), w(4)),
    "conv3d.padding": lambda x: (vol(x), w(4, 2, 2, 3, 3), w(4), [1, 1, 1], "same"),
    "conv_transpose1d.default": lambda x: (seq(x), w(8, 4, 3), w(4), [2]),
    "conv_transpose2d.input": lambda x: (x, w(3, 2, 3, 3), w(2), [2, 2], [1, 1], [1, 1]),
    "conv_transpose3d.input": lambda x: (vol(x), w(2, 4, 2, 3, 3), w(4)),
    "convolution.default": lambda x: (x, w(4, 3, 3, 3), w(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "layer_norm.default": lambda x: (row(x), [8], w(8), w(8), 1e-5),
    "native_layer_norm.default": lambda x: (row(x), [8], w(8), w(8), 1e-5),
    "group_norm.default": lambda x: (x, 3, w(3), w(3), 1e-5),
    "native_group_norm.default": lambda x: (x, w(3), w(3), x.shape[0], 3, 64, 3, 1e-5),
    "rms_norm.default": lambda x: (row(x), [8], w(8), 1e-5),
    "batch_norm.default": lambda x: (*_norm(x), False, 0.1, 1e-5, True),
    "native_batch_norm.default": lambda x: (*_norm(x), False, 0.1, 1e-5),
    "_native_batch_norm_legit.default": lambda x: (*_norm(x), False, 0.1, 1e-5),
    "_native_batch_norm_legit_no_training.default": lambda x: (*_norm(x), 0.1, 1e-5),
    "_native_batch_norm_legit.no_stats": lambda x: (x.reshape(1, -1, 8, 8), None, None, True, 0.1, 1e-5),
    "instance_norm.default": lambda x: (x, w(3), w(3), None, None, True, 0.1, 1e-5, True),
    "linalg_vector_norm.default": lambda x: (row(x), 2, [1], True),
    "norm.Scalar": lambda x: (row(x), 2),
    "norm.ScalarOpt_dim": lambda x: (row(x), 2, [1], True),
    "norm.ScalarOpt_dim_dtype": lambda x: (row(x), 2, [1], True, {"dtype": torch.float64}),
    "norm.ScalarOpt_dtype": lambda x: (row(x), 2, {"dtype": torch.float64}),
    "threshold.default": lambda x: (row(x), 0.1, -1.0),
    "prelu.default": lambda x: (x, w(3)),
    "_prelu_kernel.default": lambda x: (x, w(1, 3, 1, 1)),
    "gelu.default": lambda x: (row(x), {"approximate": "tanh"}),
    "softmax.int": lambda x: (row(x), 1),
    "_softmax.default": lambda x: (row(x), 1, False),
    "log_softmax.int": lambda x: (row(x), 1, torch.float64),
    "_log_softmax.default": lambda x: (row(x), 1, False),
    "glu.default": lambda x: (row(x), 1),
    "logit.default": lambda x: (unit(x), 1e-3),
    "max_pool1d.default": lambda x: (seq(x), [2], [1], [1]),
    "max_pool2d.default": lambda x: (x, [3, 2], [2, 2], [1, 0], [1, 1], True),
    "max_pool3d.default": lambda x: (vol(x), [2, 2, 2]),
    "max_pool1d_with_indices.default": lambda x: (seq(x), [2]),
    "max_pool2d_with_indices.default": lambda x: (x, [2, 2]),
    "max_pool3d_with_indices.default": lambda x: (vol(x), [2, 2, 2]),
    "avg_pool1d.default": lambda x: (seq(x), [2]),
    "avg_pool2d.default": lambda x: (x, [3, 3], [2, 2], [1, 1], True, False),
    "avg_pool3d.default": lambda x: (vol(x), [2, 2, 2]),
    "adaptive_avg_pool1d.default": lambda x: (seq(x), [3]),
    "adaptive_avg_pool2d.default": lambda x: (x, [3, 3]),
    "adaptive_avg_pool3d.default": lambda x: (vol(x), [2, 3, 3]),
    "_adaptive_avg_pool2d.default": lambda x: (x, [3, 3]),
    "_adaptive_avg_pool3d.default": lambda x: (vol(x), [2, 3, 3]),
    "adaptive_max_pool1d.default": lambda x: (seq(x), [3]),
    "adaptive_max_pool2d.default": lambda x: (x, [3, 3]),
    "adaptive_max_pool3d.default": lambda x: (vol(x), [2, 3, 3]),
    "dropout.default": lambda x: (row(x), 0.5, False),
    "dropout_.default": lambda x: (row(x), 0.5, False),
    "feature_dropout.default": lambda x: (x, 0.5, False),
    "alpha_dropout.default": lambda x: (row(x), 0.5, False),
    "feature_alpha_dropout.default": lambda x: (x, 0.5, False),
    "flatten.using_ints": lambda x: (x, 1),
    "unflatten.int": lambda x: (row(x), 1, [2, -1]),
    "view.default": lambda x: (x, [x.shape[0], -1]),
    "_unsafe_view.default": lambda x: (x, [x.shape[0], 192]),
    "reshape.default": lambda x: (x.transpose(1, 2), [x.shape[0], 192]),
    "unsqueeze.default": lambda x: (x, 1),
    "squeeze.dim": lambda x: (x[:, :1], 1),
    "squeeze.dims": lambda x: (x[:, :1, :1], [1, 2]),
    "permute.default": lambda x: (x, [0, 2, 3, 1]),
    "transpose.int": lambda x: (x, 1, -1),
    "t.default": lambda x: (row(x),),
    "numpy_T.default": lambda x: (row(x),),
    "mT.default": lambda x: (x,),
    "swapaxes.default": lambda x: (x, 1, 2),
    "movedim.int": lambda x: (x, 1, 3),
    "movedim.intlist": lambda x: (x, [1, 2], [2, 1]),
    "expand.default": lambda x: (x[:, :1], [-1, 4, 8, 8]),
    "expand_as.default": lambda x: (x[:, :1], x),
    "repeat.default": lambda x: (x, [1, 2, 1, 1]),
    "tile.default": lambda x: (x, [2, 1]),
    "cat.default": lambda x: ([x, x], 1),
    "concat.default": lambda x: ([x, x], 1),
    "stack.default": lambda x: ([x, x], 1),
    "hstack.default": lambda x: ([row(x), row(x)],),
    "vstack.default": lambda x: ([row(x), row(x)],),
    "slice.Tensor": lambda x: (x, 3, 1, -1, 2),
    "select.int": lambda x: (x, 1, -1),
    "narrow.default": lambda x: (x, 2, 1, 3),
    "index.Tensor": lambda x: (x, [None, torch.tensor([2, 0]), None, torch.tensor([[1], [3]])]),
    "index_select.default": lambda x: (x, 2, torch.tensor([5, 0])),
    "gather.default": lambda x: (row(x), 1, torch.tensor([[5, 0]]).expand(x.shape[0], 2)),
    "flip.default": lambda x: (x, [2, 3]),
    "roll.default": lambda x: (x, [2], [3]),
    "reshape_as.default": lambda x: (x.flatten(1), x),
    "view_as.default": lambda x: (x.flatten(1).clone(), x),
    "diagonal.default": lambda x: (x, 1, 2, 3),
    "unfold.default": lambda x: (x, 3, 3, 2),
    "tril.default": lambda x: (x, 1),
    "triu.default": lambda x: (x, -1),
    "pad.default": lambda x: (x, [1, 2], "constant", 0.5),
    "constant_pad_nd.default": lambda x: (x, [1, -1, 0, 2], 0.5),
    "reflection_pad1d.default": lambda x: (seq(x), [1, 2]),
    "reflection_pad2d.default": lambda x: (x, [1, 2, 3, 0]),
    "reflection_pad3d.default": lambda x: (vol(x), [1, 2, 3, 0, 1, 1]),
    "replication_pad1d.default": lambda x: (seq(x), [1, 2]),
    "replication_pad2d.default": lambda x: (x, [1, 2, 3, 0]),
    "replication_pad3d.default": lambda x: (vol(x), [1, 2, 3, 0, 1, 1]),
    "pixel_shuffle.default": lambda x: (torch.cat([x, x[:, :1]], 1), 2),
    "pixel_unshuffle.default": lambda x: (x, 2),
    "channel_shuffle.default": lambda x: (torch.cat([x, x], 1), 2),
    "upsample_nearest1d.default": lambda x: (seq(x), [12]),
    "upsample_nearest1d.vec": lambda x: (seq(x), None, [1.5]),
    "upsample_nearest2d.default": lambda x: (x, [12, 16]),
    "upsample_nearest2d.vec": lambda x: (x, None, [1.5, 2.0]),
    "upsample_nearest3d.default": lambda x: (vol(x), [6, 12, 16]),
    "upsample_nearest3d.vec": lambda x: (vol(x), None, [2.0, 1.5, 2.0]),
    "_upsample_nearest_exact1d.vec": lambda x: (seq(x), None, [1.5]),
    "_upsample_nearest_exact2d.default": lambda x: (x, [12, 16]),
    "_upsample_nearest_exact2d.vec": lambda x: (x, None, [1.5, 2.0]),
    "upsample_linear1d.default": lambda x: (seq(x), [12], False),
    "upsample_linear1d.vec": lambda x: (seq(x), None, True, [1.5]),
    "upsample_bilinear2d.default": lambda x: (x, [12, 16], False),
    "upsample_bilinear2d.vec": lambda x: (x, None, True, [1.5, 2.0]),
    "upsample_trilinear3d.default": lambda x: (vol(x), [6, 12, 16], False),
    "upsample_trilinear3d.vec": lambda x: (vol(x), None, True, [2.0, 1.5, 2.0]),
    "upsample_bicubic2d.default": lambda x: (x, [12, 16], False),
    "upsample_bicubic2d.vec": lambda x: (x, None, True, [1.5, 2.0]),
    "slice_scatter.default": lambda x: (x, x[:, :1] * 2, 1, 1, 2),
    "select_scatter.default": lambda x: (x, x[:, 0] * 2, 1, 2),
    "copy.default": lambda x: (x, x[:, :1]),
    "index_put.default": lambda x: (row(x), [None, torch.tensor([1, 3])], w(2)),
    "scatter.src": lambda x: (row(x), 1, torch.tensor([[5, 0]]).expand(x.shape[0], 2), row(x)[:, 2:4]),
    "scatter.value": lambda x: (row(x), 1, torch.tensor([[5, 0]]).expand(x.shape[0], 2), 0.5),
    "scatter_add.default": lambda x: (row(x), 1, torch.tensor([[5, 0]]).expand(x.shape[0], 2), row(x)[:, 2:4]),
    "embedding.default": lambda x: (w(9, 4), (row(x).abs() * 2).clamp(0, 8).long()),
    "div.Tensor": lambda x: (row(x), positive(x)),
    "div.Tensor_mode": lambda x: (row(x), positive(x), {"rounding_mode": "floor"}),
    "div.Scalar_mode": lambda x: (row(x), 0.3, {"rounding_mode": "trunc"}),
    "floor_divide.default": lambda x: ((row(x) * 9).long(), torch.tensor([-1, 2, -3, 4, 5, -6, 7, 8])),
    "floor_divide.Scalar": lambda x: (row(x), 0.3),
    "remainder.Tensor": lambda x: ((row(x) * 9).long(), torch.tensor([-1, 2, -3, 4, 5, -6, 7, 8])),
    "remainder.Scalar": lambda x: (row(x), 0.3),
    "true_divide.Tensor": lambda x: (row(x), positive(x)),
    "pow.Tensor_Tensor": lambda x: (positive(x), w(8)),
    "pow.Scalar": lambda x: (2, row(x)),
    "pow_.Scalar": lambda x: (row(x), 3),
    "rsub.Scalar": lambda x: (row(x), 1, 2),
    "clamp.default": lambda x: (row(x), -0.5, 0.7),
    "clamp.Tensor": lambda x: (row(x), w(8), None),
    "clamp_min.default": lambda x: (row(x), 0.1),
    "clamp_max.default": lambda x: (row(x), 0.1),
    "addcmul.default": lambda x: (row(x), row(x), w(8), {"value": 2}),
    "addcdiv.default": lambda x: (row(x), row(x), positive(x), {"value": 2}),
    "lerp.Scalar": lambda x: (row(x), w(8), 0.3),
    "lerp.Tensor": lambda x: (row(x), w(8), w(8)),
    "where.self": lambda x: (mask(x), row(x), w(8)),
    "where.ScalarSelf": lambda x: (mask(x), 2.0, row(x)),
    "where.ScalarOther": lambda x: (mask(x), row(x), 2.0),
    "where.Scalar": lambda x: (mask(x), 1.0, 2.0),
    "masked_fill.Scalar": lambda x: (row(x), mask(x), 0.25),
    "masked_fill.Tensor": lambda x: (row(x), mask(x), torch.tensor(0.25)),
    "bitwise_and.Tensor": lambda x: (mask(x), row(x) < 1),
    "bitwise_or.Tensor": lambda x: (mask(x), row(x) < -1),
    "bitwise_xor.Tensor": lambda x: (mask(x), row(x) < 1),
    "bitwise_not.default": lambda x: (mask(x),),
    "__and__.Tensor": lambda x: (mask(x), row(x) < 1),
    "__or__.Tensor": lambda x: (mask(x), row(x) < -1),
    "mean.dim": lambda x: (x, [2, 3], True),
    "sum.dim_IntList": lambda x: (x, [-1, 2], False, {"dtype": torch.float64}),
    "amax.default": lambda x: (x, [2, 3]),
    "amin.default": lambda x: (x, [2, 3], True),
    "max.dim": lambda x: (x, 2, True),
    "min.dim": lambda x: (x, 2),
    "argmax.default": lambda x: (row(x), 1),
    "argmin.default": lambda x: (row(x), 1, True),
    "var.correction": lambda x: (x, [2, 3], {"correction": 0}),
    "var.dim": lambda x: (x, [2], True, True),
    "var_mean.correction": lambda x: (x, [1], {"correction": 1, "keepdim": True}),
    "std.correction": lambda x: (x, [2, 3], {"correction": 0}),
    "std.dim": lambda x: (x, [2], False),
    "prod.dim_int": lambda x: (row(x), 1),
    "logsumexp.default": lambda x: (x, [1]),
    "any.default": lambda x: (mask(x),),
    "any.dim": lambda x: (mask(x), 1),
    "any.dims": lambda x: (mask(x), [1]),
    "all.default": lambda x: (mask(x),),
    "all.dim": lambda x: (mask(x), 1, True),
    "cumsum.default": lambda x: (x, 3),
    "cumprod.default": lambda x: (x, 3),
    "topk.default": lambda x: (row(x), 3, 1),
    "sort.default": lambda x: (row(x), 1, True),
    "cosine_similarity.default": lambda x: (row(x), w(1, 8)),
    "pairwise_distance.default": lambda x: (row(x), w(1, 8)),
    "lstm_cell.default": lambda x: _cell(4, x),
    "gru_cell.default": lambda x: _cell(3, x),
    "rnn_tanh_cell.default": lambda x: _cell(1, x),
    "rnn_relu_cell.default": lambda x: _cell(1, x),
    "lstm.input": lambda x: _rnn(4, x),
    "gru.input": lambda x: _rnn(3, x),
    "rnn_tanh.input": lambda x: _rnn(1, x),
    "rnn_relu.input": lambda x: _rnn(1, x, layers=1, directions=1),
    "scaled_dot_product_attention.default": lambda x: (x, x, x, None, 0.0, True),
    "_scaled_dot_product_flash_attention_for_cpu.default": lambda x: (
        x,
        x,
        x,
        0.0,
        False,
        {"attn_mask": w(8, 8), "scale": 0.3},
    ),
    "_scaled_dot_product_flash_attention.default": lambda x: (x, x, x),
    "_scaled_dot_product_efficient_attention.default": lambda x: (x, x, x, None, False),
    "_scaled_dot_product_cudnn_attention.default": lambda x: (x, x, x, None, False),
    "split.Tensor": lambda x: (row(x), 3, 1),
    "split.sizes": lambda x: (row(x), [3, 5], 1),
    "split_with_sizes.default": lambda x: (row(x), [3, 5], 1),
    "chunk.default": lambda x: (row(x), 3, 1),
    "unbind.int": lambda x: (x, 1),
    "repeat_interleave.self_int": lambda x: (x, 2, 1),
    "einsum.default": lambda x: ("bchw,hk->bkcw", [x, w(8, 4)]),
    "to.dtype": lambda x: (x, torch.float64),
    "to.device": lambda x: (x, torch.device("cpu"), torch.float64),
    "to.dtype_layout": lambda x: (x, {"dtype": torch.float64, "layout": torch.strided, "device": torch.device("cpu")}),
    "to.other": lambda x: (x, w(1).double()),
    "_to_copy.default": lambda x: (x, {"dtype": torch.float64}),
    "type_as.default": lambda x: (x, w(1).double()),
    "vdot.default": lambda x: (row(x).sum(0), w(8)),
    "tensordot.default": lambda x: (x, w(8, 4), [3], [0]),
    "_weight_norm.default": lambda x: (row(x), row(x).norm(dim=1, keepdim=True) * 2, 0),
    "clip.default": lambda x: (row(x), -0.5, 0.7),
    "clip_.default": lambda x: (row(x), -0.5, 0.7),
    "clip.Tensor": lambda x: (row(x), w(8), None),
    "fmod.Tensor": lambda x: ((row(x) * 9).long(), torch.tensor([-1, 2, -3, 4, 5, -6, 7, 8])),
    "fmod.Scalar": lambda x: (row(x), 0.3),
    "argsort.default": lambda x: (row(x), 1, True),
    "index_put_.default": lambda x: (row(x), [mask(x)], torch.tensor(0.5)),
    "rrelu.default": lambda x: (row(x), 0.1, 0.5),
    "rrelu_.default": lambda x: (row(x), 0.1, 0.5),
    "fill_.Scalar": lambda x: (row(x), 0.5),
    "fill_.Tensor": lambda x: (row(x), torch.tensor(0.5)),
    "full.default": lambda x: ([x.shape[0], 2], 0.5),
    "zeros.default": lambda x: ([x.shape[0], 2],),
    "ones.default": lambda x: ([x.shape[0], 2], {"dtype": torch.float64}),
    "arange.default": lambda x: (x.shape[0],),
    "arange.start": lambda x: (1, 5),
    "arange.start_step": lambda x: (1.0, 5.0, 0.5),
    "scalar_tensor.default": lambda x: (0.5,),
    "linspace.default": lambda x: (0, 1, 7),
    "eye.default": lambda x: (3,),
    "eye.m": lambda x: (3, 4),
    "full_like.default": lambda x: (x, 0.5),
    "new_zeros.default": lambda x: (x, [3]),
    "new_ones.default": lambda x: (x, [x.shape[0]]),
    "new_full.default": lambda x: (x, [3], 0.5),
}
