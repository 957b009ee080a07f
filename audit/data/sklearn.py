"""Data sets that ship with scikit-learn, as ``sklearn:NAME``: to try things out with nothing to download."""

from __future__ import annotations

from audit.data.base import Dataset, Reading, preprocessed
from audit.errors import DataError, UsageError, closest

NAMES = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def load_bundled(name: str, reading: Reading) -> Dataset:
    """Load ``digits`` (images of shape (1, 8, 8), values 0 to 16), ``diabetes`` (regression, unscaled), ``iris``, ``wine``
    or ``breast_cancer``, whole and in scikit-learn's order.
    """  # noqa: D205
    from sklearn import datasets

    if name not in NAMES:
        raise UsageError(f"no data set sklearn:{name}; {closest(name, list(NAMES))}")
    source = f"sklearn:{name}"
    if name == "digits":
        if reading.sensitive or reading.target or reading.inputs:
            raise UsageError("sklearn:digits holds images: --target, --inputs and --sensitive do not apply")
        bunch = datasets.load_digits()
        images = bunch.images[:, None].astype("float32")
        x = preprocessed(reading.preprocess, images, len(images)) if reading.preprocess else images
        classes = reading.classes or tuple(str(c) for c in bunch.target_names)
        return Dataset(x, bunch.target, classes=classes, bounds=None if reading.preprocess else (0.0, 16.0), source=source)
    return _table(name, reading, source)


def _table(name: str, reading: Reading, source: str) -> Dataset:
    from dataclasses import replace

    from sklearn import datasets

    from audit.data.tables import from_frame

    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(as_frame=True, **options)
    if reading.target not in (None, "target"):
        raise DataError(f"{source}: the label column is called 'target', got --target {reading.target}")
    classes = reading.classes or tuple(str(c) for c in getattr(bunch, "target_names", []))
    return from_frame(bunch.frame, replace(reading, target="target", classes=classes), source, "")
