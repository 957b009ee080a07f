"""``audit explain``: one answer as one page, its options, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import audit
from audit import demo_nets
from audit.errors import OutputError, UsageError
from audit.explaining import _share, explain_one
from audit.report.html import CONTENT_SECURITY_POLICY

pytestmark = pytest.mark.slow

ARCH = f"{demo_nets.__file__}:"
FEW = ["integrated_gradients", "saliency"]


def diabetes(folder: Path, **more):
    options = {
        "reference": folder / "train.csv",
        "arch": ARCH + "TableNet",
        "sections": {"data": {"target": "progression_above_median"}, "run": {"profile": "quick"}},
        "index": 3,
        **more,
    }
    return explain_one(folder / "model.pt", str(folder / "test.csv"), **options)


def digits(folder: Path, **more):
    options = {"reference": folder / "train.npz", "arch": ARCH + "DigitsNet", "index": 3, "methods": FEW, **more}
    return explain_one(folder / "model.pt", folder / "test.npz", **options)


@pytest.fixture(scope="module")
def page(diabetes_net):
    return diabetes(diabetes_net)


def test_an_answer_of_a_table_is_explained_by_each_method_with_its_tests(page):
    assert list(page.attributions) == ["saliency", "integrated_gradients", "shap.kernel", "lime"]
    check = page.result.checks[0]
    assert check.question == "What spoke for the answer to sample 3?"
    assert "The network says 0 with a probability of" in check.answer
    ids = {e.id for e in check.evidence}
    assert {"explanation.shap_kernel.adds_up", "explanation.lime.repeatable", "explanation.saliency.beats_random"} <= ids
    assert "explanation.saliency.repeatable" not in ids
    figures = {f.id: f for f in check.figures}
    assert figures["explanation.shap_kernel"].data["signed"]
    assert figures["explanation.saliency"].data["signed"] is False
    assert figures["explanation.agreement"].kind == "matrix"
    used = next(t for t in check.tables if t.id == "explanation.used")
    row = next(row for row in used.rows if row[0] == "shap.kernel")
    assert row[2] == pytest.approx(row[3], abs=1e-5)  # what the values add up to
    assert page.result.verdict == "unjudged"


def test_the_page_runs_nothing_and_loads_nothing(page, tmp_path):
    file = page.save(tmp_path / "deep" / "one.html")
    html = file.read_text(encoding="utf-8")
    assert CONTENT_SECURITY_POLICY in html.replace("&#39;", "'")
    assert not re.search(r"<script|javascript:|\son\w+=", html, flags=re.IGNORECASE)
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "What spoke for the answer" in html
    assert "bmi = " in html
    assert html == page.html()


def test_an_image_gets_heat_maps(digits_net):
    told = digits(digits_net)
    gallery = next(f for f in told.result.checks[0].figures if f.id == "explanation.heat_maps")
    assert [panel.split(" (")[0] for panel in gallery.data["panels"]] == ["input", *FEW]
    assert told.attributions["saliency"].values.shape == (1, 1, 8, 8)
    assert told.html().count('src="data:image') >= 3


def test_another_class_can_be_asked_about(digits_net):
    told = digits(digits_net, explain_class=7)
    assert told.attributions["saliency"].target.tolist() == [7]
    assert "What is explained is 7" in told.result.checks[0].answer


def test_a_sequence_and_a_regression(lstm, regressor):
    module, data = lstm
    told = explain_one(module, data, index=int(data.test.ids[0]), methods=FEW, sections={"run": {"profile": "quick"}})
    assert any(f.id == "explanation.heat_maps" for f in told.result.checks[0].figures)
    module, data = regressor
    told = explain_one(module, data, index=2, methods=FEW, sections={"model": {"task": "regression"}})
    assert "; the label is" in told.result.checks[0].answer
    assert told.attributions["saliency"].output == "values"
    with pytest.raises(UsageError, match="no classes"):
        explain_one(module, data, index=2, explain_class=1, sections={"model": {"task": "regression"}})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"index": 177}, "0 to 176, got 177"),
        ({"index": -1}, "0 to 176, got -1"),
        ({"explain_class": 2}, "0 to 1, got 2"),
        ({"explain_class": "sick"}, "got 'sick'"),
        ({"methods": ["gradcam"]}, "no method can explain this answer: gradcam: it is for images"),
        ({"methods": ["shapley"]}, "no explainer 'shapley'"),
    ],
)
def test_what_is_not_there_cannot_be_explained(diabetes_net, more, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        diabetes(diabetes_net, **more)


def test_a_page_cannot_be_written_over_a_folder(page, tmp_path):
    with pytest.raises(OutputError, match="got the folder"):
        page.save(tmp_path)


def test_the_sample_of_an_id_is_explained_and_not_the_one_at_that_place():
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    data = audit.Dataset(x, np.arange(10) % 2).sample(5, seed=1)
    model = audit.Model(torch.nn.Linear(4, 2))
    wanted = int(data.test.ids[-1])
    told = explain_one(model, data, index=wanted, methods=["integrated_gradients"])
    a = told.attributions["integrated_gradients"]
    logits = model.logits(model.to_input(x[wanted : wanted + 1]))
    start = model.logits(model.to_input(data.test.x).mean(dim=0, keepdim=True))
    assert a.change[0] == pytest.approx(float((logits - start)[0, a.target[0]].detach()), rel=1e-4)


@pytest.mark.slow
def test_the_command(diabetes_net, tmp_path):
    command = [
        sys.executable, "-m", "audit", "explain", str(diabetes_net / "model.pt"), "--data", str(diabetes_net / "test.csv"),
        "--arch", ARCH + "TableNet", "--target", "progression_above_median", "--method", "integrated_gradients",
        "--profile", "quick", "--out", str(tmp_path / "e.html"),
    ]  # fmt: skip
    done = subprocess.run([*command, "--index", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The network says 0" in done.stdout
    assert (tmp_path / "e.html").stat().st_size > 10_000
    done = subprocess.run([*command, "--index", "3000"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("audit: --index should be the row number of a sample, 0 to 176, got 3000")


def linear(width: int) -> tuple[torch.nn.Module, audit.Dataset]:
    x = np.random.default_rng(0).normal(size=(200, width)).astype(np.float32)
    weights = torch.linspace(2.0, -1.0, width)
    network = torch.nn.Linear(width, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.stack((-weights, weights)) / 2)
    y = (x @ weights.numpy() > 0).astype(np.int64)
    return network, audit.Dataset(x[:50], y[:50], reference=(x[50:], y[50:]))


@pytest.mark.parametrize(("width", "asked"), [(3, False), (4, False), (5, True)])
def test_an_explanation_of_few_columns_is_not_accused_of_being_chance(width: int, asked: bool):
    """Three columns have 6 rankings: even the best one cannot be faster than 95 % of them."""
    network, data = linear(width)
    check = explain_one(network, data, index=1, methods=["integrated_gradients"]).result.checks[0]
    assert any(e.id.endswith("beats_random") for e in check.evidence) == asked
    assert any("of so few inputs" in text for text in check.not_tested) != asked
    assert all(e.ok for e in check.evidence if width < 5)


class Overflowing(torch.nn.Module):
    """Finite as it is, and infinite with most orders of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.diag(torch.tensor([60.0, 1, 1, 1, 1, 1])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.exp(3 * self.first(x) * torch.tensor([1 / 60, 1, 1, 1, 1, 1])))


def test_a_network_that_overflows_with_shuffled_weights_is_explained_all_the_same():
    torch.manual_seed(0)
    _, data = linear(6)
    told = explain_one(Overflowing(), data, index=0, methods=["lime", "integrated_gradients"])
    assert set(told.attributions) == {"lime", "integrated_gradients"}


@pytest.mark.parametrize(
    ("probability", "said"), [(0.99998, "more than 99.9%"), (0.00002, "less than 0.1%"), (0.5, "50.0%"), (1.0, "100.0%")]
)
def test_rounding_makes_no_certainty(probability, said):
    assert _share(probability) == said
