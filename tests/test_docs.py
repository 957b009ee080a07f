"""What is written down is what there is: metrics, options, files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import audit
from audit import cli, demo_nets
from audit.checks.base import registry
from audit.listing import metrics_page
from audit.plan import is_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()]
QUICK = ["robustness.steps=2", "robustness.restarts=1", "robustness.noise_draws=2", "robustness.queries=20"]


def test_the_page_of_metrics_is_what_the_checks_say():
    page = ROOT / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == metrics_page() + "\n", "run `make docs`"


def test_each_metric_is_documented_once_and_in_full():
    docs = [doc for check in registry().values() for doc in check.metrics]
    assert len({doc.id for doc in docs}) == len(docs)
    for doc in docs:
        assert re.fullmatch(r"[a-z0-9_]+(\.([a-z0-9_]+|<[a-z_]+>))+", doc.id)
        assert all((doc.definition, doc.unit, doc.range, doc.interval, doc.bias, doc.source)), doc.id
        assert doc.kind in ("estimate", "upper", "lower")
        assert doc.direction in ("higher", "lower")


@pytest.fixture(scope="module")
def results(digits_net, diabetes_net) -> list[audit.Result]:
    shared = {"settings": QUICK, "samples": 80}
    arch = f"{demo_nets.__file__}:"
    table = {"target": "progression_above_median", "sensitive": ["sex"]}
    regression = audit.run(demo_nets.TableNet(classes=1), "sklearn:diabetes", task="regression", **shared)
    digits = {"arch": arch + "DigitsNet", "checks": ["robustness"], "samples": 10}
    evaluated = ["robustness.evaluation=autoattack"]
    # Options that are off by default: two threat models that are no norm, a smoothed network, one change for all.
    evaluated += ["robustness.spatial=true", "robustness.smoothing={n0=10, n=20}"]
    evaluated += ["robustness.universal={steps=4}", "robustness.patch={steps=4}"]
    with np.load(digits_net / "test.npz") as stored:
        x, y = stored["x"][:100].astype(np.float32), stored["y"][:100]
    labels = np.stack((y % 2, y > 4), axis=1).astype(np.int64)
    several = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].size, 2))
    return [
        audit.run(digits_net / "model.pt", digits_net / "test.npz", settings=evaluated, **digits),
        audit.run(several, {"x": x, "y": labels}, task="multilabel", output="multilabel_logits", checks=["performance"]),
        audit.run(
            digits_net / "model.pt",
            digits_net / "test.npz",
            arch=arch + "DigitsNet",
            reference=digits_net / "train.npz",
            norm=["linf", "l2"],
            **shared,
        ),
        audit.run(diabetes_net / "model.pt", diabetes_net / "test.csv", arch=arch + "TableNet", **table, **shared),
        regression,
    ]


@pytest.mark.slow
def test_every_metric_of_a_real_result_is_documented_as_it_is(results):
    docs = {doc.id: doc for check in registry().values() for doc in check.metrics}
    seen = set()
    for result in results:
        assert result.metrics()
        for metric in result.metrics().values():
            fitting = [doc for doc in docs.values() if is_of(metric.id, doc.id)]
            assert len(fitting) == 1, f"{metric.id} is documented by {[doc.id for doc in fitting]}"
            doc = fitting[0]
            seen.add(doc.id)
            assert (metric.kind, metric.direction) == (doc.kind, doc.direction), metric.id
            assert doc.unit == "target units" or metric.unit == doc.unit, metric.id
            if doc.range == "0 to 1":
                assert all(v is None or 0 <= v <= 1 for v in (metric.value, metric.low, metric.high)), metric.id
    assert seen == set(docs), "a metric that is documented and never measured"


@pytest.mark.slow
def test_each_metric_says_what_its_check_would_be_judged_by(results):
    for result in results:
        for check in result.checks:
            for part in (*check.metrics, *check.evidence):
                assert part.id == part.id.lower()
                assert part.detail is not None


# --- the command line in the pages ------------------------------------------------------------------------------------


def commands() -> dict[str, set[str]]:
    tree = typer.main.get_command(cli.app).commands
    return {name: {option for p in command.params for option in p.opts} | {"--help"} for name, command in tree.items()}


def calls(text: str) -> list[str]:
    """Return each call of ``audit`` that a page shows in a code block or in backticks, its lines joined."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    starts = (re.match(r"(?:\$ )?(?:\S*/)?(audit [a-z-].*)", part.strip()) for part in (*lines, *inline))
    return [match[1].partition(" #")[0] for match in starts if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_that_a_page_shows_exists(page):
    known = commands()
    for call in calls(page.read_text(encoding="utf-8")):
        command, *words = call.split()[1:]
        if command.startswith("--"):
            assert command in ("--help", "--version"), call
            continue
        assert command in known, f"{page.name}: {call}"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", " ".join(words)):
            assert option in known[command], f"{page.name}: {call}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    known = set().union(*commands().values()) | {"--version"}
    named = [re.match(r"--[a-z][a-z0-9-]*", code) for code in re.findall(r"`([^`\n]+)`", text)]
    for match in named:
        assert match is None or match[0] in known, f"{page.name} names {match[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_page_of_calls_is_read(tmp_path):
    """The reader of the pages finds calls in blocks and in backticks, over several lines, and not in prose."""
    text = "An audit run is fine.\n```bash\naudit run m.pt \\\n  --data d.npz  # why --not\n```\nThen `audit list metrics` it."
    assert [call.split() for call in calls(text)] == [
        ["audit", "run", "m.pt", "--data", "d.npz"],
        ["audit", "list", "metrics"],
    ]


def test_every_module_says_what_it_is_for_in_its_first_line():
    for folder in ("audit", "tests", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            assert not first or first.startswith(('"""', 'r"""', "#!")), path


@pytest.mark.slow
def test_the_parts_work_alone_as_the_readme_shows_them(digits_net):
    """The second block of Python in the README, run as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    model = audit.Model.load(digits_net / "model.pt", arch=f"{demo_nets.__file__}:DigitsNet", bounds=(0, 1))
    data = audit.Dataset.load(digits_net / "test.npz", reference=digits_net / "train.npz")
    x_train, x, y = (torch.from_numpy(part) for part in (data.reference.x, data.test.x[:20], data.test.y[:20]))
    names = {"model": model, "data": data, "x": x, "y": y, "x_train": x_train.numpy()}
    exec(compile(blocks[1], "README.md", "exec"), names)  # noqa: S102  (the page that this project ships)
    assert names["attacked"].x_adv.shape == names["noisy"].shape == x.shape
    assert names["told"].values.shape == x[:4].shape
    assert len(names["detector"].score_samples(x.numpy())) == 20
    assert names["history"].epochs
