"""Recurrent layers: LSTM, GRU, RNN, with the activations that the specification gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audit.model.onnx.operators import Node, Operation, Unsupported, operator
from audit.model.onnx.operators.values import check, data, integer, number, read, text

_NAMES = ("activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size")
# Steps of the GRU that is computed step by step; with more it would take minutes.
MOST_STEPS = 2**13


def _directions(node: Node, activations: tuple[str, ...], more: tuple[str, ...], inputs: int, outputs: int) -> tuple[str, bool]:
    """Check what the three layers have in common; return the direction, and whether the batch comes first."""
    layout = ("layout",) if node.opset >= 14 else ("output_sequence",) if node.opset < 7 else ()
    check(node, 3, inputs, (*_NAMES, *more, *layout), outputs=outputs)
    direction = text(node, "direction", "forward", ("forward", "reverse", "bidirectional"))
    given = node.attributes.get("activations", list(activations))
    wanted = list(activations) * (2 if direction == "bidirectional" else 1)
    if "activations" in node.attributes and [str(name).lower() for name in given] != [name.lower() for name in wanted]:
        raise Unsupported(f"{node.op} with other activations than {', '.join(activations)}")
    if "clip" in node.attributes and number(node, "clip") > 0:
        raise Unsupported(f"{node.op} with clip")
    return direction, bool(integer(node, "layout", 0))


def _check_lengths(op: str, lengths: Tensor | None, steps: int) -> None:
    if lengths is not None and any(length != steps for length in read(op, "sequence_lens", lengths)):
        raise Unsupported(f"{op} with sequences of different lengths")


def _sorted_gates(part: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the gates, which lie one after the other along the first axis, in another order."""
    gates = part.chunk(len(order))
    return torch.cat([gates[place] for place in order]) if len(order) > 1 else part


class _Layer:
    """Weights in torch's order, and the run over a sequence."""

    def __init__(self, op: str, node: Node, order: tuple[int, ...], direction: str, batch_first: bool) -> None:
        self.op, self.node, self.order = op, node, order
        self.direction, self.batch_first = direction, batch_first
        self.directions = 2 if direction == "bidirectional" else 1

    def parts(self, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None) -> tuple[list[Tensor], int]:
        """Check the shapes; return torch's flat list of weights, direction by direction, and the size of the state."""
        gates = len(self.order)
        if x.ndim != 3 or w.ndim != 3 or r.ndim != 3:
            raise ValueError(f"{self.op}: the input, W and R should have 3 axes, got {x.ndim}, {w.ndim} and {r.ndim}")
        size = r.shape[2]
        fits = w.shape == (self.directions, gates * size, x.shape[2]) and r.shape == (self.directions, gates * size, size)
        if not fits or (b is not None and b.shape != (self.directions, 2 * gates * size)):
            raise ValueError(f"{self.op}: W of {tuple(w.shape)} and R of {tuple(r.shape)} for an input of {tuple(x.shape)}")
        if integer(self.node, "hidden_size", size) != size:
            raise ValueError(f"{self.op}: hidden_size is {integer(self.node, 'hidden_size')}, but the weights have {size}")
        flat = []
        for at in range(self.directions):
            flat += [_sorted_gates(w[at], self.order), _sorted_gates(r[at], self.order)]
            if b is not None:
                flat += [_sorted_gates(half, self.order) for half in b[at].chunk(2)]
        return flat, size

    def state(self, given: Tensor | None, x: Tensor, size: int) -> Tensor:
        """Return the state to begin with, of shape (directions, batch, size)."""
        if given is None:
            return x.new_zeros((self.directions, x.shape[1], size))
        given = given.transpose(0, 1) if self.batch_first else given
        if given.shape[0] != self.directions or given.shape[1] not in (1, x.shape[1]) or given.shape[2:] != (size,):
            raise ValueError(f"{self.op}: a first state of {tuple(given.shape)} for {x.shape[1]} samples and {size} numbers")
        return given.expand(self.directions, x.shape[1], size).contiguous()

    def turned(self, x: Tensor) -> Tensor:
        """Turn a sequence round where the layer runs backwards only."""
        return x.flip(0) if self.direction == "reverse" else x

    def returned(self, y: Tensor, *last: Tensor) -> Any:
        """Bring torch's outputs (steps, batch, directions x size) and (directions, batch, size) into the order of the file."""
        y = self.turned(y).reshape(*y.shape[:2], self.directions, -1)
        y = y.transpose(0, 1) if self.batch_first else y.transpose(1, 2)
        ends = [state.transpose(0, 1) if self.batch_first else state for state in last]
        found = (y, *ends)[: len(self.node.outputs)]
        return found if len(self.node.outputs) > 1 else found[0]

    def like_torch(self, x: Tensor, flat: list[Tensor], states: Any, function: Any) -> Any:
        """Run torch's own layer: its arguments are biases, layers, dropout, training, bidirectional, batch_first."""
        # Told to train, with no dropout to differ by: cuDNN gives no gradients otherwise.
        return function(x, states, flat, len(flat) > 2 * self.directions, 1, 0.0, True, self.directions == 2, False)


@operator("LSTM")
def lstm(node: Node) -> Operation:
    """Long short-term memory; gates lie in the order input, output, forget, cell."""
    direction, batch_first = _directions(node, ("Sigmoid", "Tanh", "Tanh"), ("input_forget",), 8, 3)
    if integer(node, "input_forget", 0):
        raise Unsupported("LSTM with input_forget")
    if len(node.inputs) > 7 and node.inputs[7]:
        raise Unsupported("LSTM with peepholes")
    layer = _Layer("LSTM", node, (0, 2, 3, 1), direction, batch_first)

    def compute(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
        c: Tensor | None = None,
        peepholes: Tensor | None = None,  # noqa: ARG001  (an input of the operator, left out)
    ) -> Any:
        x, w, r, b, h, c = data("LSTM", x, w, r, b, h, c)
        x = x.transpose(0, 1) if batch_first else x
        flat, size = layer.parts(x, w, r, b)
        _check_lengths("LSTM", lengths, len(x))
        states = (layer.state(h, x, size), layer.state(c, x, size))
        if x.device.type == "meta":
            return layer.returned(x.new_empty((*x.shape[:2], layer.directions * size)), *states)
        return layer.returned(*layer.like_torch(layer.turned(x), flat, states, torch.lstm))

    return Operation("lstm", compute)


@operator("RNN")
def rnn(node: Node) -> Operation:
    """Return h = f(W x + R h + b), step by step, with tanh or relu."""
    given = node.attributes.get("activations", ["Tanh"])
    relu = isinstance(given, list | tuple) and bool(given) and all(str(name).lower() == "relu" for name in given)
    direction, batch_first = _directions(node, ("Relu",) if relu else ("Tanh",), (), 6, 2)
    layer = _Layer("RNN", node, (0,), direction, batch_first)
    function = torch.rnn_relu if relu else torch.rnn_tanh

    def compute(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None
    ) -> Any:
        x, w, r, b, h = data("RNN", x, w, r, b, h)
        x = x.transpose(0, 1) if batch_first else x
        flat, size = layer.parts(x, w, r, b)
        _check_lengths("RNN", lengths, len(x))
        state = layer.state(h, x, size)
        if x.device.type == "meta":
            return layer.returned(x.new_empty((*x.shape[:2], layer.directions * size)), state)
        return layer.returned(*layer.like_torch(layer.turned(x), flat, state, function))

    return Operation("rnn", compute)


@operator("GRU")
def gru(node: Node) -> Operation:
    """Gated recurrent unit; gates lie in the order update, reset, hidden.

    torch's is the one with ``linear_before_reset``; the other, which resets the state before it is multiplied, runs here.
    """
    direction, batch_first = _directions(node, ("Sigmoid", "Tanh"), ("linear_before_reset",) if node.opset >= 3 else (), 6, 2)
    reset_after = bool(integer(node, "linear_before_reset", 0))
    layer = _Layer("GRU", node, (1, 0, 2), direction, batch_first)

    def compute(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None
    ) -> Any:
        x, w, r, b, h = data("GRU", x, w, r, b, h)
        x = x.transpose(0, 1) if batch_first else x
        flat, size = layer.parts(x, w, r, b)
        _check_lengths("GRU", lengths, len(x))
        if not reset_after and len(x) > MOST_STEPS:
            raise Unsupported(f"GRU without linear_before_reset over {len(x)} steps, at most {MOST_STEPS}")
        state = layer.state(h, x, size)
        if x.device.type == "meta":
            return layer.returned(x.new_empty((*x.shape[:2], layer.directions * size)), state)
        if reset_after:
            return layer.returned(*layer.like_torch(layer.turned(x), flat, state, torch.gru))
        each = len(flat) // layer.directions
        runs = [
            _reset_before(x.flip(0) if at == 1 else layer.turned(x), state[at], *flat[at * each : (at + 1) * each])
            for at in range(layer.directions)
        ]
        sequences = [run.flip(0) if at == 1 else run for at, run in enumerate(runs)]
        return layer.returned(torch.cat(sequences, dim=2), torch.stack([run[-1] for run in runs]))

    return Operation("gru", compute)


def _reset_before(x: Tensor, h: Tensor, w: Tensor, r: Tensor, wb: Tensor | None = None, rb: Tensor | None = None) -> Tensor:
    """Run a GRU whose reset gate acts on the state before the multiplication; return the states of all steps."""
    into = torch.nn.functional.linear(x, w, None if wb is None or rb is None else wb + rb)
    size = h.shape[1]
    gates, hidden = r[: 2 * size], r[2 * size :]
    states = []
    for step in into:
        reset, update = (step[:, : 2 * size] + h @ gates.t()).sigmoid().chunk(2, dim=1)
        h = (1 - update) * torch.tanh(step[:, 2 * size :] + (reset * h) @ hidden.t()) + update * h
        states.append(h)
    return torch.stack(states)
