"""Attention of opset 23 and later, without caches of earlier keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import check, data, integer, number


@operator("Attention")
def attention(node: Node) -> Operation:
    """Return softmax(scale Q K' + mask) V, head by head; keys and values may be shared by several heads of queries."""
    names = ("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision")
    check(node, 3, 7, names)
    if any(node.inputs[4:]):
        raise Unsupported("Attention with a cache of earlier keys and values")
    if integer(node, "softmax_precision", 1) not in (1, 11):
        raise Unsupported(f"Attention with softmax_precision {integer(node, 'softmax_precision')}")
    causal, cap = bool(integer(node, "is_causal", 0)), number(node, "softcap", 0.0)
    heads, shared = integer(node, "q_num_heads", 0, least=0), integer(node, "kv_num_heads", 0, least=0)

    def compute(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *_: None) -> Tensor:
        q, k, v = data("Attention", q, k, v)
        flat = q.ndim == 3
        if flat:
            q, k, v = _in_heads(q, heads), _in_heads(k, shared), _in_heads(v, shared)
        if not q.ndim == k.ndim == v.ndim == 4 or q.shape[1] % max(1, k.shape[1]) or k.shape[1] != v.shape[1]:
            raise ValueError(f"Attention: queries of {tuple(q.shape)}, keys of {tuple(k.shape)}, values of {tuple(v.shape)}")
        each = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(each, dim=1) if each > 1 else part for part in (k, v))
        scale = math.sqrt(number(node, "scale", 1 / math.sqrt(q.shape[-1])))
        scores = (q * scale) @ (k * scale).transpose(-1, -2)
        scores = cap * torch.tanh(scores / cap) if cap else scores
        bias = _bias(scores, mask, causal)
        if bias is None:
            found = torch.softmax(scores, dim=-1) @ v
        else:
            # A query that may look at nothing has no probabilities: it gets zeros.
            seen = (bias > float("-inf")).any(dim=-1, keepdim=True)
            weights = torch.softmax(torch.where(seen, scores + bias, 0.0), dim=-1)
            found = torch.where(seen, weights, 0.0) @ v
        return found.transpose(1, 2).flatten(2) if flat else found

    return Operation("scaled_dot_product_attention", compute)


def _in_heads(x: Tensor, heads: int) -> Tensor:
    if heads < 1 or x.ndim != 3 or x.shape[2] % heads:
        raise ValueError(f"Attention: {tuple(x.shape)} does not fall into {heads} heads")
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _bias(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Return what is added to the scores: minus infinity where a query may not look; None where all may look at all."""
    bias = None
    if mask is not None:
        mask = mask.to(scores.device)
        if mask.shape[-1] != scores.shape[-1]:
            raise Unsupported("Attention with a mask for fewer keys than there are")
        bias = torch.where(mask, 0.0, float("-inf")).to(scores.dtype) if mask.dtype == torch.bool else mask
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        future = torch.zeros((), dtype=scores.dtype, device=scores.device).masked_fill(ahead, float("-inf"))
        bias = future if bias is None else bias + future
    return None if bias is None else bias.broadcast_to(scores.shape)
