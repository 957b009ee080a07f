"""Fits each detector on the reference part and tries it on what should be noticed; the anomaly check draws its conclusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.anomaly.comparisons import corrupted, held_out_classes, shuffled, usable
from audit.budget import check_deadline
from audit.checks.base import Arrays, Block, Found, Stage, Task
from audit.errors import DataError

if TYPE_CHECKING:
    from audit.anomaly.base import Detector

Floats = NDArray[np.float64]

ROWS = {"quick": 2_000, "standard": 5_000, "thorough": 20_000, "exhaustive": 60_000}
CLASSES = {"quick": 1, "standard": 3, "thorough": 5, "exhaustive": 20}
LEAST_REFERENCE = 50
CALIBRATION = 0.25  # share of the reference samples put aside for the threshold, more where that is too few for alpha
MOST_CALIBRATION = 0.5
MOST_COMPARED = 2_000  # samples of each kind of anomaly that is made here
REPEATED = 256  # samples that a detector is fitted on twice
GALLERY = 3
STATE = "state."  # before the names of the arrays from which an autoencoder is restored
ADVERSARIAL = "adversarial_"


def _values(task: Task) -> int:
    return int(np.prod(task.data.test.x.shape[1:]))


def fitting(task: Task) -> list[str]:
    """Return the detectors that can be fitted: a single value a sample leaves no room for a bottleneck."""
    names: list[str] = task.options.detectors
    return names if _values(task) > 1 else [name for name in names if name not in ("autoencoder", "pca")]


def too_little(task: Task) -> str | None:
    """Return why the reference part is too poor to fit on, or None."""
    reference = task.part("reference")
    if len(reference) < LEAST_REFERENCE:
        return (
            f"the reference part has {len(reference)} samples, and {LEAST_REFERENCE} are the least to fit a detector on and to "
            "set a threshold: give more with --reference"
        )
    if bool((reference.x == reference.x[:1]).all()):
        return "all samples of the reference part are the same: there is nothing to learn what is normal from"
    if not fitting(task):
        return f"samples have a single value, for which {', '.join(task.options.detectors)} cannot be used: add knn"
    return None


def classes_held_out(task: Task) -> list[int]:
    """Return the classes to hold out in turn."""
    if task.model.task != "classification":
        return []  # numbers are no classes, and samples with a label have others, too: none could be held out alone
    most = task.options.held_out_classes
    reference = task.part("reference").y
    return held_out_classes(reference, task.data.test.y, CLASSES[task.profile] if most is None else most)


def primary_kind(task: Task) -> str:
    """Return what the main figures are measured against."""
    if task.data.anomalies is not None:
        return "labelled"
    if classes_held_out(task):
        return "held_out"
    return "corrupted" if task.data.kind == "image" and _can_be_corrupted(task) else "shuffled"


def _can_be_corrupted(task: Task) -> bool:
    """Tell whether there are corruptions for these inputs; those of images need bounds."""
    images = task.data.kind == "image"
    try:
        if images:
            task.data.box()
    except DataError:
        return False
    return bool(usable(task.data.test.x.shape[1:], images=images))


class Trial:
    """One detector: fitted, calibrated, and tried on everything that it should notice."""

    def __init__(self, task: Task, name: str) -> None:
        self.task, self.name = task, name

    def stages(self) -> list[Stage]:
        """Plan the fit, the classes held out, and this run's adversarial examples."""
        stages = [self._stage("fit", self.fit, lambda _: _used(self.task))]
        if classes_held_out(self.task):
            stages.append(self._stage("held_out", self.hold_out, lambda _: _used(self.task)))
        # A stage of its own, over the samples that were broken: a stored job of a run that attacked others is then not reused.
        after = ("robustness.*", f"anomaly.{self.name}.fit")
        return [*stages, self._stage("adversarial", self.adversarial, _broken, part="test", after=after)]

    def _stage(
        self,
        name: str,
        job: Callable[[Block], Arrays],
        select: Callable[[Found], NDArray[np.int64]],
        part: str = "reference",
        after: tuple[str, ...] = (),
    ) -> Stage:
        return Stage(
            id=f"anomaly.{self.name}.{name}",
            job=job,
            cost_of=f"anomaly.{self.name}.auroc",
            part=part,
            select=select,
            after=after,
            passes=0.0,
            # Reconstructions are inputs in all but name; without them nothing here shows one.
            holds_inputs=self.task.keep_samples,
            whole=True,
        )

    def fit(self, block: Block) -> Arrays:
        """Fit on the reference part; return scores of the test part and of every kind of anomaly, and tests of the fit."""
        task, x = self.task, block.x.cpu().numpy()
        detector = self._detector(len(x)).fit(x)
        test = _inputs(task, "test")
        arrays: Arrays = {
            "calibration": detector.calibration_scores_,
            "threshold": np.asarray([-detector.offset_]),
            "test": -detector.score_samples(test),
            **self._copies(detector, x, test),
            **self._twice(x),
        }
        kinds = self._kinds(block, test)
        for kind, compared in kinds.items():
            arrays[f"against_{kind}"] = -detector.score_samples(compared.x)
            if compared.sources is not None:
                arrays[f"sources_{kind}"] = compared.sources
        if self.name == "autoencoder":
            arrays |= self._training(detector, x)
            arrays |= {f"{STATE}{name}": value for name, value in detector.state().items()}
            arrays |= self._shown_test(detector, arrays["test"], test)
            for kind, compared in kinds.items():
                arrays |= self._shown(detector, kind, compared, arrays[f"against_{kind}"])
        return arrays

    def adversarial(self, block: Block) -> Arrays:
        """Return scores of this run's adversarial examples, by norm."""
        examples = _adversarial(block.earlier)
        arrays: Arrays = {}
        detector = self._again(block.earlier) if examples else None
        for norm, own in examples.items():
            positions = sorted(own)[:MOST_COMPARED]
            x = np.stack([own[position] for position in positions]).astype(np.float64)
            compared = _Compared(x, self.task.data.test.ids[positions])
            kind = f"{ADVERSARIAL}{norm}"
            assert detector is not None  # noqa: S101  (there are examples)
            arrays[f"against_{kind}"] = -detector.score_samples(x)
            if self.name == "autoencoder":
                arrays |= self._shown(detector, kind, compared, arrays[f"against_{kind}"])
        return arrays

    def _again(self, earlier: Found) -> Detector:
        """Return the fitted detector: from its stored arrays, else fitted once more, which is quick for all but that one."""
        used = _used(self.task)
        detector: Any = self._detector(len(used))
        if self.name == "autoencoder":
            stored = earlier[f"anomaly.{self.name}.fit"].arrays
            state = {name.removeprefix(STATE): value for name, value in stored.items() if name.startswith(STATE)}
            restored: Detector = detector.restore(state)
            return restored
        fitted: Detector = detector.fit(_inputs(self.task, "reference")[used])
        return fitted

    def hold_out(self, block: Block) -> Arrays:
        """Fit on all classes but one, in turn; return scores and threshold of each."""
        task, arrays = self.task, dict[str, NDArray[Any]]()
        x, y, test = block.x.cpu().numpy(), block.y.cpu().numpy(), _inputs(task, "test")
        for c in classes_held_out(task):
            check_deadline()
            kept = x[y != c]
            if len(kept) < LEAST_REFERENCE or (kept == kept[:1]).all():
                continue
            detector = self._detector(len(kept)).fit(kept)
            # Without a class fewer samples are left to set a threshold; where they are too few nothing could be an alarm.
            if np.isinf(detector.offset_):
                continue
            out = task.data.test.y == c
            arrays[f"normal_{c}"] = -detector.score_samples(test[~out])
            arrays[f"anomalous_{c}"] = -detector.score_samples(test[out])
            arrays[f"threshold_{c}"] = np.asarray([-detector.offset_])
        return arrays

    def _detector(self, n: int, **more: Any) -> Detector:
        from audit import anomaly
        from audit.anomaly.base import least_calibration

        alpha = self.task.options.alpha
        share = min(MOST_CALIBRATION, max(CALIBRATION, (least_calibration(alpha) + 1) / n))
        if self.name == "autoencoder" and self.task.model.device.type != "cpu":
            more["device"] = str(self.task.model.device)
        return anomaly.get(self.name)(alpha=alpha, calibration=share, random_state=self.task.seed, **more)

    def _kinds(self, block: Block, test: Floats) -> dict[str, _Compared]:
        """Return what should be noticed, by kind."""
        task, data = self.task, self.task.data
        kinds: dict[str, _Compared] = {}
        if data.anomalies is not None:
            kinds["labelled"] = _Compared(_inputs(task, "anomalies"), data.anomalies.ids)
        chosen = np.sort(np.random.default_rng(task.seed).permutation(len(test))[:MOST_COMPARED])
        x, ids = torch.from_numpy(test[chosen]).to(block.x), torch.from_numpy(data.test.ids[chosen])
        if data.kind != "image" or not _can_be_corrupted(task):
            kinds["shuffled"] = _Compared(_array(shuffled(x, ids, block.x, task.seed)), ids.numpy())
        if _can_be_corrupted(task):
            changed = corrupted(x, ids, data.box() if data.kind == "image" else None, block.x, task.seed)
            kinds["corrupted"] = _Compared(_array(changed.x), ids.numpy(), changed.kind)
        return kinds

    def _copies(self, detector: Detector, x: Floats, test: Floats) -> Arrays:
        """Say of samples put aside, of the test part and of labelled anomalies which also stand among those fitted on."""
        aside = np.zeros(len(x), dtype=bool)
        aside[detector.calibration_rows_] = True
        fitted = {row.tobytes() for row in x[~aside]}

        def stands(rows: Floats) -> NDArray[np.bool_]:
            return np.asarray([row.tobytes() in fitted for row in rows])

        copies = {"calibration_copies": stands(x[aside]), "test_copies": stands(test)}
        if self.task.data.anomalies is not None:
            copies["anomaly_copies"] = stands(_inputs(self.task, "anomalies"))
        return copies

    def _twice(self, x: Floats) -> Arrays:
        some = x[np.linspace(0, len(x) - 1, min(len(x), REPEATED)).round().astype(int)]
        more = {"steps": 20} if self.name == "autoencoder" else {}
        first, second = (-self._detector(len(some), **more).fit(some).score_samples(some) for _ in range(2))
        return {"first": first, "second": second}

    def _training(self, detector: Any, x: Floats) -> Arrays:
        """Return errors of samples that training never looked at, beside an untrained network's and the mean's."""
        held_out = x[detector.calibration_rows_]
        untrained: Any = self._detector(len(x), steps=0).fit(x)
        fitted = np.delete(np.arange(len(x)), detector.calibration_rows_)
        scaled = detector.scaling_.apply(x.reshape(len(x), -1).astype(np.float64))
        return {
            "step": detector.history_["step"],
            "train_loss": detector.history_["train"],
            "held_out_loss": detector.history_["held_out"],
            "best_step": np.asarray([detector.best_step_]),
            "bottleneck": np.asarray([detector.bottleneck_]),
            "own_error": detector.errors(held_out).mean(axis=1),
            "untrained_error": untrained.errors(held_out).mean(axis=1),
            "mean_error": ((scaled[detector.calibration_rows_] - scaled[fitted].mean(axis=0)) ** 2).mean(axis=1),
        }

    def _shown_test(self, detector: Any, scores: Floats, test: Floats) -> Arrays:
        """Return copies of the most and the least usual test images, or how far off each column's copy is."""
        if self.task.data.kind == "table":
            return {"column_error_test": (detector.errors(test) / detector.spread_**2).mean(axis=0)}
        if self.task.data.kind != "image" or not self.task.keep_samples:
            return {}
        order = np.argsort(scores, kind="stable")
        rows = np.concatenate((order[:GALLERY], order[::-1][:GALLERY]))
        return {"shown_rows": rows, "shown_test": detector.reconstruct(test[rows])}

    def _shown(self, detector: Any, kind: str, compared: _Compared, scores: Floats) -> Arrays:
        """Return a middling anomaly and its copy, or how far off each column's copy is."""
        if self.task.data.kind == "table":
            return {f"column_error_{kind}": (detector.errors(compared.x) / detector.spread_**2).mean(axis=0)}
        if self.task.data.kind != "image" or not self.task.keep_samples:
            return {}
        middle = np.argsort(scores, kind="stable")[len(scores) // 2 :][:1]
        pair = np.stack((compared.x[middle], detector.reconstruct(compared.x[middle])))
        return {f"shown_{kind}": pair, f"shown_id_{kind}": compared.ids[middle]}


@dataclass(frozen=True)
class _Compared:
    """Inputs that should be noticed, the ids of their samples, and how each was made, where there are several ways."""

    x: Floats
    ids: NDArray[np.int64]
    sources: NDArray[np.int64] | None = None


def _inputs(task: Task, part: str) -> Floats:
    """Return the inputs of a part as the network sees them."""
    return _array(task.model.to_input(task.part(part).x))


def _array(x: Tensor) -> Floats:
    out: Floats = x.detach().cpu().numpy()
    return out


def _used(task: Task) -> NDArray[np.int64]:
    """Return the positions of the reference samples that detectors are fitted and calibrated on."""
    n, most = len(task.part("reference")), task.options.rows or ROWS[task.profile]
    return np.sort(np.random.default_rng(task.seed).permutation(n)[:most]).astype(np.int64)


def _adversarial(found: Found) -> dict[str, dict[int, Floats]]:
    """Return this run's adversarial examples by norm and position: for each broken test sample that of the first attack."""
    taken: dict[str, dict[int, Floats]] = {}
    for stage_id in sorted(found, key=lambda name: (not name.endswith(".pgd"), name)):
        merged = found[stage_id]
        if not fnmatchcase(stage_id, "robustness.*") or stage_id.endswith(".unbounded"):
            continue
        if not {"x_adv", "broken", "distance"} <= merged.arrays.keys():
            continue
        own = taken.setdefault(stage_id.split(".")[1], {})
        distance = merged["distance"]
        for row in np.flatnonzero(merged["broken"] & (distance > 0) & np.isfinite(distance)):
            own.setdefault(int(merged.positions[row]), merged["x_adv"][row])
    return {norm: own for norm, own in taken.items() if own}


def _broken(found: Found) -> NDArray[np.int64]:
    """Return the positions of the test samples of which this run has an adversarial example."""
    return np.asarray(sorted({p for own in _adversarial(found).values() for p in own}), dtype=np.int64)
