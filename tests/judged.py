"""Results of every kind whose verdict is the policy's own: what hypothesis draws for tests of what machines read."""

from __future__ import annotations

from datetime import date
from typing import Any

from hypothesis import strategies as st

from audit import stats
from audit.config import Limit, PolicySection, Waiver
from audit.policy import judge
from audit.result import CheckResult, Comparison, DataInfo, Evidence, Finding, Metric, ModelInfo, Result, Spec

NAMES = ["performance", "robustness", "fairness"]
DAY = date(2030, 5, 4)
METRICS = [f"{name}.{part}" for name in NAMES for part in ("a", "b")]


@st.composite
def checks(draw: st.DrawFn, name: str) -> CheckResult:
    """Draw a check: measured well or poorly, with evidence that holds or not, or without having run."""
    status = draw(st.sampled_from(["measured", "measured", "incomplete", "not_applicable", "error"]))
    metrics, evidence = [], []
    if status in ("measured", "incomplete"):
        for metric_id in draw(st.lists(st.sampled_from([m for m in METRICS if m.startswith(name)]), unique=True)):
            k, n = draw(st.sampled_from([(950, 1000), (300, 1000), (9, 10), (0, 0)]))
            share = stats.clopper_pearson(k, n, 0.95)
            kind = draw(st.sampled_from(["estimate", "upper"]))
            measured = {"value": share.value, "low": share.low, "high": share.high, "n": n}
            metrics.append(Metric(id=metric_id, **measured, confidence=0.95, method="clopper-pearson", kind=kind))
        evidence = [
            Evidence(id=f"{name}.e{i}", ok=ok, detail="as it was", one_sided=draw(st.booleans()))
            for i, ok in enumerate(draw(st.lists(st.booleans(), max_size=2)))
        ]
    found = [Finding(severity=s, title="A title", detail="A detail") for s in draw(st.lists(st.sampled_from(["high", "low"])))]
    reason = None if status == "measured" else "as it was"
    texts: dict[str, Any] = {"question": "?", "answer": ".", "reason": reason}
    return CheckResult(id=name, status=status, metrics=metrics, evidence=evidence, findings=found[:2], **texts)


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Draw a result of up to three checks and four limits, judged, with or without a gate, waivers and a baseline."""
    found = [draw(checks(name)) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))]
    sides = st.sampled_from([{"min": 0.9}, {"min": 0.2}, {"max": 0.1}, {"max": 0.99}, {"max_drop": 0.02}])
    limits = draw(
        st.lists(
            st.builds(lambda m, s, r: Limit(metric=m, **s, required=r), st.sampled_from(METRICS), sides, st.booleans()),
            max_size=4,
        )
    )
    waiver = Waiver(
        metric=draw(st.sampled_from(METRICS)), reason="why", owner="who", expires=draw(st.sampled_from([DAY, date(2020, 1, 1)]))
    )
    policy = PolicySection(limit=limits, waiver=draw(st.sampled_from([[], [waiver]])))
    gate, asked_for = draw(st.booleans()), draw(st.sampled_from([None, NAMES[:2]]))
    compared = draw(st.sampled_from([None, "worse", "unchanged", "not_comparable"]))
    comparison = None if compared is None else Comparison(
        verdict=compared, sentence="as it was", source="old", sha256="0" * 64, started_at="", model_sha256="1" * 64
    )  # fmt: skip
    verdict = judge(policy, found, gate=gate, required=asked_for or (), comparison=comparison, today=DAY)
    return Result(
        verdict=verdict.word,
        sentence=verdict.sentence,
        exit_code=verdict.exit_code,
        started_at="2030-05-04T09:30:00Z",
        seconds=1.5,
        spec=Spec(
            audit_version="0.1.0",
            config={"run": {"checks": asked_for, "gate": gate}, "policy": policy.model_dump(mode="json")},
        ),
        model=ModelInfo(
            source="m.pt", sha256="2" * 64, format="pt", task="classification", classes=2, input_shape=[1], parameters=1
        ),
        data=DataInfo(source="d.npz", sha256="3" * 64, n=1000),
        checks=found,
        policy=verdict.judgements,
        comparison=comparison,
    )
