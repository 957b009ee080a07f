"""Every string of a result is hostile: whatever it holds, it comes out as text in HTML, SVG, markdown and terminals."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest

from audit.plain import plain
from audit.report import html, markdown
from audit.report.text import clip
from audit.result import Result

INJECTIONS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "</svg><script>alert(1)</script>",
    "</text><a href='javascript:alert(1)'>x</a>",
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "</details></figure></main><h1>Pass</h1>",
    "]]><script>alert(1)</script>",
    "<![CDATA[<b>",
    "--><script>alert(1)</script><!--",
    "<!--",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;img src=x&#62;",
    "{{7*7}}",
    "{% include '/etc/passwd' %}",
    "{# gone #}",
    "$\\frac{}{$",
    "$$x^2$$",
    "\\href{javascript:alert(1)}{x}",
    "[x](javascript:alert(1))",
    "![x](https://example.invalid/x.png)",
    "<https://example.invalid>",
    "https://example.invalid/?a=1",
    "www.example.invalid",
    "| a | b",
    "a\n| b | c |\n|---|---|",
    "a\\|b\\\\|c",
    "\n\n# A heading\n\n- a list",
    "```\ncode\n```",
    "`code` **bold** _it_ ~~no~~",
    "1. one",
    "- one",
    "===",
    "@everyone #1 :+1:",
    "\x1b[31mred\x1b[0m \x1b]8;;http://example.invalid\x07link\x1b]8;;\x07",
    "pass\rfail",
    "\u202egnp.exe\u202c",
    "\u2066left\u2069 \u200fright\u200e \u061c",
    "zero\u200bwidth\ufeff\u2060\u00ad",
    "line\u2028paragraph\u2029nul\x00bell\x07del\x7f\x9b31m",
    "\ue000private \ufdd0non\uffff \U000e0041tag",
    "Z̸͎̈á̵̲l̴͇̑g̵̝̈́o 群组 مجموعة 👩‍👩‍👧",
    "x" * 5000,
    "",
    " ",
]
# Fields whose words or patterns the records themselves fix, and those that hold bytes.
NOT_FREE = {
    "schema_version",
    "verdict",
    "status",
    "kind",
    "direction",
    "severity",
    "step",
    "outcome",
    "metric",
    "ids_sha256",
    "pixels",
    "sampled",
}


@pytest.fixture(scope="module")
def benign(result: Result) -> Result:
    return injected(result, [f"benign {i}" for i in range(40)], 0)


@pytest.fixture(scope="module")
def benign_page(benign: Result) -> Skeleton:
    return Skeleton(html.render(benign))


@pytest.mark.parametrize("offset", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(9, len(INJECTIONS), 9))])
def test_html_and_svg_hold_them_as_text_alone(result: Result, benign_page: Skeleton, offset: int) -> None:
    page, model = html.render(injected(result, INJECTIONS, offset)), benign_page
    found = Skeleton(page)
    assert found.outside_charts == model.outside_charts
    assert found.attributes <= model.attributes
    for svg in re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL):
        root = ET.fromstring(svg)  # noqa: S314 - our own output
        assert {element.tag for element in root.iter()} <= {
            "svg",
            "g",
            "defs",
            "path",
            "use",
            "text",
            "clipPath",
            "rect",
            "tspan",
        }
        names = {name for element in root.iter() for name in element.attrib}
        assert not {name for name in names if name.startswith("on")}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", page)


@pytest.mark.parametrize("injection", [text for text in INJECTIONS if len(text.strip()) > 1], ids=repr)
def test_html_shows_what_was_there(make_result: Any, injection: str) -> None:
    result = make_result(checks=[], policy=[])
    model = result.model.model_copy(update={"notes": [injection], "source": injection})
    text = Skeleton(html.render(result.model_copy(update={"model": model}))).text
    assert clip(injection, 60) in text
    assert " ".join(clip(injection, 4000, newlines=True).split()) in " ".join(text.split())


@pytest.mark.parametrize(
    "kind",
    [
        "bars",
        "curve",
        "bracket",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("histogram", "signed", "ice", "paired", "small_multiples", "steps")
        ),
    ],
)
@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda text: repr(text)[:40])
def test_chart_labels_are_literal(make_figures: Any, kind: str, injection: str) -> None:
    from audit.report import charts
    from audit.report.figures import read

    figure = make_figures()[kind]
    figure = figure.model_copy(update={"data": replace(figure.data, iter(lambda: injection, None), "")})
    shape = read(figure)
    assert shape is not None
    svg = charts.draw(figure.kind, injection, shape, "f")
    assert svg is not None
    root = ET.fromstring(svg)  # noqa: S314 - our own output
    words = [element.text or "" for element in root.iter("text")]
    assert all(len(word) <= 80 for word in words)
    if len(injection.strip()) > 1:
        assert any(word.startswith(plain(injection)[:12]) for word in words)


@pytest.mark.parametrize("offset", range(0, len(INJECTIONS), 5))
def test_markdown_holds_them_as_text_alone(result: Result, benign: Result, offset: int) -> None:
    page = markdown.render(injected(result, INJECTIONS, offset))
    assert structure(page) == structure(markdown.render(benign))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", page)


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda text: repr(text)[:40])
def test_terminal_text_moves_nothing(injection: str) -> None:
    shown = plain(injection)
    assert all(c in "\u200c\u200d" or unicodedata.category(c)[0] not in "CZ" or c in " \u00a0" for c in shown)
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eabc", "\\u202eabc"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("naïve 群组 👩‍👧", "naïve 群组 👩‍👧"),
    ],
)
def test_plain_makes_the_invisible_visible(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_lone_surrogates_do_not_stop_a_report(make_result: Any) -> None:
    result = make_result()
    broken = result.model_copy(update={"model": result.model.model_copy(update={"source": "\ud800.pt"})})
    assert "\\ud800.pt" in html.render(broken).encode().decode()
    assert "&#92;ud800.pt" in markdown.render(broken).encode().decode()


class Skeleton(HTMLParser):
    """The elements of a page without its text: those outside charts in order, and all names of attributes."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.outside_charts: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: set[tuple[str, str]] = set()
        self.words: list[str] = []
        self._chart = 0
        self.feed(page)
        self.close()
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = tuple(name for name, _ in attrs)
        self.attributes |= {(tag, name) for name in names}
        if tag == "svg" and dict(attrs).get("class") == "chart":
            self._chart += 1
        breaks = tag == "wbr" or dict(attrs) == {"class": "nowrap"}  # where a long name may break, or an option may not
        if not self._chart and not breaks:
            self.outside_charts.append((tag, names))

    def handle_endtag(self, tag: str) -> None:
        if tag == "svg" and self._chart:
            self._chart -= 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def injected(result: Result, strings: list[str], offset: int) -> Result:
    """Return the result with every free string replaced by the given ones in turn."""
    filled = [text for text in strings if text.strip()]  # an empty reason or detail has no place in the page
    turn = (filled[(offset + i) % len(filled)] for i in range(10**6))
    data = replace(result.model_dump(mode="json"), turn, "")
    for limit in data["policy"]:
        limit["metric"] = next(turn)
    return Result.model_validate(data)


def replace(value: Any, turn: Any, key: str) -> Any:
    if isinstance(value, dict):
        held = () if "data" in value and "title" in value else ("id",)  # a figure's id is free, other ids have a pattern
        return {name: entry if name in held else replace(entry, turn, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [replace(entry, turn, key) for entry in value]
    return next(turn) if isinstance(value, str) and key not in NOT_FREE else value


def structure(page: str) -> list[str]:
    """Return the kinds of all tokens of a markdown page but text, as GitHub would read it."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    kinds: list[str] = []
    for token in parser.parse(page):
        kinds.append(token.type)
        kinds += [child.type for child in token.children or [] if child.type not in ("text", "text_special", "code_inline")]
    return kinds
