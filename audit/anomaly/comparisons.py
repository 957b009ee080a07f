"""What detectors are tried on where nobody labelled anomalies: corrupted and shuffled inputs, and classes held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.corruptions import CORRUPTIONS, ColumnCorruption, Columns, ImageCorruption
from audit.data.noise import uniform_noise

SEVERITY = 5
IMPUTED = "missing"  # rows whose gaps were filled look normal by design


@dataclass(frozen=True)
class Corrupted:
    """Inputs like the given ones, each corrupted in one way; `kind` is the index into `names` of each sample's corruption."""

    x: Tensor
    kind: NDArray[np.int64]
    names: tuple[str, ...]


def shuffled(x: Tensor, ids: Tensor, pool: Tensor, seed: int) -> Tensor:
    """Return samples each of whose values comes from a random sample of `pool`, shape of `x`.

    Every column keeps its own distribution and what columns say of each other is gone: a detector that looks at columns one
    by one sees nothing. The draws belong to the sample ids.
    """
    values = pool.reshape(len(pool), -1)
    noise = uniform_noise(ids, (values.shape[1],), seed=seed, purpose="anomaly/shuffled")
    rows = ((noise.double() + 1) / 2 * len(pool)).long().clamp(0, len(pool) - 1).to(pool.device)
    return values.gather(0, rows).reshape(x.shape).to(x.dtype)


def corrupted(
    x: Tensor, ids: Tensor, box: tuple[NDArray[np.float64], NDArray[np.float64]] | None, pool: Tensor, seed: int
) -> Corrupted:
    """Return samples corrupted at severity 5, the corruptions of their kind of data dealt out in turn.

    Parameters
    ----------
    box
        Lowest and highest value of images; None for rows.
    pool
        Reference samples, from which the corruptions of rows learn the columns.
    """
    shape = tuple(x.shape[1:])
    names = usable(shape, images=box is not None)
    kind = np.arange(len(x)) % max(1, len(names))
    out = x.clone()
    columns = None if box is not None else Columns.fit(pool.cpu().numpy(), seed=seed)
    for i, name in enumerate(names):
        here = torch.from_numpy(np.flatnonzero(kind == i))
        corruption, part = CORRUPTIONS[name], x[here.to(x.device)]
        if not len(part):
            continue
        draws = corruption.draws(part, ids[here], seed)
        if isinstance(corruption, ImageCorruption) and box is not None:
            changed = corruption(part, SEVERITY, low=box[0], high=box[1], draws=draws)
        elif isinstance(corruption, ColumnCorruption) and columns is not None:
            changed = corruption(part, SEVERITY, columns=columns, draws=draws)
        else:
            raise TypeError(f"{name} should be an ImageCorruption or a ColumnCorruption")
        out[here.to(x.device)] = changed
    return Corrupted(out, kind.astype(np.int64), names)


def usable(shape: tuple[int, ...], *, images: bool) -> tuple[str, ...]:
    """Return the corruptions that fit samples of this shape, but those that fill gaps."""
    names = []
    for name, corruption in CORRUPTIONS.items():
        if images and isinstance(corruption, ImageCorruption):
            fits = min(shape[1:]) >= 8 and corruption.left_out(shape) is None
        elif not images and isinstance(corruption, ColumnCorruption):
            fits = corruption.left_out(int(np.prod(shape))) is None and not name.startswith(IMPUTED)
        else:
            fits = False
        if fits:
            names.append(name)
    return tuple(names)


def held_out_classes(reference: NDArray[np.int64], test: NDArray[np.int64], most: int) -> list[int]:
    """Return at most `most` classes, evenly spread, that can be left out: of 20 test samples or more, and two others."""
    present = [int(c) for c in np.unique(reference) if (test == c).sum() >= 20]
    if len(np.unique(reference)) < 3 or not present or most < 1:
        return []
    chosen = np.unique(np.linspace(0, len(present) - 1, min(most, len(present))).round().astype(int))
    return [present[i] for i in chosen]
