"""The HTML report: what it must say for each verdict and status, that it stands alone, and that it never breaks."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from audit.report import html, view
from audit.result import CheckResult, Evidence, Figure, Finding, Judgement, Metric, Result, Table

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """A parsed page: its elements with attributes, its text, and what was left open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(result: Result) -> Page:
    return Page(html.render(result))


def test_same_result_gives_same_bytes(result: Result) -> None:
    first = html.render(result)
    assert html.render(result) == first
    assert html.render(Result.from_json(result.to_json())) == first


@pytest.mark.parametrize("verdict", ["pass", "fail", "incomplete", "unjudged"])
def test_verdict_and_sentence_stand_at_the_head(make_result: Any, verdict: str) -> None:
    result = make_result(verdict)
    text = Page(html.render(result)).text
    head = text[: text.index("What went in")]
    assert f"Verdict: {verdict.capitalize()}" in head
    assert view.sentence(result) in head


def test_unjudged_is_no_good_news(make_result: Any) -> None:
    text = Page(html.render(make_result("unjudged"))).text
    assert text.count("No limits were set: figures, and no good news.") == 2  # the head, and where the limits would be
    said = Page(html.render(make_result("unjudged", sentence="Five checks ran."))).text
    assert "No limits were set: figures, and no good news. Five checks ran." in said


def test_three_worst_findings_come_first_and_in_order(page: Page) -> None:
    head = page.text[: page.text.index("What was not tested")]
    places = [head.index(t) for t in ("Gradients may be masked", "Class 4 breaks first", "Class 8 is the weakest")]
    assert places == sorted(places)
    assert "Fog costs" not in head


def test_untested_names_checks_that_did_not_run(page: Page) -> None:
    head = page.text[page.text.index("What was not tested") : page.text.index("What went in")]
    assert "not applicable: It needs training data: give them with --reference." in head
    assert "ended in an error: RuntimeError" in head
    assert "not complete: The time budget" in head


def test_everything_of_the_result_is_shown(page: Page, result: Result) -> None:
    for check in result.checks:
        for said in (check.question, check.answer, check.reason or "", *check.not_tested):
            assert said.replace(" %", "\u00a0%") in page.text.replace(" %", "\u00a0%")
        for metric in check.metrics:
            assert metric.id in page.text
            assert view.KINDS[metric.kind, metric.direction] in page.text
        for evidence in check.evidence:
            assert evidence.id in page.text
        for figure in check.figures:
            assert figure.title in page.text
    for limit in result.policy:
        assert limit.metric in page.text
        assert limit.reason in page.text
    assert "7,431" in page.text  # the sample size to plan for
    assert "Adding samples until a limit passes is not a test." in page.text
    for note in (*result.model.notes, *result.data.notes):
        assert note in page.text
    assert result.spec.command in page.text
    assert result.model.sha256 in page.text


@pytest.mark.slow
def test_no_word_of_praise(make_result: Any) -> None:
    text = Page(html.render(make_result("pass"))).text.lower()
    assert not re.search(r"\b(congratulations|good job|well done|great|excellent|all clear|safe)\b", text)


def test_scorecard_prefers_headline_metrics_else_the_first_two(result: Result) -> None:
    groups = {group.name: [score.name for score in group.scores] for group in view.scorecard(result)}
    assert groups["performance"] == ["accuracy"]
    assert groups["robustness"] == ["linf.accuracy", "linf.certified_accuracy", "linf.median_distance"]
    # the limit brings in the metric that is no headline
    assert groups["fairness"] == ["group.demographic_parity_difference", "group.worst_group_accuracy"]
    assert groups["corruption"] == ["mean_accuracy"]
    assert groups["anomaly"] == ["autoencoder.auroc"]  # not measured, but there is a limit on it
    assert groups["explanation"] == [""]


def test_what_several_checks_leave_open_stands_once_with_the_first() -> None:
    one = empty_check(not_tested=["Other data.", "Only of a", "Only of a"])
    two = empty_check(id="b", not_tested=["other  data", "Only of b"])
    result = tiny([one, two])
    assert [(gap.check, gap.detail) for gap in view.gaps(result)] == [
        ("a", "Other data."), ("a", "Only of a"), ("b", "Only of b"),
    ]  # fmt: skip
    text = Page(html.render(result)).text
    section = text[text.index("Not tested here") :]
    assert section[: section.index("Cost and")].count("Only of a") == 1
    assert "other data" in section  # a check's own section still says all that it left open


def test_checks_that_did_not_run_for_one_reason_are_all_named() -> None:
    skipped = [empty_check(id=name, status="not_applicable", reason="no reference part") for name in ("a", "b")]
    assert [gap.check for gap in view.gaps(tiny(skipped))] == ["a", "b"]


def test_first_charts_and_examples_stand_open_and_the_rest_behind_a_door(make_figures: Any) -> None:
    drawn = make_figures()
    order = ["matrix", "bars", "curve", "gallery", "histogram", "feature_change"]
    result = tiny([empty_check(figures=[drawn[kind] for kind in order])])
    (shown,) = html._checks(result, html.MEASURES[0])
    assert [s.figure.kind for s in shown.figures] == ["matrix", "bars", "gallery"]
    assert [s.figure.kind for s in shown.more_figures] == ["curve", "histogram", "feature_change"]
    text = Page(html.render(result)).text
    assert "3 more charts and examples" in text
    assert text.index(drawn["gallery"].title) < text.index("3 more charts") < text.index(drawn["histogram"].title)


def test_headlines_and_limited_metrics_stand_open_in_a_long_list() -> None:
    metrics = [metric(f"a.m{i}", "") for i in range(40)]
    metrics[30] = metrics[30].model_copy(update={"params": {"headline": True}})
    result = tiny([empty_check(metrics=metrics)], policy=[Judgement(metric="a.m35", min=0.1, outcome="pass")])
    (shown,) = html._checks(result, html.MEASURES[0])
    assert [m.id for m in shown.metrics] == [*(f"a.m{i}" for i in range(6)), "a.m30", "a.m35"]
    assert len(shown.more_metrics) == 32
    text = Page(html.render(result)).text
    assert all(m.id in text for m in metrics)


@pytest.mark.parametrize(("rows", "folded"), [(20, 0), (21, 1)])
def test_a_long_table_stands_behind_a_door(rows: int, folded: int) -> None:
    table = Table(id="a.t", title="All severities", columns=["name", "value"], rows=[[f"row {i}", i] for i in range(rows)])
    page = Page(html.render(tiny([empty_check(tables=[table])])))
    assert len(page.all("details")) == folded
    assert page.text.count(f"All severities: {rows} rows") == folded
    assert f"row {rows - 1}" in page.text


def test_evidence_that_does_not_hold_is_never_behind_a_door() -> None:
    evidence = [Evidence(id=f"a.e{i}", ok=i < 9, detail="d") for i in range(10)]
    (shown,) = html._checks(tiny([empty_check(evidence=evidence)]), html.MEASURES[0])
    assert [e.id for e in shown.evidence] == ["a.e9", "a.e0", "a.e1", "a.e2"]
    assert (
        "6 more tests of the measurement, all of which hold" in Page(html.render(tiny([empty_check(evidence=evidence)]))).text
    )
    failed = [Evidence(id=f"a.e{i}", ok=False, detail="d") for i in range(9)]
    assert len(html._checks(tiny([empty_check(evidence=failed)]), html.MEASURES[0])[0].evidence) == 9


def test_limit_on_what_no_check_measured_stands_in_the_scorecard() -> None:
    result = tiny([empty_check()], policy=[Judgement(metric="b.c", min=0.5, outcome="incomplete")])
    assert [group.name for group in view.scorecard(result)] == ["a", "no check"]
    assert "no check measured it" in Page(html.render(result)).text


def test_margin_is_negative_beyond_the_limit() -> None:
    below = Judgement(metric="a.b", min=0.5, bound=0.4996, outcome="incomplete")
    above = Judgement(metric="a.b", max=0.5, bound=0.4, outcome="pass")
    result = tiny([], policy=[below, above])
    assert [limit.margin for limit in view.limits(result)] == ["−0.0004", "+0.1"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", ""),
        ("audit run m.pt --data d.npz", "audit run m.pt --data d.npz --checks a --out audit-out-a"),
        ("audit run m.pt --checks a,b --seed 1 --skip=c", "audit run m.pt --seed 1 --checks a --out audit-out-a"),
        ("audit run m.pt --out=there/ --checks a,b", "audit run m.pt --checks a --out there-a"),
        ("audit run m.pt --out there", "audit run m.pt --checks a --out there-a"),
        ("audit run 'my model.pt' --skip b", "audit run 'my model.pt' --checks a --out audit-out-a"),
        ("audit run 'broken", "audit run 'broken"),
    ],
)
def test_command_of_one_check(command: str, expected: str) -> None:
    """It writes to a folder of its own: the whole report must not be replaced by one of a single check."""
    result = tiny([])
    spec = result.spec.model_copy(update={"command": command})
    assert view.command(result.model_copy(update={"spec": spec}), "a") == expected


def test_stands_alone(result: Result, page: Page) -> None:
    text = html.render(result)
    assert "<script" not in text.lower()
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for _, attributes in page.elements:
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not any(name.startswith("on") for name in attributes)


def test_readable_by_a_screen_reader(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("main", "header", "nav", "footer"):
        assert page.all(landmark)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") for a in page.all("th"))
    assert all(a.get("alt") for a in page.all("img"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, times in ids.items() if times > 1] == []
    targets = {(a.get("href") or "").removeprefix("#") for _, a in page.elements if a.get("href")}
    named = {name for _, a in page.elements for key in ("aria-labelledby",) if key in a for name in (a[key] or "").split()}
    assert (targets | named) - set(ids) == set()


def test_all_elements_are_closed(page: Page) -> None:
    assert page.open == []


def test_two_checks_of_one_id_have_their_own_anchors() -> None:
    page = Page(html.render(tiny([empty_check(), empty_check()])))
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert max(ids.values()) == 1


def test_nothing_at_all_is_still_a_report() -> None:
    text = Page(html.render(tiny([]))).text
    assert "No check ran." in text
    assert "No check recorded a finding. What was not tested was not found, either." in text


KINDS = ["bars", "forest", "matrix", "reliability", "curve", "scatter", "gallery", "feature_change"]


@pytest.mark.parametrize("kind", [*KINDS, "histogram", "paired", "small_multiples"])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"labels": "text", "values": 3, "rows": None, "series": {"a": 1}, "x": [[]], "items": [1], "panels": [None]},
        {"labels": ["a"], "values": [1, 2]},
        {"labels": [], "values": [], "rows": [], "columns": [], "series": [], "x": [], "y": [], "items": [], "panels": []},
        {"series": [{"x": [], "y": []}], "rows": ["a"], "columns": [], "values": [[]], "x": [None], "y": [None], "n": []},
        {"labels": ["a"], "values": [1e300], "x": [1e300], "y": [-1e300], "series": [{"x": [1e300], "y": [1e-300]}]},
        {"labels": ["a", "b"], "values": [None, None], "low": [None, 1.0], "high": [2.0, None], "reference": None},
        {"edges": [0, 1e-300], "series": [{"share": [1e30]}], "threshold": -1e30, "before": {}, "after": {"values": []}},
        {"edges": [1, 0], "panels": [{"series": [{"x": [1], "y": [None]}]}], "ymin": 3, "ymax": 1},
        {"panels": ["p"], "items": [{"id": 1, "images": [{"shape": [2, 3, 3], "pixels": "!!"}]}]},
        {"panels": ["p"], "items": [{"id": 1, "images": [{"shape": [1, 10**9, 10**9], "pixels": "AAAA"}]}]},
    ],
)
def test_data_that_do_not_fit_their_kind_are_shown_as_a_table(kind: str, data: dict[str, Any]) -> None:
    figure = Figure(id="a.b", kind=kind, title="A figure that came out wrong", data=data)
    text = Page(html.render(tiny([empty_check(figures=[figure])]))).text
    assert "A figure that came out wrong" in text
    assert "Data of this chart" in text


def test_each_figure_has_its_data_beside_it(result: Result, page: Page) -> None:
    figures = sum(len(check.figures) for check in result.checks)
    assert page.text.count("Data of this chart") == figures == len(page.all("figure"))
    assert "3 → 6, broken by APGD-CE" in page.text  # the captions are the gallery's data


@pytest.mark.slow
def test_large_result_stays_small_and_says_so(make_figures: Any) -> None:
    import base64

    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, 3 * 224 * 224, dtype=np.uint8).tobytes()
    image = {"shape": [3, 224, 224], "pixels": base64.b64encode(noise).decode()}
    items = [{"id": i, "caption": "c" * 500, "images": [image] * 3} for i in range(12)]
    big = [
        Figure(id="a.gallery", kind="gallery", title="Pictures", data={"panels": ["a", "b", "c"], "items": items}),
        *[make_figures()["scatter"].model_copy(update={"data": scatter(2000)}) for _ in range(4)],
    ]
    check = empty_check(
        figures=big,
        tables=[Table(id="t", title="Many rows", columns=["a", "b"], rows=[["x" * 1000, 1.5]] * 5000)],
        findings=[Finding(severity="low", title="f" * 5000, detail="d" * 50_000, samples=list(range(10_000)))] * 300,
        metrics=[metric(f"a.m{i}", "m" * 3000) for i in range(900)],
        not_tested=["n" * 9000] * 500,
    )
    page = html.render(tiny([check, check, check]))
    assert len(page.encode()) <= html.MAX_BYTES
    assert "see result.json" in page


@pytest.mark.slow
def test_pictures_of_a_gallery_are_shrunk_to_the_room_there_is() -> None:
    import base64

    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, 3 * 224 * 224, dtype=np.uint8).tobytes()
    image = {"shape": [3, 224, 224], "pixels": base64.b64encode(noise).decode()}
    data = {"panels": ["clean"], "items": [{"id": i, "images": [image]} for i in range(40)]}
    page = Page(html.render(tiny([empty_check(figures=[Figure(id="a.g", kind="gallery", title="g", data=data)])])))
    assert sum(len(a["src"] or "") for a in page.all("img")) <= 900_000
    assert all("of its resolution" in (a["alt"] or "") for a in page.all("img"))
    assert page.all("img")[0]["width"] == "224"


def test_small_pictures_leave_their_room_to_large_ones() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    items = [{"id": i, "images": [encoded(rng.integers(0, 256, (3, 8, 8)))]} for i in range(50)]
    items.append({"id": 99, "images": [encoded(rng.integers(0, 256, (3, 300, 300)))]})
    data = {"panels": ["clean"], "items": items}
    page = Page(html.render(tiny([empty_check(figures=[Figure(id="a.g", kind="gallery", title="g", data=data)])])))
    assert not any("of its resolution" in (a["alt"] or "") for a in page.all("img"))


def test_every_picture_is_whole(make_figures: Any) -> None:
    """A picture's address is no text: cut to the length of a text, it would show nothing."""
    import base64
    import io

    image = pytest.importorskip("PIL.Image")
    page = Page(html.render(tiny([empty_check(figures=[make_figures()["colour_gallery"]])])))
    sources = [(a["src"] or "").removeprefix("data:image/png;base64,") for a in page.all("img")]
    assert len(sources) == 21
    assert max(map(len, sources)) > html.MEASURES[0].characters
    for source in sources:
        picture = image.open(io.BytesIO(base64.b64decode(source)))
        picture.load()
        assert picture.size == (32, 32)


def test_only_small_pictures_keep_their_pixels(make_figures: Any) -> None:
    import numpy as np

    data = {"panels": ["a"], "items": [{"id": i, "images": [encoded(np.zeros((1, s, s)))]} for i, s in enumerate((28, 200))]}
    page = Page(html.render(tiny([empty_check(figures=[Figure(id="a.g", kind="gallery", title="g", data=data)])])))
    assert [a.get("class") for a in page.all("img")] == ["tiny", None]


@pytest.mark.slow
def test_normal_report_takes_less_than_three_seconds(result: Result) -> None:
    html.render(result)
    start = time.perf_counter()
    html.render(result)
    assert time.perf_counter() - start < 3


@pytest.mark.slow
def test_size_of_a_normal_report(result: Result) -> None:
    assert len(html.render(result).encode()) < 500_000


@pytest.mark.slow
def test_reports_import_no_heavy_library() -> None:
    code = (
        "import sys, audit.report.html, audit.report.markdown, audit.report.charts, audit.report.text\n"
        "print([m for m in ('torch', 'art', 'sklearn', 'fairlearn', 'matplotlib.pyplot') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_nobodys_matplotlibrc_changes_a_report(result: Result) -> None:
    import matplotlib as mpl

    expected = html.render(result)
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "axes.spines.bottom": False, "text.usetex": True}):
        assert html.render(result) == expected


def encoded(pixels: Any) -> dict[str, Any]:
    import base64

    return {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.astype("uint8").tobytes()).decode()}


def scatter(points: int) -> dict[str, Any]:
    return {"x": [float(i) for i in range(points)], "y": [i * 1.1 for i in range(points)], "diagonal": True}


def metric(metric_id: str, detail: str) -> Metric:
    return Metric(id=metric_id, value=0.5, low=0.4, high=0.6, confidence=0.95, n=10, method="m", detail=detail)


def empty_check(**parts: Any) -> CheckResult:
    return CheckResult(**{"id": "a", "status": "measured", "question": "Why?", "answer": "Because.", **parts})


def tiny(checks: list[CheckResult], **parts: Any) -> Result:
    return Result(
        **{
            "verdict": "unjudged",
            "exit_code": 0,
            "started_at": "2030-01-01T00:00:00Z",
            "seconds": 1.0,
            "spec": {"audit_version": "0"},
            "model": {
                "source": "m", "sha256": "0", "format": "f", "task": "t", "classes": None, "input_shape": [1], "parameters": 1,
            },
            "data": {"source": "d", "sha256": "0", "n": 1},
            "checks": checks,
            **parts,
        }
    )  # fmt: skip


def test_evidence_stands_in_plain_words_with_its_id_and_figure(page: Page) -> None:
    assert "does not holdAn attack without gradients finds no more 12 robustness.gradient_free" in page.text
    assert "holdsThe loss rises along the attack 0.998 robustness.loss_rises" in page.text


def test_cost_is_given_for_each_sample_and_the_dearest_part_first(result: Result, page: Page) -> None:
    assert "812,000 forward and 402,000 backward passes of one sample, 61.2 s: 406 forwards and 201 backwards" in page.text
    first, second = view.spent(result, result["robustness"])
    assert (first.words, first.id) == ("accuracy under attack (L∞)", "robustness.linf.accuracy")
    assert (first.forwards_each, first.backwards_each, second.forwards_each) == ("400", "201", "6")
    empty = result.model_copy(update={"data": result.data.model_copy(update={"n": 0})})
    assert view.spent(empty, result["robustness"])[0].forwards_each == "–"
    assert "for each of" not in Page(html.render(empty)).text


def test_notes_of_a_chart_stand_beside_what_the_page_leaves_out() -> None:
    labels = [f"class {i}" for i in range(70)]
    data: dict[str, Any] = {"labels": labels, "values": [0.5] * 70, "note": "All at once."}
    figure = Figure(id="a.b", kind="forest", title="t", data=data)
    shown = html.shown_figure(figure, "f")
    assert shown.note == "All at once. The first 60 of 70 are drawn: the table holds more."
