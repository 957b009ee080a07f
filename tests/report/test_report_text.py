"""Numbers and text for people: rounding that never lies, clipping, and escapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.report import text
from audit.report.words import plain_words


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "fraction", "–"),
        (0.93, "fraction", "0.930"),
        (1.0, "fraction", "1.000"),
        (0.9996, "fraction", "0.9996"),
        (0.9999999, "fraction", "0.9999999"),
        (0.0, "fraction", "0.000"),
        (0.0004, "fraction", "0.0004"),
        (-0.25, "fraction", "−0.250"),
        (12.0, "samples", "12"),
        (12345.678, "", "12,346"),
        (1523.442, "unit²", "1523"),
        (0.000012, "", "1.2e−05"),
        (3.0e12, "", "3,000,000,000,000"),
        (1e300, "", "1e+300"),
    ],
)
def test_number(value: float | None, unit: str, shown: str) -> None:
    assert text.number(value, unit) == shown


@given(st.floats(0, 1))
def test_a_fraction_reads_as_none_or_all_only_where_it_is(value: float) -> None:
    shown = float(text.number(value, "fraction").replace("−", "-"))
    assert (shown == 0) == (value == 0)
    assert (shown == 1) == (value == 1)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.1, 0.2, "[0.100, 0.200]"), (0.1, None, "at least 0.100"), (None, 0.2, "at most 0.200"), (None, None, "–")],
)
def test_interval(low: float | None, high: float | None, shown: str) -> None:
    assert text.interval(low, high, "fraction") == shown


@given(st.text(), st.integers(2, 50))
def test_clip_keeps_its_limit(words: str, limit: int) -> None:
    shown = text.clip(words, limit)
    assert len(shown) <= limit
    assert shown.isprintable() or any(c in "\u200c\u200d\u00a0\u3000" or c.isspace() for c in shown)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (True, "yes"), (3.0, "3"), (0.123456789, "0.123457"), (7, "7"), ("a", "a"), ([1, "é"], '[1, "é"]')],
)
def test_cell(value: object, shown: str) -> None:
    assert text.cell(value) == shown  # type: ignore[arg-type]


def test_a_short_hash_has_twelve_characters() -> None:
    assert text.short_hash("9f86d081884c7d659a2feaa0c55ad015") == "9f86d081884c"
    assert text.short_hash("abc") == "abc"
    hostile = text.short_hash("\x1b[31m" + "a" * 64)
    assert len(hostile) <= 12
    assert "\x1b" not in hostile


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (1e-9, "< 0.0001"), (0.0123, "0.012"), (0.5, "0.50"), (0.0999, "0.1")]
)
def test_p_value(value: float | None, shown: str) -> None:
    assert text.p_value(value) == shown


def test_list_says_how_many_it_left_out() -> None:
    assert text.listed([1, 2, 3], 3) == "1, 2, 3"
    assert text.listed(range(1500), 2) == "0, 1 and 1,498 more"


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("robustness.linf.gradient_true", "the gradient says what the loss does (L∞)"),
        ("robustness.l2.accuracy", "accuracy under attack (L2)"),
        ("performance.accuracy", "accuracy"),
        ("fairness.deterministic", "the same input gives the same output twice"),
        ("anomaly.auto_encoder.trained", "trained (auto encoder)"),
        ("own.converged", "converged (own)"),  # what a word means in the check of another package is not known
        ("<b>no id</b>", "<b>no id</b>"),
        ("", ""),
    ],
)
def test_ids_in_plain_words(identifier: str, words: str) -> None:
    assert plain_words(identifier) == words
