"""The report in a real browser: nothing blocked, nothing fetched, the verdict in view, and no page wider than the screen."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.report import html

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the group dev")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


class Visit:
    """One page, opened, with everything that it said and asked for."""

    def __init__(self, browser: Any, file: Path, *, wide: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": wide, "height": 800}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri(), wait_until="load")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def file(result: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html.render(result), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_blocked_and_nothing_is_fetched(browser: Any, file: Path, scheme: str) -> None:
    with Visit(browser, file, scheme=scheme) as visit:
        assert visit.said == []
        assert [url for url in visit.asked if not url.startswith("data:")] == [file.as_uri()]


@pytest.mark.parametrize("verdict", ["pass", "fail", "incomplete", "unjudged"])
def test_head_is_in_view_without_scrolling(browser: Any, make_result: Any, verdict: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.render(make_result(verdict)), encoding="utf-8")
    with Visit(browser, file) as visit:
        for part in ("#verdict", ".sentence", ".worst", ".untested"):
            box = visit.page.locator(part).first.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["y"] >= 0
            assert box["x"] + box["width"] <= 1280
            assert box["y"] + box["height"] <= 800


@pytest.mark.parametrize("wide", [1280, 768, 420, 360])
def test_page_is_no_wider_than_the_screen(browser: Any, file: Path, wide: int) -> None:
    with Visit(browser, file, wide=wide) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= wide


def test_long_names_do_not_widen_the_page(browser: Any, make_result: Any, tmp_path: Path) -> None:
    result = make_result()
    model = result.model.model_copy(update={"source": "m" * 3000, "notes": ["n" * 3000]})
    checks = [check.model_copy(update={"answer": "a" * 3000, "question": "q" * 500}) for check in result.checks]
    file = tmp_path / "report.html"
    long = result.model_copy(update={"model": model, "checks": checks, "sentence": "s" * 400})
    file.write_text(html.render(long), encoding="utf-8")
    for wide in (1280, 420):
        with Visit(browser, file, wide=wide) as visit:
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= wide


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, file: Path, scheme: str) -> None:
    """WCAG 2.1 AA asks for 4.5 between text and its background, in the page and in its charts."""
    with Visit(browser, file, scheme=scheme) as visit:
        pairs = visit.page.evaluate(
            """() => {
                const solid = e => { for (; e; e = e.parentElement) {
                    const c = getComputedStyle(e).backgroundColor; if (!c.startsWith('rgba(0, 0, 0, 0')) return c } return '' };
                const seen = new Set();
                for (const e of document.querySelectorAll('body *')) {
                    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
                    if (!own || e.closest('style')) continue;
                    const s = getComputedStyle(e);
                    seen.add((e instanceof SVGElement ? s.fill : s.color) + '|' + solid(e));
                }
                return [...seen];
            }"""
        )
    ratios = {pair: contrast(*pair.split("|")) for pair in pairs}
    assert len(ratios) >= 5
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("wide", [1280, 360])
def test_pictures_load_and_seven_panels_fit(browser: Any, file: Path, wide: int) -> None:
    with Visit(browser, file, wide=wide) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        sizes = visit.page.evaluate("[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])")
        panels = visit.page.evaluate(
            """[...document.querySelectorAll('.gallery-many .panels')]
            .map(p => [p.clientWidth, p.scrollWidth, p.children.length])"""
        )
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= wide
    assert min(natural for natural, _ in sizes) > 0
    assert min(shown for _, shown in sizes) > 60  # of a picture smaller than that nothing can be seen
    assert [children for *_, children in panels] == [7, 7, 7]
    assert all(inner <= outer for outer, inner, _ in panels)


def test_rows_that_changed_stand_side_by_side(browser: Any, file: Path) -> None:
    with Visit(browser, file) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        tops = visit.page.evaluate("[...document.querySelectorAll('.changes > *')].map(e => e.getBoundingClientRect().top)")
    assert len(tops) == 2
    assert tops[0] == tops[1]


def test_details_open_in_print(browser: Any, file: Path) -> None:
    with Visit(browser, file) as visit:
        visit.page.emulate_media(media="print")
        heights = visit.page.evaluate("[...document.querySelectorAll('details > *:last-child')].map(e => e.offsetHeight)")
    assert len(heights) > 5
    assert min(heights) > 0


def test_print_fits_the_paper(browser: Any, file: Path) -> None:
    with Visit(browser, file, wide=690) as visit:  # A4 less 15 mm on both sides
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 690


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two CSS colors (WCAG 2.1, relative luminance)."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.fixture(scope="module")
def others(result: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the pages of a comparison and of a trend."""
    from audit.report import diff, trend

    folder = tmp_path_factory.mktemp("pages")
    for day in (1, 2, 3):
        model = result.model.model_copy(update={"sha256": str(day)})
        run = result.model_copy(
            update={"started_at": f"2030-05-0{day}", "model": model, "verdict": "incomplete", "comparison": None}
        )
        (folder / f"{day}.json").write_text(run.to_json(), encoding="utf-8")
    found = trend.read_folder(folder)
    assert len(found.runs) == 3, found.faults
    texts = {"diff": diff.render(result, result, result.comparison), "trend": trend.render(found)}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return [folder / f"{name}.html" for name in texts]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_of_comparisons_and_trends_fetch_nothing_and_fit_the_screen(
    browser: Any, others: list[Path], scheme: str
) -> None:
    for file in others:
        for wide in (1280, 768, 420, 360):
            with Visit(browser, file, wide=wide, scheme=scheme) as visit:
                assert visit.said == []
                assert visit.asked == [file.as_uri()]
                assert visit.page.evaluate("document.documentElement.scrollWidth") <= wide


def test_a_shade_shows_that_a_table_goes_on_beside_the_screen(browser: Any, file: Path) -> None:
    where = "document.querySelector('table.metrics').parentElement"
    for scheme in ("light", "dark"):
        with Visit(browser, file, wide=360, scheme=scheme) as visit:
            assert visit.page.evaluate(f"{where}.scrollWidth > {where}.clientWidth")
            frame = visit.page.locator("table.metrics").first.locator("..")
            assert bright(frame.screenshot(), -1) != bright(frame.screenshot(), 40)  # more is to the right
            visit.page.evaluate(f"{where}.scrollLeft = 10000")
            assert bright(frame.screenshot(), -1) == bright(frame.screenshot(), 40)  # the end is reached
            assert bright(frame.screenshot(), 0) != bright(frame.screenshot(), 40)


def bright(picture: bytes, column: int) -> int:
    """Return the commonest brightness in one column of a screenshot: that of its background."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(picture)).convert("L")
    x = column if column >= 0 else image.width + column
    values = [image.getpixel((x, y)) for y in range(image.height)]
    return max(set(values), key=values.count)
