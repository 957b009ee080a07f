"""A robustness and responsible-AI audit for trained PyTorch networks whose every number carries its uncertainty.

>>> import audit
>>> model = audit.Model.load("model.pt", arch="nets.py:SmallCNN")           # doctest: +SKIP
>>> data = audit.Dataset.load("test.npz", reference="train.npz")            # doctest: +SKIP
>>> result = audit.run(model, data, policy="audit.toml")                    # doctest: +SKIP
>>> audit.require(result)                                                   # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from audit.checks.base import Check, check
    from audit.compare import diff
    from audit.data.base import Dataset
    from audit.errors import (
        AuditError,
        DataError,
        IncompleteError,
        InputError,
        ModelError,
        ModelRefused,
        OutputError,
        PolicyFailed,
        UsageError,
    )
    from audit.evaluations.accuracy import robust_accuracy
    from audit.inspecting import inspect
    from audit.model.wrapper import Model
    from audit.policy import require
    from audit.result import Evidence, Finding, Metric, Result
    from audit.verifying import verify
    from audit.workflows import harden, replay, run

__version__ = "0.1.0"

# Every name is imported when it is first used: `import audit` loads no heavy library.
_WHERE = {
    "AuditError": "audit.errors",
    "Check": "audit.checks.base",
    "DataError": "audit.errors",
    "Dataset": "audit.data.base",
    "Evidence": "audit.result",
    "Finding": "audit.result",
    "IncompleteError": "audit.errors",
    "InputError": "audit.errors",
    "Metric": "audit.result",
    "Model": "audit.model.wrapper",
    "ModelError": "audit.errors",
    "ModelRefused": "audit.errors",
    "OutputError": "audit.errors",
    "PolicyFailed": "audit.errors",
    "Result": "audit.result",
    "UsageError": "audit.errors",
    "check": "audit.checks.base",
    "diff": "audit.compare",
    "harden": "audit.workflows",
    "inspect": "audit.inspecting",
    "replay": "audit.workflows",
    "require": "audit.policy",
    "robust_accuracy": "audit.evaluations.accuracy",
    "run": "audit.workflows",
    "verify": "audit.verifying",
}

__all__ = [
    "AuditError",
    "Check",
    "DataError",
    "Dataset",
    "Evidence",
    "Finding",
    "IncompleteError",
    "InputError",
    "Metric",
    "Model",
    "ModelError",
    "ModelRefused",
    "OutputError",
    "PolicyFailed",
    "Result",
    "UsageError",
    "check",
    "diff",
    "harden",
    "inspect",
    "replay",
    "require",
    "robust_accuracy",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])


def _renderers() -> dict[str, Callable[[Result], str]]:
    """Return what `Result.save` writes beside result.json, file by file: `result` itself never imports `report`."""
    return {
        "report.html": lambda result: import_module("audit.report.html").render(result),
        "summary.md": lambda result: import_module("audit.report.markdown").render(result),
        "junit.xml": lambda result: import_module("audit.report.junit").render(result),
    }
