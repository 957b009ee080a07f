"""Holds the data against the model before anything long starts: shape, classes, range, finite outputs."""

from __future__ import annotations

import hashlib

import torch

from audit import stats
from audit.data.base import Dataset
from audit.errors import DataError, IncompleteError, ModelError
from audit.model.batching import in_batches
from audit.model.wrapper import Model

LOOK_AT = 64


def preflight(model: Model, data: Dataset) -> str:
    """Resolve what the network returns and check that data and model fit.

    Returns
    -------
    str
        A fingerprint of what the network answers to some samples, coarser than rounding: the same network has the same.

    Raises
    ------
    DataError
        Inputs or labels do not fit the network.
    ModelError
        The network cannot take the inputs, or returns nothing finite.
    """
    x = torch.from_numpy(data.test.x[:LOOK_AT].copy())
    try:
        model.resolve(x, data.test.y)
    except ModelError as error:
        raise _with_columns(error, data) from error
    with model.session(), torch.no_grad():
        (out,) = in_batches(lambda batch: (model.outputs(batch),), (model.to_input(x),), model.batch_size)
    if not bool(torch.isfinite(out).any()):
        raise ModelError(
            f"the network returns NaN or infinity for each of the first {len(x)} samples: is the data scaled as in training "
            "(--mean, --std, --preprocess), and are the weights the right ones?"
        )
    if model.task == "multilabel":
        _marks_fit(model, data)
    elif model.task == "classification":
        _labels_fit(model, data)
    elif out.numel() != len(x):
        raise ModelError(
            f"a regression network should return one number a sample, got shape {tuple(out.shape)}; "
            "audit one output at a time, or, where labels are classes, number them from 0 and say --task classification"
        )
    columns = out.reshape(len(x), -1).double()
    share = (columns / columns.abs().amax(dim=0).clamp_min(1e-300)).nan_to_num(2.0, 3.0, -3.0)
    return hashlib.sha256((share * 1000).round().to(torch.int16).cpu().numpy().tobytes()).hexdigest()


def expect_accuracy(correct: int, n: int, expected: float, confidence: float) -> None:
    """Stop where the stated clean accuracy lies outside the interval of the measured one.

    Raises
    ------
    IncompleteError
        It does: something between training and here is not the same.
    """
    interval = stats.clopper_pearson(correct, n, confidence)
    low, high = interval.low or 0.0, 1.0 if interval.high is None else interval.high
    if low <= expected <= high:
        return
    raise IncompleteError(
        f"expected a clean accuracy of {expected:.2%}, got {correct / n:.2%} ({confidence:.0%} interval {low:.2%} to "
        f"{high:.2%} on {n} samples): the audit does not see what the network saw. Likely causes: scaling "
        "(--mean, --std), the order of classes (--classes) or of columns (--inputs), other preprocessing, other data"
    )


def _labels_fit(model: Model, data: Dataset) -> None:
    for name, part in (("", data.test), ("reference part: ", data.reference)):
        if part is None:
            continue
        if part.y.dtype.kind == "f":
            raise DataError(f"{name}labels should be whole numbers for classification; for regression say --task regression")
        low, high = int(part.y.min()), int(part.y.max())
        if low < 0 or high >= (model.classes or 0):
            odd = high if high >= (model.classes or 0) else low
            raise DataError(
                f"{name}labels should lie between 0 and {(model.classes or 0) - 1}, since the network has {model.classes} "
                f"outputs; got {odd}: does the numbering start at 1, or is the target another column?"
            )
    _names_fit(model, data)


def _marks_fit(model: Model, data: Dataset) -> None:
    width = data.test.y.shape[1]  # that of the reference part is the same, or it would not be there
    if width != model.classes:
        raise DataError(
            f"labels should have one column for each of the network's {model.classes} outputs, got {width}: is one left out, "
            "or one there that the network does not tell?"
        )
    _names_fit(model, data)


def _names_fit(model: Model, data: Dataset) -> None:
    if data.classes and len(data.classes) != model.classes:
        what = "labels" if model.task == "multilabel" else "classes"
        raise DataError(
            f"{len(data.classes)} {what} are named, but the network has {model.classes} outputs: fit --classes to it"
        )


def _with_columns(error: ModelError, data: Dataset) -> ModelError:
    if data.kind != "table":
        return ModelError(f"{error}; the data has samples of shape {data.test.x.shape[1:]}")
    names = ", ".join(data.columns[:8]) + (", …" if len(data.columns) > 8 else "")
    return ModelError(f"{error}; the data has {len(data.columns)} input columns ({names}): choose them with --inputs")
