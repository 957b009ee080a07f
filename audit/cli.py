"""The command line: one function per command, no logic. Heavy libraries are imported when a command runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from audit.console import guard_log, harmless_json
from audit.errors import AuditError, UsageError

app = typer.Typer(
    name="audit",
    help="Audit a trained neural network: can it be trusted, and how do we know?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
FORMATS = ("html", "markdown", "junit", "sarif", "github")
MODEL, DATA, RUN, CHECKS = "The model", "The data", "The run", "What is asked"
TRAINING = "The training"

# What several commands ask for, said once.
ModelFile = Annotated[
    str, typer.Argument(help="Model file: a saved module, .pt2, .onnx, or weights (.safetensors, .pt, .ckpt; with --arch).")
]
Arch = Annotated[str | None, typer.Option(help="FILE.py:FACTORY that builds the network.", rich_help_panel=MODEL)]
ArchArgs = Annotated[str | None, typer.Option(help="Its arguments as JSON.", rich_help_panel=MODEL)]
TrustModel = Annotated[bool, typer.Option("--trust-model", help="Let the file run its own code.", rich_help_panel=MODEL)]
Sandbox = Annotated[
    bool, typer.Option("--sandbox", help="Run without network, and write below --out alone.", rich_help_panel=MODEL)
]
ExpectSha256 = Annotated[str | None, typer.Option(help="Hash that the file must have.", rich_help_panel=MODEL)]
TaskName = Annotated[str | None, typer.Option(help="classification, multilabel or regression.", rich_help_panel=MODEL)]
OutputKind = Annotated[
    str | None,
    typer.Option(
        help="logits, probabilities, binary_logit, binary_probability, multilabel_logits, multilabel_probabilities or "
        "regression.",
        rich_help_panel=MODEL,
    ),
]
Mean = Annotated[str | None, typer.Option(help="Subtracted inside the model: one, or one a channel.", rich_help_panel=MODEL)]
Std = Annotated[str | None, typer.Option(help="Divided by inside the model.", rich_help_panel=MODEL)]
Data = Annotated[
    str | None, typer.Option(help=".npz, .csv, .csv.gz, .parquet, folder of images, or sklearn:NAME.", rich_help_panel=DATA)
]
Reference = Annotated[str | None, typer.Option(help="The training part.", rich_help_panel=DATA)]
Target = Annotated[
    str | None,
    typer.Option(
        help="Column that holds the label; for a multi-label network several, with commas between.", rich_help_panel=DATA
    ),
]
Inputs = Annotated[str | None, typer.Option(help="Input columns, COL,COL.", rich_help_panel=DATA)]
Sensitive = Annotated[str | None, typer.Option(help="Columns to test for fairness, COL,COL.", rich_help_panel=DATA)]
Classes = Annotated[str | None, typer.Option(help="File with one class a line, in output order.", rich_help_panel=DATA)]
Preprocess = Annotated[str | None, typer.Option(help="FILE.py:FUNC applied to the raw rows.", rich_help_panel=DATA)]
Bounds = Annotated[str | None, typer.Option(help="LOW,HIGH of the input values.", rich_help_panel=DATA)]
Anomalies = Annotated[
    str | None, typer.Option(help="Inputs that the network is not for; or column:NAME, 1 in such rows.", rich_help_panel=DATA)
]
ConfigFile = Annotated[Path | None, typer.Option(help="audit.toml; the command line wins over it.", rich_help_panel=RUN)]
Profile = Annotated[str | None, typer.Option(help="quick, standard, thorough or exhaustive.", rich_help_panel=CHECKS)]
Samples = Annotated[int | None, typer.Option(help="Test samples to draw, by class.", rich_help_panel=CHECKS)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, for any option of a section.", rich_help_panel=CHECKS)
]
ChosenChecks = Annotated[str | None, typer.Option(help="Checks to run, ID,ID; unstated: all.", rich_help_panel=CHECKS)]
SkippedChecks = Annotated[str | None, typer.Option(help="Checks to leave out, ID,ID.", rich_help_panel=CHECKS)]
Norms = Annotated[str | None, typer.Option(help="linf, l2, l1, l0, or several: linf,l2.", rich_help_panel=CHECKS)]
Radii = Annotated[
    str | None,
    typer.Option(help="Radius of each norm in input units, before --mean and --std: 0.3, 8/255.", rich_help_panel=CHECKS),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUN)]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn.", rich_help_panel=RUN)]
Budget = Annotated[
    str | None, typer.Option(help="Longest time: 90s, 10m, 1.5h. What it cuts off is incomplete.", rich_help_panel=RUN)
]
NoSamples = Annotated[bool, typer.Option("--no-samples", help="Keep inputs out of everything written.", rich_help_panel=RUN)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do finished work again.", rich_help_panel=RUN)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=RUN)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=RUN)]


def _version(value: bool) -> None:
    if value:
        from audit import __version__

        _write(f"audit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Audit a trained neural network."""


@app.command()
def run(
    model: ModelFile,
    data: Data = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; unstated: audit-out.", rich_help_panel=RUN)] = None,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    trust_model: TrustModel = False,
    sandbox: Sandbox = False,
    expect_sha256: ExpectSha256 = None,
    task: TaskName = None,
    output: OutputKind = None,
    mean: Mean = None,
    std: Std = None,
    reference: Reference = None,
    anomalies: Anomalies = None,
    target: Target = None,
    inputs: Inputs = None,
    sensitive: Sensitive = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    bounds: Bounds = None,
    expect_accuracy: Annotated[float | None, typer.Option(help="Stop unless it is met.", rich_help_panel=DATA)] = None,
    checks: ChosenChecks = None,
    skip: SkippedChecks = None,
    profile: Profile = None,
    samples: Samples = None,
    norm: Norms = None,
    eps: Radii = None,
    device: Device = None,
    seed: Seed = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples a batch; halved when memory runs out.", rich_help_panel=RUN)
    ] = None,
    budget: Budget = None,
    settings: Settings = None,
    baseline: Annotated[
        str | None, typer.Option(help="Older result to compare with: its folder or result.json.", rich_help_panel=CHECKS)
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Never end with 0 unless limits are set, and cleared or waived.", rich_help_panel=RUN)
    ] = False,
    no_samples: NoSamples = False,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its time; measure and write nothing.", rich_help_panel=RUN)
    ] = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Audit MODEL on DATA and write a report, a summary and result.json."""
    options = _taken(locals(), "sandbox", "gate", "no_samples", "dry_run", "quiet")
    if sandbox:
        reads, code = [model, data, reference, anomalies, classes, baseline], [arch, preprocess]
        _enter_sandbox(reads=reads, code=code, config=config, settings=settings or [], out=out)
    from audit import workflows
    from audit.plain import plain
    from audit.progress import Progress

    folder = workflows.output_folder(out, config, settings or [])
    options |= {"out": folder, "gate": gate or None, "save_samples": False if no_samples else None}
    with Progress(quiet=quiet) as progress:
        command = shlex.join(["audit", *sys.argv[1:]])
        result: Any = (workflows.dry_run if dry_run else workflows.run)(**options, progress=progress, command=command)
    if dry_run:
        _write(plain(result.text(), newlines=True))
    elif not quiet:
        _say_result(result, folder)
    raise typer.Exit(result.exit_code)


@app.command()
def init(
    model: ModelFile,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="File to write.", rich_help_panel=RUN)] = Path("audit.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.", rich_help_panel=RUN)] = False,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Leave the run out: no measured values.", rich_help_panel=RUN)
    ] = False,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    trust_model: TrustModel = False,
    sandbox: Sandbox = False,
    expect_sha256: ExpectSha256 = None,
    task: TaskName = None,
    output: OutputKind = None,
    mean: Mean = None,
    std: Std = None,
    reference: Reference = None,
    anomalies: Anomalies = None,
    target: Target = None,
    inputs: Inputs = None,
    sensitive: Sensitive = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    bounds: Bounds = None,
    checks: ChosenChecks = None,
    skip: SkippedChecks = None,
    profile: Annotated[
        str | None, typer.Option(help="quick, standard, thorough or exhaustive; unstated: quick.", rich_help_panel=CHECKS)
    ] = None,
    samples: Samples = None,
    norm: Norms = None,
    eps: Radii = None,
    device: Device = None,
    seed: Seed = None,
    budget: Budget = None,
    settings: Settings = None,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Write an audit.toml fitted to MODEL and DATA: measured values, limits left open."""
    options = _taken(locals(), "sandbox", "no_measure", "quiet")
    page = out.absolute()  # code of the user's may change the current folder before the file is written
    if sandbox:
        reads, code = [model, data, reference, anomalies, classes], [arch, preprocess]
        page = _enter_sandbox(reads=reads, code=code, config=None, settings=settings or [], page=page) or page
    from audit import initialising
    from audit.plain import plain
    from audit.progress import Progress

    options |= {"out": page, "named": str(out), "measure": not no_measure}
    with Progress(quiet=quiet) as progress:
        initialising.init(**options, progress=progress)
    if not quiet:
        _write(f"{plain(str(out))} is written; its limits are open: choose them, then run the command that stands in it")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for models, data and reports.")] = Path("audit-demo"),
    quiet: Quiet = False,
) -> None:
    """Train two small networks on data that ships with scikit-learn, audit and harden each."""
    from audit import workflows
    from audit.progress import Progress

    with Progress(quiet=quiet) as progress:
        shown = workflows.demo(out, progress=progress)
    if not quiet:
        for network in shown:
            _say_result(network.audit, network.folder / "audit")
            _say_result(network.hardening, network.folder / "harden", checks=["hardening"])
    raise typer.Exit(max(network.audit.exit_code for network in shown))


@app.command()
def harden(
    model: ModelFile,
    data: Data = None,
    reference: Reference = None,
    config: ConfigFile = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the hardened network, the report, and both audits.", rich_help_panel=RUN)
    ] = Path("audit-harden"),
    method: Annotated[str | None, typer.Option(help="trades or pgd; unstated: trades.", rich_help_panel=TRAINING)] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.", rich_help_panel=TRAINING)] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radius in input units, before --mean and --std: 0.3, 8/255.", rich_help_panel=TRAINING)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the reference part.", rich_help_panel=TRAINING)] = None,
    max_time: Annotated[str | None, typer.Option(help="Stop training after 10m, 90s, 1h.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step of training.", rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", rich_help_panel=TRAINING)] = None,
    beta: Annotated[
        float | None, typer.Option(help="trades: weight of robustness against clean accuracy.", rich_help_panel=TRAINING)
    ] = None,
    attack_steps: Annotated[int | None, typer.Option(help="Steps of the inner attack.", rich_help_panel=TRAINING)] = None,
    step_size: Annotated[float | None, typer.Option(help="A step as a share of the radius.", rich_help_panel=TRAINING)] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin with fresh weights.", rich_help_panel=TRAINING)
    ] = False,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    trust_model: TrustModel = False,
    sandbox: Sandbox = False,
    expect_sha256: ExpectSha256 = None,
    task: TaskName = None,
    output: OutputKind = None,
    mean: Mean = None,
    std: Std = None,
    target: Target = None,
    inputs: Inputs = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    bounds: Bounds = None,
    profile: Profile = None,
    samples: Samples = None,
    device: Device = None,
    seed: Seed = None,
    settings: Settings = None,
    no_samples: NoSamples = False,
    fresh: Fresh = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Train MODEL to withstand small changes; audit it before and after."""
    if sandbox:
        reads, code = [model, data, reference, classes], [arch, preprocess]
        _enter_sandbox(reads=reads, code=code, config=config, settings=settings or [], out=out)
    from audit import workflows
    from audit.progress import Progress

    with Progress(quiet=quiet) as progress:
        hardened = workflows.harden(
            model,
            data,
            reference=reference,
            config=config,
            out=out,
            method=method,
            norm=norm,
            eps=eps,
            training={
                "epochs": epochs,
                "max_time": max_time,
                "batch_size": batch_size,
                "lr": lr,
                "beta": beta,
                "attack_steps": attack_steps,
                "step_size": step_size,
                "from_scratch": from_scratch or None,
            },
            arch=arch,
            arch_args=_json(arch_args),
            trust_model=trust_model,
            preprocess=preprocess,
            sections={
                "model": _reading(task, output, mean, std, expect_sha256),
                "data": {"target": target, "inputs": _names(inputs), "classes": classes, "bounds": _bounds(bounds)},
                "run": {
                    "profile": profile,
                    "samples": samples,
                    "device": device,
                    "seed": seed,
                    "save_samples": False if no_samples else None,
                },
            },
            settings=settings or [],
            fresh=fresh,
            progress=progress,
            command=shlex.join(["audit", *sys.argv[1:]]),
            debug=debug,
        )
    if not quiet:
        _say_result(hardened.result, out)
        from audit.plain import plain

        _write(f"  hardened network: {plain(hardened.model.origin.source)} ({plain(hardened.opens)})")
    raise typer.Exit(hardened.result.exit_code)


@app.command()
def explain(
    model: ModelFile,
    index: Annotated[int, typer.Option(help="Row number of the sample, from 0.", rich_help_panel=CHECKS)],
    data: Data = None,
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Page to write.", rich_help_panel=RUN)] = Path("explanation.html"),
    method: Annotated[
        str | None, typer.Option(help="Explainers, NAME,NAME: see audit list explainers.", rich_help_panel=CHECKS)
    ] = None,
    explain_class: Annotated[
        str | None, typer.Option("--class", help="Class to explain; unstated: the predicted one.", rich_help_panel=CHECKS)
    ] = None,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    trust_model: TrustModel = False,
    sandbox: Sandbox = False,
    expect_sha256: ExpectSha256 = None,
    task: TaskName = None,
    output: OutputKind = None,
    mean: Mean = None,
    std: Std = None,
    reference: Reference = None,
    target: Target = None,
    inputs: Inputs = None,
    sensitive: Sensitive = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    bounds: Bounds = None,
    profile: Profile = None,
    device: Device = None,
    seed: Seed = None,
    settings: Settings = None,
    debug: Debug = False,  # noqa: ARG001 - main reads it
    quiet: Quiet = False,
) -> None:
    """Explain the answer of MODEL to one sample, as one HTML page."""
    page = out.absolute()  # code of the user's may change the current folder before the page is written
    if sandbox:
        reads, code = [model, data, reference, classes], [arch, preprocess]
        page = _enter_sandbox(reads=reads, code=code, config=config, settings=settings or [], page=page) or page
    from audit import explaining
    from audit.plain import plain

    explained = explaining.explain_one(
        model,
        data,
        index=index,
        methods=_names(method),
        explain_class=explain_class,
        config=config,
        arch=arch,
        arch_args=_json(arch_args),
        trust_model=trust_model,
        reference=reference,
        preprocess=preprocess,
        sections={
            "model": _reading(task, output, mean, std, expect_sha256),
            "data": {
                "target": target,
                "inputs": _names(inputs),
                "sensitive": _names(sensitive),
                "classes": classes,
                "bounds": _bounds(bounds),
            },
            "run": {"profile": profile, "device": device, "seed": seed},
        },
        settings=settings or [],
        command=shlex.join(["audit", *sys.argv[1:]]),
    )
    explained.save(page)
    if not quiet:
        _write(f"{plain(explained.result.checks[0].answer)}\n  explanation: {plain(str(out))}")


@app.command()
def render(
    result: Annotated[Path, typer.Argument(help="result.json, or the folder that holds it.")],
    to: Annotated[str, typer.Option("--format", help="html, markdown, junit, sarif or github (lines of a log).")] = "html",
    out: Annotated[Path | None, typer.Option(help="File to write; unstated: standard output.")] = None,
) -> None:
    """Draw a report from result.json alone."""
    from importlib import import_module

    from audit.errors import closest
    from audit.result import Result

    if to not in FORMATS:
        raise UsageError(f"no format {to!r}; {closest(to, list(FORMATS))}")
    loaded = Result.load(result)
    _warn_of_edits(loaded)
    text: str = import_module(f"audit.report.{to}").render(loaded)
    _write_or_print(text, out, meant=to == "github")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="The older result.json, or the folder that holds it.")],
    new: Annotated[Path, typer.Argument(help="The newer one.")],
    max_drop: Annotated[
        float | None, typer.Option(help="How much worse the primary metric may be, in its own unit: 0.02.")
    ] = None,
    primary: Annotated[
        str | None, typer.Option(help="Metric that is tested alone; unstated: performance.accuracy or performance.r2.")
    ] = None,
    to: Annotated[str, typer.Option("--format", help="text, html, markdown or json.")] = "text",
    out: Annotated[Path | None, typer.Option(help="File to write; unstated: standard output.")] = None,
    debug: Debug = False,  # noqa: ARG001 - main reads it
) -> None:
    """Say what became better or worse from OLD to NEW, beyond noise.

    Ends with 1 if anything surely became worse, with 4 if the primary metric cannot be compared, else with 0. With
    --max-drop it ends with 0 only if the primary metric is shown to have dropped by at most that and nothing else is surely
    worse, with 4 if that cannot be told.
    """
    from audit.errors import closest
    from audit.report import diff as diffing

    if to not in diffing.FORMATS:
        raise UsageError(f"no format {to!r}; {closest(to, list(diffing.FORMATS))}")
    compared = diffing.compare_files(old, new, max_drop=max_drop, primary=primary)
    _write_or_print(compared.render(to), out)
    for edit in compared.edits:
        _say_error(edit)
    if out is not None:
        _write(compared.render("text"), end="")
    raise typer.Exit(compared.exit_code)


@app.command()
def trend(
    folder: Annotated[Path, typer.Argument(help="Folder with results in it, at any depth.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("trend.html"),
    metric: Annotated[list[str] | None, typer.Option(help="Metric to draw; may be repeated; unstated: headlines.")] = None,
    debug: Debug = False,  # noqa: ARG001 - main reads it
    quiet: Quiet = False,
) -> None:
    """Draw all results below FOLDER by time, as one HTML page. It compares nothing: see audit diff.

    Ends with 4 where there is no result to draw.
    """
    from audit.plain import plain
    from audit.report import trend as drawing

    found = drawing.read_folder(folder)
    _write_or_print(drawing.render(found, metric or []), out)
    for fault in found.faults[: drawing.MOST_FAULTS]:
        _say_error(f"not shown: {fault.file}: {fault.why}")
    if not quiet:
        _write(f"{len(found.runs):,} results, {len(found.faults):,} files not shown\n  trend: {plain(str(out))}")
    raise typer.Exit(0 if found.runs else 4)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that audit run wrote.")],
    key: Annotated[Path | None, typer.Option(help="Public ed25519 key (PEM) that must have signed it.")] = None,
    model: Annotated[str | None, typer.Option(help="Model file that it must be about.")] = None,
    data: Annotated[str | None, typer.Option(help="Data that it must have been made with.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Older result that it must have been compared with.")] = None,
    config: Annotated[Path | None, typer.Option(help="audit.toml whose limits it must have been judged by.")] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Never end with 0 unless limits are set, and cleared or waived.")
    ] = False,
    debug: Debug = False,  # noqa: ARG001 - main reads it
    quiet: Quiet = False,
) -> None:
    """Check that FOLDER holds what a run wrote, and judge it anew.

    Ends with 3 where anything does not hold, else with the exit code of the verdict.
    """
    from audit import verifying

    found = verifying.verify(folder, key=key, model=model, data=data, baseline=baseline, config=config, gate=gate)
    if not quiet:
        _write(str(found))
    raise typer.Exit(found.exit_code)


@app.command()
def sign(
    folder: Annotated[Path, typer.Argument(help="Folder that audit run wrote.")],
    key: Annotated[Path, typer.Option(help="Private ed25519 key (PEM); AUDIT_KEY_PASSPHRASE opens an encrypted one.")],
    debug: Debug = False,  # noqa: ARG001 - main reads it
    quiet: Quiet = False,
) -> None:
    """Sign what a run wrote, whatever its verdict, once it is verified: result.dsse.json names every file and its hash."""
    from audit import verifying
    from audit.plain import plain

    path = verifying.sign(folder, key)
    if not quiet:
        _write(f"signed: {plain(str(path))}")


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="Model file, data file, or folder of images.")],
    everything: Annotated[bool, typer.Option("--all", help="Show every layer, not the first ones alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    debug: Debug = False,  # noqa: ARG001 - main reads it
) -> None:
    """Say what FILE is, what in it would execute, and how to audit it, without loading it.

    Ends with 0 for a file that audit reads, with 3 for one that it refuses.
    """
    from audit import inspecting

    found = inspecting.inspect(file)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # whole lines for grep and files
    _write(harmless_json(json.dumps(found.to_dict(), indent=1)) if as_json else found.text(everything=everything, width=width))
    raise typer.Exit(found.exit_code)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="checks, options, attacks, detectors, explainers, formats, metrics or schema.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="metrics and attacks: as in docs/.")] = False,
) -> None:
    """List what there is: checks and their options, attacks, detectors, explainers, file formats, metrics, the schema."""
    from audit import listing

    _write(listing.show(what, markdown=markdown))


def main() -> NoReturn:
    """Run the command line and end with the exit code that the outcome stands for."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, _interrupt)
    # An output that cannot hold a character must not turn a verdict into an internal error.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    guard_log()
    if len(sys.argv) == 1:
        app(["--help"], prog_name="audit", standalone_mode=False)
        sys.exit(2)  # not 0: a gate whose arguments got lost asked for nothing
    try:
        code = app(prog_name="audit", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        _interrupted()
    except AuditError as error:
        _fail(error, str(error), error.exit_code, debug)
    except SystemExit as error:
        # Whatever code it asked for: a network that ends the process must not turn a gate green.
        _fail(error, "the network or other code of yours ended the process (SystemExit): nothing was concluded", 5, debug)
    except Exception as error:
        shown = getattr(error, "format_message", None)
        if shown is not None:
            _fail(error, str(shown()), 2, debug)
        _fail(error, f"internal error: {type(error).__name__}: {error} (--debug shows where; please report it)", 5, debug)
    if code == INTERRUPTED:  # newer versions of typer turn KeyboardInterrupt into an exit code
        _interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _interrupted() -> NoReturn:
    again = "the same command without --fresh" if "--fresh" in sys.argv else "the same command"
    print(f"audit: interrupted; finished jobs are kept: {again} goes on where it stopped", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _fail(error: BaseException, message: str, code: int, debug: bool) -> NoReturn:
    from audit.plain import plain

    if debug:
        traceback.print_exception(error)
    print(f"audit: {plain(message)}", file=sys.stderr)
    sys.exit(code)


def _enter_sandbox(**wanted: Any) -> Path | None:
    """Go on inside the walls, before any heavy library is loaded; where to write a page that was asked for."""
    from audit import sandbox

    return sandbox.enter(sandbox.Wanted(**wanted))


def _warn_of_edits(result: Any) -> None:
    """Say so where the stored verdict is not the one that the stored metrics, evidence and limits give."""
    from audit.policy import judge_again

    again = judge_again(result).word
    if again != result.verdict:
        print(f"audit: the file says {result.verdict!r}, but what it holds is judged {again!r}: it was edited", file=sys.stderr)


def _write_or_print(text: str, out: Path | None, *, meant: bool = False) -> None:
    """Write a page to `out` or standard output; the log of a CI job gets no command in it, unless that is what is `meant`."""
    from audit.console import leads_to_file, unguarded
    from audit.result import write_atomically

    if out is None:
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]  # the bytes that the run wrote
        raw = meant or leads_to_file(sys.stdout)
        _write(text, end="", stream=unguarded(sys.stdout) if raw else None)
    else:
        write_atomically(out, text.encode(errors="backslashreplace"))


def _say_error(message: str) -> None:
    from audit.plain import plain

    print(f"audit: {plain(message)}", file=sys.stderr)


def _say_result(result: Any, out: Path, checks: list[str] | None = None) -> None:
    from audit.plain import plain
    from audit.policy import describe

    lines = [f"{result.verdict}: {plain(result.sentence)}"]
    for judgement in result.policy:
        if judgement.outcome != "pass":
            plan = f"; plan for {judgement.plan_for:,} samples" if judgement.plan_for else ""
            lines.append(f"  {judgement.outcome}: {plain(describe(judgement))}{plan}")
    if result.comparison is not None:
        found = result.comparison
        lines.append(f"  since the baseline, {found.verdict.replace('_', ' ')}: {plain(found.sentence)}")
    for check in result.checks:
        if checks is not None and check.id not in checks:
            continue
        lines.append(f"  {check.id} ({check.status}): {plain(check.answer)}")
        if check.status == "incomplete" and check.reason:
            lines.append(f"    not complete: {plain(check.reason)}")
    _write("\n".join([*lines, f"  report: {plain(str(out / 'report.html'))}"]))


def _write(text: str, end: str = "\n", stream: Any = None) -> None:
    """Print to standard output. Where its reader has gone, as ``head`` does, the exit code is still the verdict's."""
    try:
        print(text, end=end, flush=True, file=stream)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _taken(given: dict[str, Any], *left: str) -> dict[str, Any]:
    """Return what was said on the command line as the library takes it, without what is `left` to the command itself."""
    options = {name: value for name, value in given.items() if name not in left}
    for name in ("inputs", "sensitive", "checks", "skip", "norm", "eps"):
        options[name] = _names(options[name])
    for name in ("mean", "std"):
        options[name] = _numbers(options[name], f"--{name}")
    return options | {
        "bounds": _bounds(options["bounds"]),
        "arch_args": _json(options["arch_args"]),
        "settings": options["settings"] or [],
    }


def _reading(task: str | None, output: str | None, mean: str | None, std: str | None, sha256: str | None) -> dict[str, Any]:
    """Return the section ``[model]`` of what was said on the command line."""
    numbers = {"mean": _numbers(mean, "--mean"), "std": _numbers(std, "--std")}
    return {"task": task, "output": output, **numbers, "expect_sha256": sha256}


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} needs numbers separated by commas, got {text!r}") from None


def _bounds(text: str | None) -> tuple[float, float] | None:
    numbers = _numbers(text, "--bounds")
    if numbers is None:
        return None
    if len(numbers) != 2:
        raise UsageError(f"--bounds needs LOW,HIGH, got {text!r}")
    return numbers[0], numbers[1]


def _json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--arch-args needs JSON, for instance '{{\"width\": 64}}', got {text!r}: {error}") from None
    if not isinstance(value, dict | list):
        raise UsageError(f"--arch-args needs a JSON object (keywords) or list (positions), got {text!r}")
    return value
