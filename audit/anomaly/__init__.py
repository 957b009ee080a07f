"""Detectors of inputs unlike the reference data: scikit-learn estimators, one file each, on the base class that calibrates.

The names are known without loading scikit-learn or torch; a detector is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from audit.errors import UsageError, closest

if TYPE_CHECKING:
    from audit.anomaly.autoencoder import AutoencoderDetector
    from audit.anomaly.base import Detector
    from audit.anomaly.isolation_forest import IsolationForestDetector
    from audit.anomaly.neighbours import NeighboursDetector
    from audit.anomaly.pca import PCADetector

BUILT_IN = {
    "autoencoder": ("autoencoder", "AutoencoderDetector"),
    "isolation_forest": ("isolation_forest", "IsolationForestDetector"),
    "pca": ("pca", "PCADetector"),
    "knn": ("neighbours", "NeighboursDetector"),
}

__all__ = [
    "AutoencoderDetector",
    "Detector",
    "IsolationForestDetector",
    "NeighboursDetector",
    "PCADetector",
    "get",
    "names",
    "registry",
]


def names() -> list[str]:
    """Return the names of all detectors: those of this package, then those of the entry-point group ``audit.detectors``."""
    from importlib.metadata import entry_points

    return [*BUILT_IN, *sorted(point.name for point in entry_points(group="audit.detectors") if point.name not in BUILT_IN)]


def get(name: str) -> type[Detector]:
    """Return the detector class of this name.

    Raises
    ------
    UsageError
        There is none, or a plugin's is no subclass of `Detector`.
    """
    from importlib.metadata import entry_points

    if name in BUILT_IN:
        module, cls = BUILT_IN[name]
        found: type[Detector] = getattr(import_module(f"audit.anomaly.{module}"), cls)
        return found
    for point in entry_points(group="audit.detectors"):
        if point.name == name:
            return _checked(name, point.load())
    raise UsageError(f"no detector {name!r}; {closest(name, names())}")


def registry() -> dict[str, type[Detector]]:
    """Return all detectors by name."""
    return {name: get(name) for name in names()}


def _checked(name: str, loaded: Any) -> type[Detector]:
    from audit.anomaly.base import Detector

    if not (isinstance(loaded, type) and issubclass(loaded, Detector)):
        raise UsageError(f"the plugin {name!r} should be a subclass of audit.anomaly.Detector, got {loaded!r}")
    return loaded


def __getattr__(name: str) -> Any:
    homes = {cls: module for module, cls in BUILT_IN.values()} | {"Detector": "base"}
    if name not in homes:
        raise AttributeError(f"module 'audit.anomaly' has no attribute {name!r}")
    return getattr(import_module(f"audit.anomaly.{homes[name]}"), name)
