"""Every string of a result is hostile: eighty names and more come out as text, and add nothing that a clean twin lacks.

Each format is read back by a parser, and what is found there (elements, attributes, addresses, keys, commands, lines) is held
against the same result with harmless names. `test_the_payloads_are_live` shows that the comparison can fail.
"""

from __future__ import annotations

import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml

from audit import cli
from audit.plain import plain
from audit.report import charts, github, html, junit, markdown, sarif
from audit.report.figures import read
from audit.result import Change, Comparison, Result
from tests import injections
from tests.injections import ALL, commands
from tests.sarif_schema import problems

CLEAN = "a benign name"
# Words that the records themselves fix, and what holds bytes.
FIXED = {"schema_version", "verdict", "status", "kind", "direction", "severity", "outcome", "ids_sha256", "pixels", "sampled"}
IDS = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
FAST = ("[x](javascript:alert(1)) {0} {{1}}", "name ##[add-mask]a")
# every name in `make test`, every eighth in the inner loop
SOME_FAST = [
    pytest.param(name, id=repr(name)[:40], marks=() if i % 8 == 0 or name in FAST else pytest.mark.slow)
    for i, name in enumerate(ALL)
]
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "style", "srcdoc", "data", "xlink:href", "content")


@pytest.fixture(scope="module")
def whole(make_result: Any) -> Result:
    """Return a result with every kind of record but pictures, which `test_chart_labels_stay_text` draws."""
    result: Result = make_result()
    change = Change(
        metric="performance.accuracy", direction="higher", outcome="not_comparable", reason="other data", method="paired"
    )
    compared = Comparison(
        verdict="worse", sentence="It is worse.", source="old", sha256="0" * 64, started_at="then", model_sha256="1" * 64,
        changes=[change], notes=["another radius"],
    )  # fmt: skip
    checks = [check.model_copy(update={"figures": []}) for check in result.checks]
    model = result.model.model_copy(update={"class_names": ["a", "b"]})
    data = result.data.model_copy(update={"columns": ["age"], "sensitive": ["sex"]})
    return result.model_copy(update={"checks": checks, "model": model, "data": data, "comparison": compared})


def named(result: Result, name: str) -> Result:
    """Return the result with `name` in the place of every free string; limits are on a metric of that name, too."""
    data = _replaced(result.model_dump(mode="json"), name, "")
    data["policy"][-1]["metric"] = name
    return Result.model_validate(data)


def _replaced(value: Any, name: str, key: str) -> Any:
    if isinstance(value, dict):
        return {k: entry if k in ("id", "metric") else _replaced(entry, name, k) for k, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, name, key) for entry in value]
    return name if isinstance(value, str) and key not in FIXED else value


class Skeleton(HTMLParser):
    """The elements of a page, the names of their attributes, and every address in them; its text besides."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shape: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: Counter[tuple[str, str, str]] = Counter()
        self.other: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ADDRESSES or name.startswith("on"):
                self.addresses[tag, name, value or ""] += 1
        if tag != "wbr" and dict(attrs) != {"class": "nowrap"}:  # where a long name may break, or an option may not
            self.shape.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)

    def unknown_decl(self, data: str) -> None:
        self.other.append(data)


def shape(element: ET.Element) -> list[tuple[str, tuple[str, ...]]]:
    return [(part.tag, tuple(part.attrib)) for part in element.iter()]


def keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: keys(entry) for key, entry in value.items()}
    return [keys(entry) for entry in value] if isinstance(value, list) else type(value).__name__


def tokens(page: str) -> list[str]:
    """Return the kinds of all tokens of a page of markdown but text, in GitHub's dialect as far as the parser knows it."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    kinds = []
    for token in parser.parse(page):
        kinds.append(token.type)
        kinds += [child.type for child in token.children or [] if child.type not in ("text", "text_special", "code_inline")]
    return kinds


def visible(text: str) -> bool:
    return all(c in "\n\u200c\u200d" or unicodedata.category(c)[0] not in "CZ" or c in " \u00a0\u202f" for c in text)


def shows(text: str, name: str, length: int = 12) -> bool:
    """Tell whether `text` shows how `name` begins: with its line breaks as escapes, or as breaks, or as blanks."""
    flat = re.sub(r"[ \n]+", " ", text)
    ways = (plain(name.strip()), plain(name, newlines=True), plain(" ".join(name.splitlines())))
    return any(re.sub(r"[ \n]+", " ", way).strip()[:length].strip() in flat for way in ways)


def test_there_are_more_than_sixty() -> None:
    assert len(set(ALL)) == len(ALL) >= 80


@pytest.mark.parametrize("name", SOME_FAST)
def test_html_and_markdown_hold_a_name_as_text(whole: Result, name: str, cache: dict[str, Any]) -> None:
    page = html.render(named(whole, name))
    found, clean = Skeleton(page), cache["html"]
    assert Counter(found.shape) == Counter(clean.shape)
    assert set(found.addresses) == set(clean.addresses)
    assert found.other == clean.other
    assert visible(page)
    assert shows(found.text, name)
    summary = markdown.render(named(whole, name))
    assert tokens(summary) == cache["markdown"]
    assert visible(summary)
    assert not re.search(r"(?<!\\)://|(?<![&\w])@\w|(?i:(?<!\\)\bwww\.)", summary)
    assert commands(summary) == []


@pytest.fixture(scope="module")
def cache(whole: Result) -> dict[str, Any]:
    """Return what is found in the clean twin."""
    clean = named(whole, CLEAN)
    return {
        "html": Skeleton(html.render(clean)),
        "markdown": tokens(markdown.render(clean)),
        "junit": shape(ET.fromstring(junit.render(clean))),  # noqa: S314 - our own output
        "sarif": json.loads(sarif.render(clean)),
        "github": [(word, sorted(held)) for word, held, _ in commands(github.render(clean))],
    }


@pytest.mark.parametrize("name", SOME_FAST)
def test_xml_json_and_lines_hold_a_name_as_text(whole: Result, name: str, cache: dict[str, Any]) -> None:
    hostile = named(whole, name)
    text = junit.render(hostile)
    root = ET.fromstring(text)  # noqa: S314 - our own output
    assert shape(root) == cache["junit"]
    assert visible(text)
    assert commands(text) == []
    (suite,) = JUnitXml.fromstring(text.encode())
    messages = [entry.message for case in suite for entry in case.result]
    assert any(shows(message, name) for message in messages)

    assert commands(hostile.to_json()) == []
    text = sarif.render(hostile)
    log = json.loads(text)
    assert problems(log) == []
    assert keys(without_suppressed_names(log)) == keys(without_suppressed_names(cache["sarif"]))
    assert visible(text)
    assert commands(text) == []
    said = " ".join(result["message"]["text"] for result in log["runs"][0]["results"])
    assert shows(said.replace("{{", "{").replace("}}", "}").replace("] (", "]("), name)

    text = github.render(hostile)
    found = commands(text)
    assert [(word, sorted(held)) for word, held, _ in found] == cache["github"]
    assert len(found) == len(text.splitlines())
    assert visible(text)


def without_suppressed_names(log: dict[str, Any]) -> dict[str, Any]:
    """Return the log without what the records leave out of it where it is not as they ask: a version, a time."""
    (run,) = log["runs"]
    run["tool"]["driver"].pop("semanticVersion", None)
    run["invocations"][0].pop("startTimeUtc", None)
    return log


@pytest.mark.parametrize("name", SOME_FAST)
def test_the_terminal_shows_a_name_as_text(
    whole: Result, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli._say_result(named(whole, CLEAN), Path(CLEAN))
    clean = capsys.readouterr().out
    cli._say_result(named(whole, name), Path(name))
    shown = capsys.readouterr().out
    assert shown.count("\n") == clean.count("\n")
    assert visible(shown)
    assert shows(shown, name)


def test_what_the_terminal_shows_is_no_command_of_a_job(
    whole: Result, monkeypatch: pytest.MonkeyPatch, call: Any, tmp_path: Path
) -> None:
    """`audit render` of what holds the name everywhere, printed in a job; `audit verify` prints names, too."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for name in injections.COMMANDS:
        (tmp_path / "result.json").write_text(named(whole, name).to_json(), encoding="utf-8", errors="backslashreplace")
        _, out, err = call("verify", tmp_path)
        assert commands(out + err) == []
        assert out + err


@pytest.mark.parametrize("name", SOME_FAST)
def test_chart_labels_stay_text(make_figures: Any, name: str, bars: list[str]) -> None:
    root = ET.fromstring(drawn(make_figures()["bars"], name))  # noqa: S314 - our own output
    assert sorted({element.tag for element in root.iter()}) == bars
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or key.endswith("href")]
    words = [element.text or "" for element in root.iter("text")]
    assert all(visible(word) for word in words)
    assert any(shows(word, name, 8) for word in words)


@pytest.fixture(scope="module")
def bars(make_figures: Any) -> list[str]:
    return sorted({element.tag for element in ET.fromstring(drawn(make_figures()["bars"], CLEAN)).iter()})  # noqa: S314 - our own


def drawn(figure: Any, name: str) -> str:
    held = read(figure.model_copy(update={"data": _replaced(figure.data, name, "")}))
    assert held is not None
    svg = charts.draw(figure.kind, name, held, "f")
    assert svg is not None
    return svg


def test_the_payloads_are_live() -> None:
    """Written as they are, the names of each kind would be found: the comparisons above can fail."""

    def page(name: str) -> str:
        return f"<p title=\"{name}\" lang='{name}'>{name}</p><p>end</p>"

    clean = Skeleton(page(CLEAN)).shape
    assert len([name for name in injections.HTML if Skeleton(page(name)).shape != clean]) >= 15

    def xml(name: str) -> list[Any] | None:
        try:
            return shape(ET.fromstring(f'<testcase name="{name}"><failure>{name}</failure></testcase>'))  # noqa: S314 - ours
        except (ET.ParseError, UnicodeEncodeError):
            return None

    assert len([name for name in ALL if xml(name) != xml(CLEAN)]) >= 40

    def parsed(name: str) -> Any:
        try:
            return keys(json.loads(f'{{"a": [{{"b": "{name}"}}]}}'))
        except ValueError:
            return None

    assert len([name for name in ALL if parsed(name) != parsed(CLEAN)]) >= 25
    table = "| a | b |\n|---|---|\n| {} | c |\n\n{}\n"
    plain_page = tokens(table.format(CLEAN, CLEAN))
    assert len([name for name in injections.MARKDOWN if tokens(table.format(name, name)) != plain_page]) >= 11
    assert len([name for name in injections.COMMANDS if commands(name)]) >= 9
    assert len([name for name in injections.TERMINAL if not visible(name)]) >= 11
    assert len([name for name in ALL if "\n" in name or "\r" in name]) >= 8
