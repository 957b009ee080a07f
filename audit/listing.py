"""Lists what there is, for ``audit list`` and for docs/metrics.md, which is this list in markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from audit.errors import UsageError, closest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from audit.attacks.base import Attack
    from audit.checks.base import MetricDoc

KINDS = ("checks", "options", "attacks", "detectors", "explainers", "formats", "metrics", "schema")

# What becomes of a model file of each format; audit inspect FILE says it of one file.
FORMATS = {
    "safetensors weights": "read, with --arch",
    "weights saved by torch.save": "read, with --arch: a state dict, alone or inside a checkpoint (Lightning's, too)",
    "module saved by torch.save": "read where it is made of torch.nn layers; of another class its weights, with --arch",
    "torch.export program (.pt2)": "read where its operators are known",
    "ONNX (.onnx)": "read where its operators are known; weights may lie in files beside it",
    "TorchScript archive": "refused: it is a program of its own; read with --trust-model",
    "any other pickle": "refused: it could execute code; read with --trust-model",
}

# Attacks with a threat model of their own, each with an option of its own in place of robustness.attacks.
OTHER_ATTACKS = {
    "spatial (robustness.spatial = true)": "Rotations and translations of images, until one is answered wrongly.",
    "universal (linf, l2; robustness.universal = true)": "One change of all inputs, by stochastic projected gradient ascent.",
    "patch (robustness.patch = true)": "A square patch, trained in expectation over places.",
}


def show(what: str, *, markdown: bool = False) -> str:
    """Return the list as text.

    Raises
    ------
    UsageError
        There is no such list.
    """
    if what == "schema":
        from audit.result import schema

        return json.dumps(schema(), indent=1)
    if what == "metrics":
        return metrics_page() if markdown else "\n".join(f"{doc.id}\n    {doc.definition}" for doc in _docs())
    if what == "checks":
        from audit.checks.base import registry

        return "\n".join(f"{name}\n    {check.question}" for name, check in registry().items())
    if what == "formats":
        return "\n".join(f"{name}\n    {said}" for name, said in FORMATS.items())
    if what == "options":
        return options()
    if what == "attacks":
        from audit.attacks import art
        from audit.attacks import registry as attacks

        if markdown:
            return art.page()
        return "\n".join([*_attacks(attacks()), *(f"{name}\n    {said}" for name, said in OTHER_ATTACKS.items())]) + (
            f"\nof ART, by robustness.art (docs/art.md)\n    {', '.join(art.names())}"
        )
    if what == "explainers":
        from audit.explain import registry as explainers

        return "\n".join(f"{name}\n    {(e.__doc__ or '').strip().splitlines()[0]}" for name, e in explainers().items())
    if what == "detectors":
        from audit.anomaly import registry as detectors

        return "\n".join(f"{name}\n    {(d.__doc__ or '').strip().splitlines()[0]}" for name, d in detectors().items())
    raise UsageError(f"nothing called {what!r} to list; {closest(what, list(KINDS))}")


def _attacks(known: dict[str, type[Attack]]) -> list[str]:
    """Return name and norms, and on the next line what it is, of each attack."""
    return [
        f"{name} ({', '.join(attack.norms)})\n    {(attack.__doc__ or '').strip().splitlines()[0]}"
        for name, attack in known.items()
    ]


def options() -> str:
    """Return every option that a section of audit.toml, or ``--set section.key=value``, takes: type, default, meaning."""
    from audit.checks.base import registry
    from audit.hardening import HardeningOptions

    lines = []
    sections: dict[str, type[BaseModel]] = {
        **{name: check.Options for name, check in registry().items()},
        "hardening": HardeningOptions,
    }
    for section, model in sections.items():
        for name, field in model.model_fields.items():
            kind = str(field.annotation).replace("typing.", "") if not isinstance(field.annotation, type) else ""
            kind = kind or getattr(field.annotation, "__name__", str(field.annotation))
            default = field.get_default(call_default_factory=True)
            stated = "unstated" if default is None else json.dumps(default, default=str)
            lines += [f"{section}.{name} = {stated}", f"    {kind}: {field.description or ''}".rstrip(": ")]
    return "\n".join(lines)


def metrics_page() -> str:
    """Return docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Every metric that a check can measure. `<name>` stands for any one part of an id. This page is written by",
        "`audit list metrics --markdown`, from the checks themselves; a test keeps the two equal.",
        "",
    ]
    for doc in _docs():
        lines += [
            f"## `{doc.id}`",
            "",
            _sentence(doc.definition),
            "",
            f"- unit: {doc.unit}; range: {doc.range}; better: {doc.direction}",
            f"- what it is of the truth: {_kind(doc.kind)}",
            f"- interval: {doc.interval}",
            f"- known bias: {doc.bias}",
            f"- source: {doc.source}",
            "",
        ]
    return "\n".join(lines[:-1])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _kind(kind: str) -> str:
    return {"estimate": "an estimate", "upper": "an upper bound", "lower": "a lower bound"}[kind]


def _docs() -> list[MetricDoc]:
    from audit.checks.base import registry
    from audit.tradeoff import METRICS

    return [*(doc for check in registry().values() for doc in check.metrics), *METRICS]
