"""A hand-made result that holds everything a report can meet: all kinds of figures, all statuses, all outcomes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from audit.result import (
    Change,
    CheckResult,
    Comparison,
    Cost,
    DataInfo,
    Evidence,
    Figure,
    Finding,
    Judgement,
    Metric,
    ModelInfo,
    OutcomeTable,
    Passes,
    Result,
    Spec,
    Table,
)

GROUPS = ["women under 25", "women 25 to 60", "women over 60", "men under 25", "men 25 to 60", "men over 60", "not stated"]
DIGITS = [str(d) for d in range(10)]


def picture(array: np.ndarray) -> dict[str, Any]:
    pixels = np.clip(array, 0, 255).astype(np.uint8)
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.tobytes()).decode()}


def gallery(items: int = 4, side: int = 28, channels: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[0:side, 0:side] / side - 0.5
    made = []
    for k in range(items):
        ring = np.exp(-(((np.hypot(xx, yy * (1 + 0.15 * k)) - 0.28) / 0.07) ** 2)) * 255
        clean = np.repeat(ring[None], channels, axis=0)
        change = rng.choice([-14, 14], size=clean.shape)
        panels = [picture(clean), picture(clean + change), picture(128 + 8 * change)]
        made.append({"id": 17 + 31 * k, "caption": f"{k} → {(k + 3) % 10}, broken by APGD-CE", "images": panels})
    return {"panels": ["clean", "adversarial", "difference × 10"], "items": made}


def colour_gallery(items: int = 3, side: int = 32) -> dict[str, Any]:
    """Seven panels: a picture of three channels, one of a single channel, and five of three."""
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[0:side, 0:side] / side
    made = []
    for k in range(items):
        photo = np.stack([255 * xx, 255 * yy, 255 * np.abs(np.sin(4 * xx + k))])
        panels = [photo, photo.mean(axis=0, keepdims=True), *(photo + rng.normal(0, 12 * j, photo.shape) for j in range(5))]
        made.append({"id": 5 + k, "caption": "cat, said to be a dog", "images": [picture(p) for p in panels]})
    names = ["clean", "grey", "saliency", "integrated gradients", "Grad-CAM", "SHAP, kernel", "LIME"]
    return {"panels": names, "items": made}


def line(name: str, at: float, **more: Any) -> dict[str, Any]:
    x = np.arange(6)
    y = 0.97 / (1 + np.exp((x - at) * 1.4))
    return {"name": name, "x": x.tolist(), "y": y.tolist(), "low": (y * 0.94).tolist(), "high": (y * 1.03).tolist(), **more}


def more_figures() -> dict[str, Figure]:
    """Figures of the kinds that show spread, sign, and what changed."""
    rng = np.random.default_rng(2)
    groups = [
        ("test images", rng.gamma(4, 1, 900)),
        ("Fashion-MNIST", rng.gamma(9, 1.6, 700)),
        ("adversarial", rng.gamma(6, 1, 90)),
    ]
    edges = np.linspace(0, 30, 41)
    age = np.linspace(17, 90, 20)
    thin = [
        {"name": "", "faint": True, "x": age.tolist(), "y": (0.2 + 0.004 * age + rng.normal(0, 0.1)).tolist()}
        for _ in range(40)
    ]
    corruptions = ["Gaussian noise", "shot noise", "impulse noise", "defocus blur", "motion blur", "fog", "JPEG compression"]
    return {
        "histogram": Figure(
            id="anomaly.scores",
            kind="histogram",
            title="Scores of the autoencoder, with the threshold of 5 % false alarms",
            data={
                "edges": edges.tolist(),
                "series": [
                    {"name": name, "share": (np.histogram(v, edges)[0] / len(v)).tolist(), "n": len(v)} for name, v in groups
                ],
                "threshold": 8.3,
                "threshold_label": "threshold",
                "xlabel": "reconstruction error",
                "ylabel": "share of samples",
            },
        ),
        "signed": Figure(
            id="explanation.features",
            kind="bars",
            title="What spoke for and against the answer on sample 17",
            data={
                "labels": [
                    "capital gain",
                    "age",
                    "hours a week",
                    "marital status: never married, and a label that is far too long",
                ],
                "values": [0.31, 0.08, -0.02, -0.24],
                "low": [0.29, 0.05, -0.05, None],
                "high": [0.33, 0.11, 0.01, None],
                "signed": True,
                "xlabel": "share of the log-odds",
                "ylabel": "column",
            },
        ),
        "ice": Figure(
            id="explanation.dependence",
            kind="curve",
            title="How the answer depends on age",
            data={
                "series": [*thin, {"name": "mean", "x": age.tolist(), "y": (0.2 + 0.004 * age).tolist()}],
                "xlabel": "age",
                "ylabel": "probability",
            },
        ),
        "paired": Figure(
            id="hardening.before_after",
            kind="paired",
            title="Before and after hardening",
            data={
                "labels": ["clean accuracy", "under PGD, ε 0.1", "under PGD, ε 0.3", "not measured before"],
                "before": {
                    "values": [0.984, 0.61, 0.0, None],
                    "low": [0.97, 0.58, 0.0, None],
                    "high": [0.99, 0.64, 0.01, None],
                },
                "after": {
                    "values": [0.972, 0.94, 0.71, 0.4],
                    "low": [0.96, 0.92, 0.68, None],
                    "high": [0.98, 0.95, 0.74, None],
                },
                "before_name": "before",
                "after_name": "after TRADES",
                "xlabel": "accuracy",
            },
        ),
        "small_multiples": Figure(
            id="corruption.curves",
            kind="small_multiples",
            title="Accuracy at each severity",
            data={
                "panels": [
                    {"title": name, "series": [line("this network", 4 - 0.4 * i), line("majority", 9)]}
                    for i, name in enumerate(corruptions)
                ],
                "xlabel": "severity",
                "ylabel": "accuracy",
                "ymin": 0,
                "ymax": 1,
            },
        ),
        "colour_gallery": Figure(
            id="explanation.maps", kind="gallery", title="What the network looked at", data=colour_gallery()
        ),
    }


def figures() -> dict[str, Figure]:
    """One figure of each kind, and one of a kind that nobody knows."""
    rng = np.random.default_rng(1)
    x = np.linspace(0, 0.3, 13)
    curve = 0.98 / (1 + np.exp((x - 0.16) * 26))
    truth = rng.normal(150, 60, 300)
    confusion = rng.integers(0, 6, (10, 10)) + np.diag(rng.integers(70, 110, 10))
    share = [0.91, 0.93, 0.9, 0.84, 0.92, 0.95, None]
    low = [0.85, 0.91, 0.82, 0.71, 0.9, 0.9, None]
    high = [0.95, 0.95, 0.95, 0.93, 0.94, 0.98, None]
    forest = {"labels": GROUPS, "values": share, "low": low, "high": high, "n": [140, 1204, 88, 51, 1377, 203, 4]}
    return {
        "bars": Figure(
            id="corruption.accuracy",
            kind="bars",
            title="Accuracy under each corruption, at severity 3 of 5",
            data={
                "labels": ["Gaussian noise", "shot noise", "impulse noise", "defocus blur", "fog", "JPEG"],
                "values": [0.81, 0.78, 0.62, 0.9, 0.44, 0.955],
                "low": [0.78, 0.75, 0.58, 0.88, 0.4, 0.94],
                "high": [0.84, 0.81, 0.66, 0.92, 0.48, 0.967],
                "xlabel": "accuracy",
                "ylabel": "corruption",
                "reference": 0.972,
                "reference_label": "clean",
            },
        ),
        "forest": Figure(
            id="fairness.accuracy",
            kind="forest",
            title="Accuracy in each group, with 95 % intervals",
            data={**forest, "xlabel": "accuracy", "ylabel": "group", "reference": 0.921, "reference_label": "all"},
        ),
        "matrix": Figure(
            id="performance.confusion",
            kind="matrix",
            title="Predicted class against true class",
            data={"rows": DIGITS, "columns": DIGITS, "values": confusion.tolist(), "xlabel": "predicted", "ylabel": "true"},
        ),
        "reliability": Figure(
            id="calibration.reliability",
            kind="reliability",
            title="How often the network is right when it says so",
            data={
                "confidence": [0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.96],
                "accuracy": [0.3, 0.38, 0.5, 0.52, 0.66, 0.74, 0.97],
                "low": [0.1, 0.2, 0.38, 0.42, 0.58, 0.69, 0.96],
                "high": [0.6, 0.58, 0.62, 0.62, 0.73, 0.79, 0.98],
                "n": [10, 22, 61, 90, 140, 310, 1367],
                "xlabel": "confidence",
                "ylabel": "share that is right",
            },
        ),
        "curve": Figure(
            id="robustness.curve",
            kind="curve",
            title="Accuracy as the attack may change more of the input",
            data={
                "series": [
                    {
                        "name": "no attack found",
                        "x": x.tolist(),
                        "y": curve.tolist(),
                        "low": (curve * 0.96).tolist(),
                        "high": np.minimum(curve * 1.04, 1).tolist(),
                    },
                    {"name": "certified", "x": x.tolist(), "y": [*np.maximum(0.98 - 9 * x, 0)[:8].tolist(), *[None] * 5]},
                ],
                "xlabel": "radius ε (L∞)",
                "ylabel": "accuracy",
            },
        ),
        "bracket": Figure(
            id="robustness.bracket",
            kind="bracket",
            title="What is certified, what is broken, and what is left between them",
            data={
                "certified": 830,
                "undecided": 396,
                "broken": 718,
                "wrong": 56,
                "certified_low": 0.393,
                "certified_high": 0.437,
                "attacked_low": 0.591,
                "attacked_high": 0.635,
                "confidence": 0.95,
                "xlabel": "share of samples",
                "note": "On these samples the truth lies between the two bounds.",
            },
        ),
        "steps": Figure(
            id="robustness.steps",
            kind="curve",
            title="How accuracy falls as the attack may change more",
            data={
                "series": [
                    {
                        "name": "no attack found",
                        "step": "post",
                        "x": [0, 0.02, 0.05],
                        "y": [0.97, 0.6, 0.2],
                        "low": [0.95, 0.55, 0.15],
                        "high": [0.98, 0.65, 0.25],
                    },
                    {"name": "certified", "step": "pre", "x": [0, 0.02], "y": [0.4, 0.4]},
                ],
                "xlabel": "radius (L∞, input units)",
                "ylabel": "share of samples",
                "marks": [{"x": 8 / 255, "label": "radius 0.03137 = 8/255"}],
                "xmin": 0,
                "xmax": 0.06,
                "ymin": 0,
                "ymax": 1,
                "second_scale": 255.0,
                "second_unit": "/255",
                "note": "The band is that of each radius taken alone.",
            },
        ),
        "scatter": Figure(
            id="performance.predictions",
            kind="scatter",
            title="Predicted against true values",
            data={
                "x": truth.tolist(),
                "y": (truth + rng.normal(0, 25, 300)).tolist(),
                "xlabel": "true",
                "ylabel": "predicted",
                "diagonal": True,
            },
        ),
        "gallery": Figure(
            id="robustness.examples", kind="gallery", title="Images that the network no longer recognises", data=gallery()
        ),
        "feature_change": Figure(
            id="robustness.changes",
            kind="feature_change",
            title="Rows whose prediction changed",
            data={
                "columns": ["age", "income", "debt ratio", "open accounts"],
                "items": [
                    {
                        "id": 4,
                        "caption": "granted → refused",
                        "clean": [41, 32000.0, 0.31, 4],
                        "adversarial": [41, 31650.0, 0.36, 5],
                    },
                    {
                        "id": 9,
                        "caption": "refused → granted",
                        "clean": [23, 18000.0, 0.52, 1],
                        "adversarial": [23, 18000.0, 0.49, 1],
                    },
                ],
                "scale": [12.0, 9000.0, 0.2, 3.0],
            },
        ),
        **more_figures(),
        "unknown": Figure(
            id="performance.other", kind="hologram", title="A kind from the future", data={"a": [1, 2], "b": [3, 4]}
        ),
    }


def metric(metric_id: str, value: float | None, low: float | None, high: float | None, **more: Any) -> Metric:
    defaults = {"confidence": 0.95, "n": 2000, "method": "clopper-pearson"}
    return Metric(id=metric_id, value=value, low=low, high=high, **{**defaults, **more})


def checks() -> list[CheckResult]:
    drawn = figures()
    performance = CheckResult(
        id="performance",
        status="measured",
        question="Is the network right on data that it has not seen?",
        answer="It is right on 97.2 % of 2,000 test images; its worst class is 8, with 93.1 %.",
        metrics=[
            metric("performance.accuracy", 0.972, 0.9638, 0.9788, params={"headline": True}),
            metric("performance.balanced_accuracy", 0.9712, 0.963, 0.9785, method="bootstrap, BCa, 2,000 draws"),
            metric("performance.mean_squared_error", 1523.442, 1402.1, 1650.9, direction="lower", unit="unit²"),
        ],
        evidence=[
            Evidence(
                id="performance.beats_majority",
                ok=True,
                detail="Always answering the largest class is right on 11.4 %.",
                value=0.114,
            )
        ],
        findings=[
            Finding(
                severity="low",
                title="Class 8 is the weakest",
                detail="Accuracy of 93.1 % on class 8, against 97.2 % overall.",
                samples=[3, 77, 402],
            )
        ],
        outcomes=OutcomeTable.pack("ab" * 32, 3, {"performance.right": np.array([True, False, True])}),
        figures=[
            drawn[name]
            for name in ("matrix", "reliability", "scatter", "histogram", "signed", "ice", "colour_gallery", "unknown")
        ],
        tables=[
            Table(
                id="performance.classes",
                title="Accuracy of each class",
                columns=["class", "accuracy", "n"],
                rows=[["0", 0.991, 196], ["8", 0.931, 201], ["9", None, 0]],
            )
        ],
        cost=Cost(forwards=2000, seconds=0.4),
        not_tested=["Data from other sources or later years than the test file."],
    )
    robustness = CheckResult(
        id="robustness",
        status="measured",
        question="Can a change too small to notice change its answer?",
        answer="Yes: at radius 0.1 an attack changes the answer for 38.7 % of all images. At that radius 41.5 % are certified.",
        metrics=[
            metric("robustness.linf.accuracy", 0.613, 0.5912, 0.6344, kind="upper", params={"headline": True, "eps": 0.1}),
            metric("robustness.linf.certified_accuracy", 0.415, 0.393, 0.437, kind="lower", params={"headline": True}),
            metric(
                "robustness.linf.median_distance",
                None,
                0.118,
                None,
                unit="L∞ distance",
                detail="more than 0.118: fewer than half were broken",
                params={"headline": True},
            ),
        ],
        evidence=[
            Evidence(
                id="robustness.loss_rises", ok=True, detail="The loss rose in 99.8 % of the attacked samples.", value=0.998
            ),
            Evidence(
                id="robustness.gradient_free",
                ok=False,
                detail="Square, which sees no gradient, broke 12 samples that gradient attacks did not: they may be masked.",
                value=12.0,
            ),
        ],
        findings=[
            Finding(
                severity="high",
                title="Gradients may be masked",
                detail="An attack without gradients broke samples that attacks with gradients did not. "
                "The accuracy under attack may be lower still.",
                samples=list(range(17, 500, 31)),
            ),
            Finding(
                severity="medium",
                title="Class 4 breaks first",
                detail="Half of class 4 is broken at radius 0.06, half of all others at 0.14.",
                samples=[48, 79],
            ),
        ],
        figures=[drawn["steps"], drawn["bracket"], drawn["curve"], drawn["gallery"], drawn["feature_change"]],
        cost=Cost(
            forwards=812000,
            backwards=402000,
            seconds=61.2,
            parts={
                "robustness.linf.accuracy": Passes(forwards=800000, backwards=402000, seconds=60.0),
                "robustness.linf.certified_accuracy": Passes(forwards=12000, seconds=1.2),
            },
        ),
        not_tested=["Changes larger than 0.1 in any pixel, rotations, and patches.", "Attackers who know the training data."],
        artifact="artifacts/robustness.npz",
    )
    corruption = CheckResult(
        id="corruption",
        status="incomplete",
        reason="The time budget of 10 minutes ended after 6 of 15 corruptions.",
        question="Does it keep working when the picture is noisy, blurred or foggy?",
        answer="Under 6 corruptions it keeps 75.1 % accuracy on average; fog costs most. Nine were not measured.",
        metrics=[metric("corruption.mean_accuracy", 0.751, 0.729, 0.772, method="bootstrap over samples")],
        findings=[Finding(severity="info", title="Fog costs half of the accuracy", detail="44 % at severity 3.", samples=[])],
        figures=[drawn["bars"], drawn["small_multiples"]],
        cost=Cost(forwards=180000, seconds=600.0),
        not_tested=["Snow, frost, motion blur and six other corruptions: out of budget."],
    )
    fairness = CheckResult(
        id="fairness",
        status="measured",
        question="Does it treat groups of people alike?",
        answer="Accuracy differs by at most 11 points between groups large enough to say so; the smallest group has 4 people.",
        metrics=[
            metric(
                "fairness.group.demographic_parity_difference",
                0.062,
                0.021,
                0.108,
                direction="lower",
                method="bootstrap, stratified",
            ),
            metric("fairness.group.worst_group_accuracy", 0.84, 0.711, 0.931, params={"headline": True}),
        ],
        figures=[drawn["forest"], drawn["paired"]],
        not_tested=["The group “not stated” (4 people): too few for any figure."],
    )
    anomaly = CheckResult(
        id="anomaly",
        status="not_applicable",
        reason="It needs training data: give them with --reference.",
        question="Does it notice inputs unlike anything it was trained on?",
        answer="Not asked.",
    )
    explanation = CheckResult(
        id="explanation",
        status="error",
        reason="RuntimeError: the network has no layer that Grad-CAM could use.",
        question="Do the explanations follow the network?",
        answer="Not answered: the check ended in an error.",
    )
    return [performance, robustness, corruption, fairness, anomaly, explanation]


POLICY = [
    Judgement(metric="performance.accuracy", min=0.95, bound=0.9638, p_fail=0.0003, outcome="pass"),
    Judgement(
        metric="robustness.linf.accuracy",
        min=0.7,
        bound=0.5912,
        p_fail=1e-12,
        outcome="fail",
        reason="The whole interval lies below the limit; it stands although evidence is not ok.",
    ),
    Judgement(
        metric="robustness.linf.certified_accuracy",
        min=0.4,
        bound=0.393,
        p_fail=0.09,
        outcome="incomplete",
        reason="The interval straddles the limit.",
        plan_for=7431,
    ),
    Judgement(
        metric="fairness.group.demographic_parity_difference",
        max=0.1,
        bound=0.108,
        p_fail=0.04,
        outcome="waived",
        reason="Until 2031-01-01, by the risk board: new data are being collected.",
    ),
    Judgement(
        metric="anomaly.autoencoder.auroc", min=0.9, outcome="incomplete", required=False, reason="The check did not run."
    ),
]

SENTENCES = {
    "pass": "All 4 required limits are met on 2,000 samples.",
    "fail": "1 of 4 required limits failed: accuracy under L∞ attacks of radius 0.1 is at most 0.634, and 0.7 was asked for; "
    "1 could not be decided, 1 was waived.",
    "incomplete": "1 of 4 required limits could not be decided; none failed.",
    "unjudged": "",
}
EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 4, "unjudged": 0}


def comparison(verdict: str = "worse") -> Comparison:
    """Return a comparison with every outcome, two units and all that can be said of a change."""

    def change(metric_id: str, outcome: str, by: float | None = None, half: float = 0.01, **more: Any) -> Change:
        ends = (
            {}
            if by is None
            else {"change": by, "low": by - half, "high": by + half, "old": 0.9, "new": 0.9 + by, "p_worse": 0.02}
        )
        fields = {"metric": metric_id, "direction": "higher", "outcome": outcome, "n": 2000, **ends, **more}
        return Change(**fields)

    changes = [
        change(
            "performance.accuracy", "unchanged", -0.004, primary=True, method="paired, exact McNemar", reason="9 and 4 samples"
        ),
        change("robustness.linf.accuracy", "worse", -0.08, method="paired, exact McNemar"),
        change("calibration.ece", "better", -0.03, direction="lower", method="independent, MOVER of the two intervals"),
        change("performance.mae", "worse", 3.5, 1.0, direction="lower", unit="label units"),
        change("robustness.l2.accuracy", "not_comparable", reason="another eps: 0.5, then 1"),
        change("fairness.group.worst_group_accuracy", "not_comparable", reason="the older result does not hold it"),
    ]
    return Comparison(
        verdict=verdict,
        sentence="2 of 3 other metrics surely became worse: robustness.linf.accuracy, performance.mae.",
        source="release-1/result.json",
        sha256="ab" * 32,
        started_at="2030-04-04T09:30:00Z",
        model_sha256="cd" * 32,
        paired=True,
        changes=changes,
        notes=["another seed: 0, then 1"],
    )


def rich(verdict: str = "fail", **changes: Any) -> Result:
    """Return the result, with any of its parts replaced."""
    parts: dict[str, Any] = {
        "verdict": verdict,
        "sentence": SENTENCES[verdict],
        "exit_code": EXIT_CODES[verdict],
        "started_at": "2030-05-04T09:30:00Z",
        "seconds": 671.8,
        "spec": Spec(
            audit_version="0.1.0",
            config={"run": {"profile": "standard", "seed": 0}, "robustness": {"norm": ["linf"], "eps": [0.1]}},
            policy_sha256="c0ffee" * 10 + "0000",
            packages={"torch": "2.13.0", "numpy": "2.4.6"},
            python="3.11.7",
            platform="Linux x86_64",
            git={"commit": "0f1e2d3", "dirty": False},
            command="audit run cnn.safetensors --arch nets.py:SmallCNN --data test.npz --checks performance,robustness",
        ),
        "model": ModelInfo(
            source="cnn.safetensors",
            sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            format="safetensors state dict",
            task="classification",
            classes=10,
            class_names=DIGITS,
            input_shape=[1, 28, 28],
            parameters=312202,
            output="logits",
            notes=["Radius not stated: L∞ 0.1 was used."],
        ),
        "data": DataInfo(
            source="test.npz",
            sha256="60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            n=2000,
            rows=10000,
            kind="images",
            sensitive=["group"],
            bounds=[0, 1],
            notes=["Bounds not stated: [0, 1] was used, since all values lie inside."],
        ),
        "checks": checks(),
        "policy": [] if verdict == "unjudged" else POLICY,
        "comparison": comparison(),
    }
    return Result(**{**parts, **changes})


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    """Return the function that makes results."""
    return rich


@pytest.fixture(scope="session")
def result() -> Result:
    """Return the result with everything in it, verdict fail."""
    return rich()


@pytest.fixture(scope="session")
def make_figures() -> Callable[[], dict[str, Figure]]:
    """Return the function that makes one figure of each kind."""
    return figures
