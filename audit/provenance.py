"""Says what a run was made of: software, configuration, network and data; and what a stored job depends on."""

from __future__ import annotations

import base64
import hashlib
import inspect
import math
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from audit import sandbox
from audit.cache import run_key
from audit.checks import base
from audit.config import Config
from audit.data.base import Dataset, Part
from audit.model.wrapper import Model, weights_sha256
from audit.result import DataInfo, ModelInfo, Spec

PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "fairlearn", "matplotlib", "jinja2")


def job_key(model: Model, data: Dataset, config: Config, behaviour: str) -> str:
    """Hash everything that the result of a job depends on: network, data, configuration, software.

    `behaviour` is what the network answered just now: two networks can share files, classes and weights, and still differ by
    an argument of their factory or by a module that it imports.
    """
    origin = model.origin
    networks = {type(module) for module in model.module.modules() if not type(module).__module__.startswith("torch.")}
    return run_key(
        {
            "model": [origin.sha256, origin.arch_sha256, origin.format, str(model.module), _sources(networks)],
            "weights": weights_sha256(model.module),  # as they are now: a live network may have been trained on since
            "behaviour": behaviour,
            "reading": [model.task, model.output, _listed(model.mean), _listed(model.std), str(model.device)],
            "data": [None if part is None else _part_key(part) for part in (data.test, data.reference, data.anomalies)],
            "columns": [data.kind, data.columns, data.classes],
            "bounds": None if data.bounds is None else [side.tolist() for side in data.bounds],
            "config": _finite_json(
                config.model_dump(
                    exclude={
                        "policy": {"limit", "waiver", "looks"},
                        "run": {"gate", "out", "checks", "skip", "baseline", "budget"},
                    }
                )
            ),
            "versions": [_version("audit"), torch.__version__, np.__version__, *map(_version, PACKAGES)],
            "plugins": sorted(
                str(getattr(point.dist, "version", "")) + point.value for point in entry_points(group="audit.checks")
            ),
            # An editable install keeps its version while its code changes.
            "sources": [_package_sources(), _sources(base.registry().values())],
        }
    )


def _part_key(part: Part) -> list[str]:
    groups = hashlib.sha256(repr([(name, values.tolist()) for name, values in sorted(part.sensitive.items())]).encode())
    return [part.sha256(), groups.hexdigest()]


def _package_sources() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _sources(classes: Iterable[type]) -> list[str]:
    """Return a hash of the source of each class: of its whole file, else of what can be had of it."""
    return sorted({f"{cls.__qualname__} {_source(cls)}" for cls in classes})


def _source(cls: type) -> str:
    try:
        file = inspect.getsourcefile(cls)
        text = Path(file).read_bytes() if file and Path(file).is_file() else inspect.getsource(cls).encode()
    except (OSError, TypeError):  # typed at a prompt, or compiled: what it does is all there is
        code = getattr(getattr(cls, "forward", None), "__code__", None)
        text = code.co_code + repr(code.co_names).encode() if code is not None else b""
    return hashlib.sha256(text).hexdigest()


def _listed(tensor: torch.Tensor | None) -> list[float] | None:
    return None if tensor is None else tensor.tolist()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def spec_of(config: Config, model: Model, command: str, ran: Iterable[str]) -> Spec:
    """Return what was asked, and with which software; `ran` are the ids of the checks that were in the plan."""
    return Spec(
        audit_version=_version("audit"),
        config={name: _finite_json(section) for name, section in config.model_dump().items()},
        policy_sha256=config.policy.sha256(),
        confidence=config.policy.confidence,
        seed=config.run.seed,
        device=str(model.device),
        packages={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        git=_git(),
        sandbox=sandbox.kind(),
        command=command,
        not_run=[check_id for check_id in base.registry() if check_id not in set(ran)],
    )


def _finite_json(value: Any) -> JsonValue:
    """Return a configuration value as JSON can hold it: infinity, as the open end of a range, becomes text."""
    if isinstance(value, dict):
        return {str(key): _finite_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _git() -> dict[str, JsonValue]:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done.stdout.strip()} if done.returncode == 0 else {}


def model_info(model: Model, data: Dataset) -> ModelInfo:
    """Return what the report says of the network."""
    origin = model.origin
    return ModelInfo(
        source=origin.source,
        sha256=origin.sha256,
        format=origin.format,
        task=model.task or "",
        classes=None if model.task == "regression" else model.classes,
        class_names=list(data.classes) or model.class_names,
        input_shape=[int(d) for d in data.test.x.shape[1:]],
        parameters=model.parameters,
        trusted=origin.trusted,
        output=model.output or "",
        notes=list(model.notes),
    )


def data_info(data: Dataset) -> DataInfo:
    """Return what the report says of the data."""
    bounds: list[JsonValue] | None = None
    if data.bounds is not None:
        bounds = [side.tolist() for side in data.bounds]
    sampled = None
    if len(data.test) < data.rows:
        used = np.zeros(data.rows, dtype=np.bool_)
        used[data.test.ids] = True
        sampled = base64.b64encode(np.packbits(used).tobytes()).decode("ascii")
    x = data.test.x
    return DataInfo(
        source=data.source,
        sha256=data.sha256,
        reference_sha256=data.reference_sha256,
        anomalies_sha256=data.anomalies_sha256,
        n=len(data.test),
        n_reference=0 if data.reference is None else len(data.reference),
        n_anomalies=0 if data.anomalies is None else len(data.anomalies),
        columns=list(data.columns),
        sensitive=sorted(data.test.sensitive),
        kind=data.kind,
        bounds=bounds,
        rows=data.rows,
        sampled=sampled,
        notes=[f"inputs went in as {x.dtype}, from {float(x.min()):.6g} to {float(x.max()):.6g}", *data.notes],
    )
