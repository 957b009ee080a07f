"""What strings the parts together: a run from files to a saved result, the replay of its examples, and the demo."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from audit.before_after import Hardened, execute_hardening, split_off
from audit.checks import base
from audit.compare import unedited
from audit.config import Config, merge, parse_setting, read_toml, resolve
from audit.data.base import Dataset, replace_bounds
from audit.errors import InputError, UsageError
from audit.forecast import Forecast, forecast
from audit.model.wrapper import Model
from audit.progress import Progress
from audit.result import Result, drop_reports, make_folder, write_atomically
from audit.runner import execute
from audit.usercode import load_code

if TYPE_CHECKING:
    from torch import nn

    from audit.hardening import Method

Code = str | Callable[..., Any]


def run(
    model: Model | nn.Module | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str] | Any = None,
    *,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    policy: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    arch: Code | None = None,
    arch_args: dict[str, Any] | list[Any] | None = None,
    trust_model: bool = False,
    expect_sha256: str | None = None,
    reference: Any = None,
    anomalies: Any = None,
    baseline: str | os.PathLike[str] | None = None,
    target: str | None = None,
    inputs: Sequence[str] | None = None,
    sensitive: Sequence[str] | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    task: str | None = None,
    output: str | None = None,
    preprocess: Code | None = None,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    expect_accuracy: float | None = None,
    checks: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    profile: str | None = None,
    samples: int | None = None,
    norm: str | Sequence[str] | None = None,
    eps: float | str | Sequence[float | str] | None = None,
    device: str | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    budget: float | str | None = None,
    settings: Sequence[str] = (),
    gate: bool | None = None,
    save_samples: bool | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    command: str = "",
    debug: bool = False,
) -> Result:
    """Audit a network and return what was found; the keywords are the command line's options.

    Parameters
    ----------
    model
        A Model, a live ``torch.nn.Module``, or a model file.
    data
        A Dataset, a file or ``sklearn:NAME``, arrays in a dict, a DataFrame, a DataLoader or torch Dataset.
    config
        audit.toml, or the same as nested dicts. Keywords win over it.
    anomalies
        Inputs that are none of what the network is for, from a source of any kind; or ``column:NAME``, which marks them.
    baseline
        An older result, its file or folder, that this one is compared with.
    budget
        Longest wall clock, from when network and data are loaded: seconds, or ``90s``, ``10m``, ``1.5h``. Checks that it cuts
        off are incomplete; with `out`, the same call goes on where it stopped.
    policy
        A file, or a dict, whose ``[policy]`` section holds the limits; it replaces the one in `config`.
    out
        Folder to write result.json, report.html, summary.md, artifacts and finished jobs to; nothing is written where None.
        Reports of an earlier run are deleted before the first pass, so that a run that ends early leaves none.
    settings
        ``section.key=value`` for options of checks.
    progress
        Where to say how far the run is; nowhere where None.

    Raises
    ------
    AuditError
        See `audit.errors` for the kinds and the exit codes that they stand for.

    Examples
    --------
    >>> import torch, audit
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> result = audit.run(net, "sklearn:digits", checks=["performance"], samples=50)
    >>> result.verdict
    'unjudged'
    """
    resolved = _asked(locals())
    older = None if resolved.run.baseline is None else unedited(resolved.run.baseline)
    # Absolute, since code of the user's may change the current folder before the results are written.
    folder = make_folder(out).absolute() if out is not None else None
    if folder is not None and not _lies_in(resolved.run.baseline, folder):
        drop_reports(folder)
    network, samples_ = open_both(
        model,
        data,
        resolved,
        arch=arch,
        arch_args=arch_args,
        trust_model=trust_model,
        preprocess=preprocess,
        reference=reference,
        anomalies=anomalies,
    )
    result = execute(
        network,
        samples_,
        resolved,
        baseline=older,
        out=folder,
        fresh=fresh,
        progress=progress,
        command=command,
        debug=debug,
    )
    if folder is not None:
        result.save(folder)
    return result


def dry_run(
    model: Model | nn.Module | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str] | Any = None,
    **options: Any,
) -> Forecast:
    """Return what `run` would do with the same keywords: stages, passes, time, and what it can say of each limit.

    Network and data are loaded and held against each other, and a handful of passes is timed; nothing is written.
    """
    given = inspect.signature(run).bind(model, data, **options)
    given.apply_defaults()
    resolved = _asked(given.arguments)
    older = None if resolved.run.baseline is None else unedited(resolved.run.baseline)
    opening = ("arch", "arch_args", "trust_model", "preprocess", "reference", "anomalies")
    network, samples = open_both(model, data, resolved, **{name: given.arguments[name] for name in opening})
    return forecast(network, samples, resolved, baseline=older is not None, debug=given.arguments["debug"])


def _lies_in(baseline: str | None, folder: Path) -> bool:
    """Tell whether the older result is that of an earlier run into the same folder: it is kept until this one replaces it."""
    return baseline is not None and folder.resolve() in (Path(baseline).resolve(), Path(baseline).resolve().parent)


def _asked(given: Mapping[str, Any]) -> Config:
    """Return the configuration that the arguments of `run` ask for, by name."""
    model = {name: given[name] for name in ("task", "output", "expect_sha256")}
    model |= {name: _plain(given[name]) for name in ("mean", "std")}
    data = {name: given[name] for name in ("target", "expect_accuracy")}
    data |= {name: _listed(given[name]) for name in ("inputs", "sensitive")}
    sources = {"source": given["data"], "reference": given["reference"], "anomalies": given["anomalies"]}
    data |= {name: str(source) if isinstance(source, str | os.PathLike) else None for name, source in sources.items()}
    classes, bounds = given["classes"], given["bounds"]
    data["classes"] = os.fspath(classes) if isinstance(classes, str | os.PathLike) else _listed(classes)
    data["bounds"] = None if bounds is None else [_plain(side) for side in bounds]
    asked = ("profile", "samples", "device", "seed", "batch_size", "budget", "gate", "save_samples")
    how = {name: given[name] for name in asked}
    how |= {name: _listed(given[name]) for name in ("checks", "skip")}
    how |= {name: None if given[name] is None else os.fspath(given[name]) for name in ("out", "baseline")}
    attack = {name: given[name] for name in ("norm", "eps") if given[name] is not None}
    options = {"model": model, "data": data, "run": how, "robustness": attack}
    resolved, _ = split_off(configuration(given["config"], given["policy"], options, given["settings"]))
    if given["gate"] and not resolved.run.gate:
        raise UsageError("--gate was given, but --set run.gate takes it back: leave one of them out")
    if given["save_samples"] is False and resolved.run.save_samples:
        raise UsageError("--no-samples was given, but --set run.save_samples takes it back: leave one of them out")
    if resolved.data.source is None and given["data"] is None:
        raise UsageError("no data was given: --data FILE, or source = … in [data]")
    return resolved


def configuration(
    config: str | os.PathLike[str] | Mapping[str, Any] | None,
    policy: str | os.PathLike[str] | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    settings: Sequence[str],
) -> Config:
    """Merge file, policy, options and ``--set`` in that order, and validate what comes out."""
    raw = _section_dict(config)
    if policy is not None:
        held = _section_dict(policy)
        raw = {**raw, "policy": held.get("policy", {} if isinstance(policy, str | os.PathLike) else held)}
    extra: dict[str, Any] = {}
    for setting in settings:
        section, key, value = parse_setting(setting)
        extra.setdefault(section, {})[key] = value
    return resolve(merge(raw, options, extra), [*base.registry(), "hardening"])


def output_folder(out: Path | None, config: str | os.PathLike[str] | None, settings: Sequence[str]) -> Path:
    """Return the folder that results go to: ``--out``, else what ``--set`` or the configuration says, else audit-out."""
    return out if out is not None else Path(configuration(config, None, {}, settings).run.out)


def harden(
    model: Model | nn.Module | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str] | Any = None,
    *,
    method: str | type[Method] | None = None,
    norm: str | None = None,
    eps: float | str | None = None,
    training: Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    policy: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    arch: Code | None = None,
    arch_args: dict[str, Any] | list[Any] | None = None,
    trust_model: bool = False,
    reference: Any = None,
    preprocess: Code | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
    command: str = "",
    debug: bool = False,
) -> Hardened:
    """Harden a network on the reference part and prove it on the test part; what ``audit harden`` does.

    Parameters
    ----------
    model, data, config, policy, arch, arch_args, trust_model, reference, preprocess, settings, fresh, progress, command, debug
        As in `run`. Limits may name the metrics of hardening, too; unless the policy states one, the gain in robust accuracy
        must not lie below 0.
    method
        ``trades``, ``pgd``, or a class of your own; ``trades`` where nothing is stated.
    norm, eps
        What training and both audits let change; eps unstated: as in the robustness check.
    training
        Other fields of `audit.hardening.HardeningOptions`: epochs, max_time, lr, beta, …
    out
        Folder for ``hardened.pt``, result.json, report.html, summary.md, and both audits in ``before`` and ``after``.
    sections
        More of the configuration, by section: ``{"data": {"target": "label"}, "run": {"profile": "quick"}}``.

    Returns
    -------
    Hardened
        The network, its training, and the result that compares before and after.
    """
    options = merge(
        {
            "data": {
                "source": str(data) if isinstance(data, str | os.PathLike) else None,
                "reference": str(reference) if isinstance(reference, str | os.PathLike) else None,
            },
            "run": {"out": str(out) if out is not None else None},
            "hardening": {
                **(training or {}),
                "method": method if isinstance(method, str) else None,
                "norm": norm,
                "eps": eps,
            },
        },
        sections or {},
    )
    resolved, chosen = split_off(configuration(config, policy, options, settings))
    if resolved.run.budget is not None:
        raise UsageError(
            "a budget is for audit run: audit harden compares two audits that ran to the end, and --max-time ends its "
            "training; take budget out of [run]"
        )
    if resolved.data.source is None and data is None:
        raise UsageError("no data was given: --data FILE, or source = … in [data]")
    folder = make_folder(out).absolute() if out is not None else None
    if folder is not None:
        drop_reports(folder)
    network = _model(model, resolved, arch, arch_args, trust_model)
    samples = _data(data, resolved, preprocess, reference=reference, anomalies=None)
    if network.bounds is not None and samples.bounds is None:
        samples = replace_bounds(samples, network.bounds)
    return execute_hardening(
        network,
        samples,
        resolved,
        chosen,
        method=None if isinstance(method, str) else method,
        out=folder,
        fresh=fresh,
        progress=progress,
        command=command,
        debug=debug,
    )


@dataclass(frozen=True)
class Replay:
    """What came of checking stored adversarial examples again: how many, and the ids of those that no longer hold."""

    n: int
    failed: list[int]


def replay(result_dir: str | os.PathLike[str], model: Model | nn.Module, data: Dataset) -> Replay:
    """Check each adversarial example that a run stored again: prediction wrong, in the box, in the radius.

    Parameters
    ----------
    result_dir
        Folder that ``audit run`` wrote.
    model, data
        The network and the data of that run.

    Raises
    ------
    InputError
        The folder holds no examples, or the data is not that of the run.
    """
    import torch

    from audit.attacks.base import verify
    from audit.attacks.geometry import ThreatModel
    from audit.checks.robustness import Robustness, threat_model
    from audit.config import validate

    folder = Path(result_dir)
    result = Result.load(folder)
    check = result["robustness"]
    if check.artifact is None or check.outcomes is None:
        raise InputError(f"{folder} holds no adversarial examples: the run was made with --no-samples, or nothing was attacked")
    network = model if isinstance(model, Model) else Model(model)
    sampled = result.spec.config["run"]
    if isinstance(sampled, dict) and sampled.get("samples"):
        data = data.sample(int(str(sampled["samples"])), result.spec.seed)
    if data.test.sha256() != check.outcomes.ids_sha256:
        raise InputError("the data is not that of the run: ids, inputs or labels differ")
    with np.load(folder / check.artifact, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    network.resolve(torch.from_numpy(data.test.x[:64].copy()), data.test.y)
    sections = result.spec.config["checks"]
    written = sections.get("robustness", {}) if isinstance(sections, dict) else {}
    options = validate(Robustness.Options, written if isinstance(written, dict) else {}, "robustness")
    task = base.Task(network, data, options, seed=result.spec.seed)
    failed: list[int] = []
    for norm in np.unique(arrays["norm"]):
        rows = np.flatnonzero(arrays["norm"] == norm)
        positions = np.searchsorted(data.test.ids, arrays["ids"][rows])
        x, clean_x_adv = data.tensor(positions), torch.from_numpy(arrays["x_adv"][rows])
        threat: ThreatModel = threat_model(task, str(norm))
        params = check.metric(f"robustness.{norm}.accuracy").params
        y = network.predict(x) if network.task == "regression" else torch.from_numpy(data.test.y[positions])
        moved = params.get("tolerance")
        held = verify(network, x, y, clean_x_adv, threat, float(moved) if isinstance(moved, int | float) else 0.0)
        failed += [int(i) for i in arrays["ids"][rows][~held.cpu().numpy()]]
    return Replay(len(arrays["ids"]), sorted(failed))


@dataclass(frozen=True)
class Shown:
    """What the demo made of one network: its folder, the audit as it is, and the hardened one beside it."""

    folder: Path
    audit: Result
    hardening: Result


def demo(out: str | os.PathLike[str] = "audit-demo", *, progress: Progress | None = None) -> list[Shown]:
    """Train two small networks on data that ships with scikit-learn, save them as files, audit and harden each from its files.

    Returns
    -------
    list of Shown
        The digits and the diabetes network; each stands in a folder of its own under `out`.
    """
    import torch

    threads = torch.get_num_threads()
    # On networks this small, threads that wait for each other on busy cores take many times the time that they save.
    torch.set_num_threads(1)
    try:
        return _demo(make_folder(out), progress)
    finally:
        torch.set_num_threads(threads)


def _demo(folder: Path, progress: Progress | None) -> list[Shown]:
    from audit import demo_nets

    write_atomically(folder / "nets.py", Path(demo_nets.__file__).read_bytes())
    digits, diabetes = make_folder(folder / "digits"), make_folder(folder / "diabetes")
    say = progress.say if progress is not None else (lambda _: None)
    say("training a small network on scikit-learn's handwritten digits")
    demo_nets.make_digits(digits)
    say("training a small network on scikit-learn's diabetes table")
    demo_nets.make_diabetes(diabetes)
    images = {
        "arch": f"{folder}/nets.py:DigitsNet",
        "data": f"{digits}/test.npz",
        "reference": f"{digits}/train.npz",
    }
    table = {
        "arch": f"{folder}/nets.py:TableNet",
        "data": f"{diabetes}/test.csv",
        "reference": f"{diabetes}/train.csv",
        "target": "progression_above_median",
    }
    return [
        _show(digits, images, {"norm": "linf,l2"}, {"method": "pgd", "eps": "0.15", "epochs": 12}, progress),
        _show(diabetes, table, {"sensitive": "sex"}, {"method": "trades", "beta": 1.0, "epochs": 30}, progress),
    ]


def _show(
    place: Path, given: dict[str, str], asked: dict[str, str], trained: dict[str, Any], progress: Progress | None
) -> Shown:
    """Audit and harden one network; the commands that are shown do the same."""
    say = progress.say if progress is not None else (lambda _: None)
    files: dict[str, Any] = {name: given[name] for name in ("arch", "data", "reference")}
    target = given.get("target")
    command = _command("run", place, {**given, **asked, "out": f"{place}/audit"})
    say(command)
    audited = run(
        place / "model.pt",
        out=place / "audit",
        target=target,
        norm=asked["norm"].split(",") if "norm" in asked else None,
        sensitive=asked.get("sensitive"),
        seed=0,
        command=command,
        progress=progress,
        **files,
    )
    training: dict[str, Any] = {"lr": 0.005, "batch_size": 32, "attack_steps": 5, **trained}
    command = _command("harden", place, {**given, **training, "profile": "quick", "out": f"{place}/harden"})
    say(command)
    hardened = harden(
        place / "model.pt",
        out=place / "harden",
        method=training.pop("method"),
        eps=training.pop("eps", None),
        training=training,
        sections={"data": {"target": target}, "run": {"profile": "quick", "seed": 0}},
        command=command,
        progress=progress,
        **files,
    )
    return Shown(place, audited, hardened.result)


def _command(verb: str, place: Path, options: Mapping[str, Any]) -> str:
    words = ["audit", verb, f"{place}/model.pt"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def open_both(
    model: Any,
    data: Any,
    config: Config,
    *,
    arch: Code | None = None,
    arch_args: Any = None,
    trust_model: bool = False,
    preprocess: Code | None = None,
    reference: Any = None,
    anomalies: Any = None,
) -> tuple[Model, Dataset]:
    """Load a network and data as a configuration says, each as it is where it is loaded already."""
    if config.data.source is None and data is None:
        raise UsageError("no data was given: --data FILE, or source = … in [data]")
    network = _model(model, config, arch, arch_args, trust_model)
    samples = _data(data, config, preprocess, reference=reference, anomalies=anomalies)
    if network.bounds is not None and samples.bounds is None:
        samples = replace_bounds(samples, network.bounds)
    return network, samples


def _model(model: Any, config: Config, arch: Code | None, arch_args: Any, trust: bool) -> Model:
    if isinstance(model, Model):
        return model
    section = config.model
    options: dict[str, Any] = {
        "task": section.task,
        "output": section.output,
        "mean": section.mean,
        "std": section.std,
        "device": config.run.device,
        "batch_size": config.run.batch_size,
    }
    if isinstance(model, str | os.PathLike):
        return Model.load(model, arch=arch, arch_args=arch_args, trust=trust, expect_sha256=section.expect_sha256, **options)
    return Model(model, **options)


def _data(data: Any, config: Config, preprocess: Code | None, *, reference: Any, anomalies: Any) -> Dataset:
    section = config.data
    if isinstance(data, Dataset):
        loaded = Dataset.load(data, reference=reference, anomalies=anomalies)
        return replace_bounds(loaded, section.bounds) if section.bounds is not None else loaded
    function = load_code(preprocess, "--preprocess").function if isinstance(preprocess, str) else preprocess
    return Dataset.load(
        section.source if data is None or isinstance(data, str | os.PathLike) else data,
        reference=section.reference if reference is None or isinstance(reference, str | os.PathLike) else reference,
        anomalies=section.anomalies if anomalies is None or isinstance(anomalies, str | os.PathLike) else anomalies,
        target=section.target,
        inputs=section.inputs,
        sensitive=section.sensitive,
        classes=section.classes,
        preprocess=function,
        bounds=section.bounds,
    )


def _section_dict(source: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    if source is None:
        return {}
    return dict(source) if isinstance(source, Mapping) else read_toml(source)


def _plain(values: ArrayLike | None) -> Any:
    if values is None:
        return None
    return np.asarray(values, dtype=np.float64).reshape(-1).tolist() if np.ndim(values) else float(np.asarray(values))


def _listed(values: Sequence[str] | None) -> list[str] | None:
    if values is None:
        return None
    return [values] if isinstance(values, str) else [str(v) for v in values]
