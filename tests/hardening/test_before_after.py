"""The whole path: audit, training, audit, comparison; the folder that it leaves, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import audit
from audit import demo_nets, workflows
from audit.errors import UsageError
from audit.listing import metrics_page, show
from audit.plan import is_of
from audit.policy import judge_again
from audit.result import Metric
from audit.tradeoff import METRICS, _calibration, conclude
from tests.hardening.nets import bits, digits, trained

pytestmark = pytest.mark.slow

TRAINING = {"epochs": 4, "attack_steps": 3, "lr": 0.005, "batch_size": 32, "validation_steps": 5}
AUDIT = {"run": {"profile": "quick", "samples": 150}, "robustness": {"steps": 10, "noise_draws": 3}}


def run(model=None, data=None, **options):
    given = {"method": "pgd", "eps": 0.1, "training": TRAINING, "sections": AUDIT, **options}
    return workflows.harden(model or audit.Model(trained(), bounds=(0, 1)), data or digits(), **given)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("harden") / "out"
    return run(out=out), out


def test_the_result_holds_both_audits_and_what_lies_between(done):
    hardened, out = done
    result = hardened.result
    assert [check.id for check in result.checks] == ["hardening", "performance", "robustness"]
    check = result["hardening"]
    before, after = audit.Result.load(out / "before"), audit.Result.load(out / "after")
    gain = check.metric("hardening.linf.accuracy_gain")
    own = [r["robustness"].metric("robustness.linf.accuracy").value for r in (before, after)]
    assert (gain.params["before"], gain.params["after"]) == pytest.approx(tuple(own))
    assert gain.value == pytest.approx(own[1] - own[0])
    cost = check.metric("hardening.clean.cost")
    assert cost.value == pytest.approx(
        before["performance"].metric("performance.accuracy").value - after["performance"].metric("performance.accuracy").value
    )
    assert check.metric("hardening.linf.robust_accuracy").value == pytest.approx(own[1])
    assert before.data.sha256 == after.data.sha256
    assert (before.data.n, after.data.n) == (150, 150)
    assert check.cost.parts["hardening.training"].backwards == hardened.history.backwards
    assert check.cost.backwards > hardened.history.backwards
    assert audit.Result.load(out) == result


def test_what_it_measures_is_documented_as_it_is(done):
    for metric in done[0].result["hardening"].metrics:
        (doc,) = [doc for doc in METRICS if is_of(metric.id, doc.id)]
        assert (metric.kind, metric.direction, metric.unit) == (doc.kind, doc.direction, doc.unit)
    assert all(doc.id in show("metrics") and f"`{doc.id}`" in metrics_page() for doc in METRICS)


def test_the_weights_are_written_and_load_with_the_same_architecture(done):
    hardened, out = done
    weights = torch.load(out / "hardened.pt", weights_only=True)
    assert {name: tensor.numpy().tobytes() for name, tensor in weights.items()} == bits(hardened.model.module)
    assert hardened.result.model.source == str(out / "hardened.pt")
    assert hardened.result.model.sha256 == audit.Result.load(out / "after").model.sha256
    assert hardened.result.model.sha256 != audit.Result.load(out / "before").model.sha256


def test_the_report_shows_curves_gradients_and_pictures(done):
    hardened, out = done
    figures = {figure.id: figure for figure in hardened.result["hardening"].figures}
    assert {name: figure.kind for name, figure in figures.items()} == {
        "hardening.before_after": "paired",
        "hardening.validation": "curve",
        "hardening.loss": "curve",
        "hardening.gradients": "small_multiples",
        "hardening.worst": "gallery",
    }
    assert len(figures["hardening.validation"].data["series"][0]["x"]) == len(hardened.history.epochs)
    page = (out / "report.html").read_text()
    assert "No drawing for these data" not in page
    assert "Before and after hardening" in page
    assert "hardening" in (out / "summary.md").read_text()


def test_the_gain_must_not_lie_below_zero_unless_the_policy_says_more(done):
    """That it helped is no verdict on whether the network may be used; that it did not is one."""
    helped = done[0].result
    assert (helped.verdict, helped.exit_code, helped.policy) == ("unjudged", 0, [])
    useless = run(training={**TRAINING, "epochs": 1, "lr": 1e-9}).result
    assert [(j.metric, j.min, j.outcome) for j in useless.policy] == [("hardening.linf.accuracy_gain", 0.0, "incomplete")]
    assert (useless.verdict, useless.exit_code) == ("incomplete", 4)
    assert useless.spec.policy_sha256
    for result in (helped, useless):
        assert judge_again(result).word == result.verdict


def test_limits_may_name_what_hardening_measures(tmp_path):
    policy = {"limit": [{"metric": "hardening.linf.accuracy_gain", "min": 0.9}, {"metric": "hardening.clean.cost", "max": 0.5}]}
    result = run(policy=policy, out=tmp_path).result
    assert (result.verdict, result.exit_code) == ("fail", 1)
    assert [j.outcome for j in result.policy] == ["fail", "pass"]
    assert judge_again(audit.Result.load(tmp_path)).word == "fail"
    with pytest.raises(UsageError, match="did you mean"):
        run(policy={"limit": [{"metric": "hardening.linf.acuracy_gain", "min": 0.1}]})
    with pytest.raises(UsageError, match="better lower"):
        run(policy={"limit": [{"metric": "hardening.clean.cost", "min": 0.1}]})


def test_a_second_call_does_nothing_again(done):
    hardened, out = done
    said: list[str] = []

    class Listening:
        def __getattr__(self, name):
            return lambda *arguments, **_: said.append(str(arguments[0])) if name == "say" else None

    again = run(out=out, progress=Listening())
    assert not any(line.startswith("epoch") for line in said)
    assert bits(again.model.module) == bits(hardened.model.module)
    assert again.result["hardening"].metrics == hardened.result["hardening"].metrics
    assert [c.cost.forwards for c in again.result.checks] == [c.cost.forwards for c in hardened.result.checks]


def test_no_input_is_written_where_none_may_be(tmp_path):
    sections = {**AUDIT, "run": {**AUDIT["run"], "save_samples": False}}
    result = run(out=tmp_path, sections=sections).result
    assert "hardening.worst" not in {figure.id for figure in result["hardening"].figures}
    assert not list(tmp_path.rglob("artifacts/*.npz"))


def test_without_a_reference_part_nothing_is_audited(tmp_path):
    data = digits()
    alone = audit.Dataset(data.test.x, data.test.y, bounds=(0.0, 1.0))
    with pytest.raises(UsageError, match="--reference"):
        run(data=alone, out=tmp_path)
    assert not (tmp_path / "before").exists()


def test_a_network_that_hardening_ruins_fails(tmp_path):
    """A learning rate that is far too high: what comes out is worse than what went in, and nobody calls it a success."""
    result = run(training={**TRAINING, "lr": 1e-12, "epochs": 1}).result
    assert result.verdict == "incomplete"
    assert any(f.title == "Hardening is not shown to have helped" for f in result["hardening"].findings)


def test_a_regression_network_is_held_to_one_tolerance(regressor):
    module, data = regressor
    result = workflows.harden(
        audit.Model(module, task="regression"),
        data,
        method="pgd",
        training={**TRAINING, "lr": 0.02, "epochs": 6, "validation": 0.2, "from_scratch": True},
        sections={"run": {"profile": "quick"}, "robustness": {"steps": 10}},
    ).result
    check = result["hardening"]
    assert check.status in ("measured", "incomplete")
    increase = check.metric("hardening.clean.error_increase")
    assert increase.low < increase.value < increase.high
    assert check.metric("hardening.linf.accuracy_gain").params["tolerance"] > 0
    assert result["robustness"].metric("robustness.linf.accuracy").params["tolerance"] == pytest.approx(
        check.metric("hardening.linf.accuracy_gain").params["tolerance"]
    )
    assert "mean absolute error changes by" in check.answer


def test_a_check_that_ended_in_an_error_makes_hardening_one(done):
    hardened, _ = done
    result = hardened.result
    broken = result["robustness"].model_copy(update={"status": "error", "reason": "it broke", "outcomes": None})
    from audit.tradeoff import Trial

    audited = result.model_copy(update={"checks": [result["performance"], broken]})
    answer = conclude(Trial(audited, result, hardened.history), 0.95)
    assert answer.status == "error"
    assert "robustness before is error: it broke" in (answer.reason or "")


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "audit", "harden", *words], capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_hardens_a_table_from_files(diabetes_net, tmp_path):
    words = [
        str(diabetes_net / "model.pt"),
        "--arch",
        f"{demo_nets.__file__}:TableNet",
        "--data",
        str(diabetes_net / "test.csv"),
    ]
    words += ["--target", "progression_above_median", "--out", str(tmp_path / "out"), "--samples", "100", "--profile", "quick"]
    without = command(*words)
    assert without.returncode == 2
    assert "--reference DATA" in without.stderr
    words += ["--reference", str(diabetes_net / "train.csv"), "--epochs", "3", "--set", "robustness.steps=5"]
    words += ["--beta", "1", "--set", "hardening.validation=0.2"]
    done = command(*words)
    assert done.returncode in (0, 4), done.stderr
    assert "hardened network:" in done.stdout
    result = audit.Result.load(tmp_path / "out")
    assert result.spec.command.startswith("audit harden")
    assert result["hardening"].metric("hardening.linf.accuracy_gain").params["eps"] == 0.1
    assert json.loads((tmp_path / "out" / "result.json").read_text())["spec"]["config"]["hardening"]["epochs"] == 3
    assert np.isfinite(result["hardening"].metric("hardening.clean.cost").value)


def test_a_section_for_hardening_may_stand_in_the_file_of_an_audit():
    network = audit.Model(trained(), bounds=(0, 1))
    result = audit.run(network, digits(), config={"hardening": {"epochs": 3}}, checks=["performance"], samples=30)
    assert result["performance"].status in ("measured", "incomplete")
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        audit.run(network, digits(), config={"hardening": {"epoch": 3}}, checks=["performance"], samples=30)


def test_a_limit_of_ones_own_that_is_kept_is_a_pass():
    result = run(policy={"limit": [{"metric": "hardening.linf.accuracy_gain", "min": 0.01}]}).result
    assert (result.verdict, result.exit_code) == ("pass", 0)
    assert run().result.verdict == "unjudged"


def test_what_cannot_train_is_said_before_the_first_audit(regressor, monkeypatch):
    monkeypatch.setattr("audit.before_after.execute", lambda *_, **__: pytest.fail("it audited first"))
    with pytest.raises(UsageError, match="did you mean 'trades'"):
        run(method="trade")
    with pytest.raises(UsageError, match="trades is for classification"):
        run(audit.Model(regressor[0]), regressor[1], method="trades")


@pytest.mark.parametrize(("after", "said"), [((0.30, 0.22, 0.40), True), ((0.12, 0.04, 0.20), False)])
def test_confidence_that_hardening_ruined_for_sure_is_said(after, said):
    def result(value, low, high):
        metric = Metric(
            id="calibration.ece", value=value, low=low, high=high, confidence=0.95, n=300, method="mover", direction="lower"
        )
        return SimpleNamespace(metrics=lambda: {metric.id: metric})

    found = _calibration(SimpleNamespace(before=result(0.10, 0.05, 0.19), after=result(*after)))
    assert [finding.severity for finding in found] == (["medium"] if said else [])
