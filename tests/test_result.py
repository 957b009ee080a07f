"""result.json: what it holds, what it refuses, and that it reads back as it was written."""

from __future__ import annotations

import copy
import json
import math
import os
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import audit
from audit import demo_nets
from audit.errors import InputError, OutputError
from audit.listing import show
from audit.result import (
    CheckResult,
    Cost,
    Evidence,
    Figure,
    Judgement,
    Metric,
    OutcomeTable,
    Passes,
    Result,
    Table,
    finite,
    make_folder,
    slug,
    slugs,
    write_atomically,
)

METRIC: dict[str, Any] = {"id": "a.b", "value": 0.5, "low": 0.4, "high": 0.6, "confidence": 0.95, "n": 10, "method": "m"}


@pytest.fixture(scope="module")
def result(digits_net) -> Result:
    """Return a real result: performance and robustness of the digits network, with one limit."""
    return audit.run(
        digits_net / "model.pt",
        digits_net / "test.npz",
        arch=f"{demo_nets.__file__}:DigitsNet",
        reference=digits_net / "train.npz",
        checks=["performance", "robustness", "fairness"],
        samples=80,
        settings=["robustness.steps=3", "robustness.restarts=1", "robustness.queries=20", "robustness.certify=false"],
        policy={"limit": [{"metric": "performance.accuracy", "min": 0.5}]},
    )


def test_reads_back_as_it_was_written(result, tmp_path):
    assert Result.from_json(result.to_json()) == result
    assert result.save(tmp_path) == tmp_path
    assert Result.load(tmp_path) == Result.load(tmp_path / "result.json") == result
    assert Result.load(tmp_path).to_json().encode() == (tmp_path / "result.json").read_bytes()


def test_access_by_check_and_by_metric(result):
    assert set(result.metrics()) == {m.id for c in result.checks for m in c.metrics}
    accuracy = result["performance"].metric("performance.accuracy")
    assert result.metrics()["performance.accuracy"] == accuracy
    assert accuracy.low <= accuracy.value <= accuracy.high
    with pytest.raises(KeyError, match=r"has \['performance', 'robustness', 'fairness'\]"):
        result["robustnes"]
    with pytest.raises(KeyError, match=r"performance\.accuracy"):
        result["performance"].metric("performance.nothing")


def test_records_cannot_be_changed(result):
    with pytest.raises(ValidationError):
        result.verdict = "pass"
    with pytest.raises(ValidationError):
        result.checks[0].metrics[0].value = 1.0


def test_an_unjudged_result_shows_in_a_notebook_without_scripts(result):
    page = result._repr_html_()
    assert page.startswith("<iframe srcdoc=")
    assert 'sandbox=""' in page
    assert "<script" not in page


# --- the schema -------------------------------------------------------------------------------------------------------


def broken(path: list[Any], value: Any) -> Any:
    """Return a change of the JSON at a path; ``...`` as the value deletes what is there."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


BROKEN = {
    "verdict": broken(["verdict"], "ok"),
    "version": broken(["schema_version"], "2"),
    "no exit code": broken(["exit_code"], ...),
    "unknown key": broken(["shiny"], 1),
    "unknown key below": broken(["checks", 0, "metrics", 0, "shiny"], 1),
    "status": broken(["checks", 0, "status"], "passed"),
    "metric id": broken(["checks", 0, "metrics", 0, "id"], "Performance Accuracy"),
    "text for a number": broken(["checks", 0, "metrics", 0, "value"], "high"),
    "negative n": broken(["checks", 0, "metrics", 0, "n"], -1),
    "confidence": broken(["checks", 0, "metrics", 0, "confidence"], 95),
    "kind": broken(["checks", 0, "metrics", 0, "kind"], "guess"),
    "severity": broken(["checks", 0, "findings"], [{"severity": "bad", "title": "", "detail": "", "samples": []}]),
    "outcome is no text": broken(["checks", 0, "outcomes", "x"], 3),
    "judgement": broken(["policy", 0, "outcome"], "passed"),
    "checks": broken(["checks"], {}),
}


def test_the_listed_schema_holds_for_a_real_result(result):
    schema = json.loads(show("schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(result.to_json()), schema)


@pytest.mark.parametrize("name", BROKEN)
def test_schema_and_reader_refuse_a_broken_result(result, name):
    document = copy.deepcopy(json.loads(result.to_json()))
    BROKEN[name](document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(show("schema")))
    with pytest.raises(InputError, match="not a result of schema version 1"):
        Result.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "{", "[" * 100_000, b"\xff\xfe", '{"schema_version": NaN}', "\x00", "0" * 5000]
)
def test_what_is_no_result_at_all_is_refused(text):
    with pytest.raises(InputError, match="not a result"):
        Result.from_json(text)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(InputError, match="cannot read the result"):
        Result.load(tmp_path / "nothing.json")


# --- nothing that is not finite ---------------------------------------------------------------------------------------

NOT_FINITE = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_no_record_takes_what_is_not_finite(value):
    for field in ("value", "low", "high"):
        with pytest.raises(ValidationError):
            Metric(**METRIC | {field: value})
    for params in ({"eps": value}, {"deep": [{"er": value}]}):
        with pytest.raises(ValidationError):
            Metric(**METRIC, params=params)
    with pytest.raises(ValidationError):
        Figure(id="f", kind="bars", title="t", data={"values": [1.0, value]})
    with pytest.raises(ValidationError):
        Table(id="t", title="t", columns=["a"], rows=[[value]])
    with pytest.raises(ValidationError):
        Evidence(id="a.b", ok=True, detail="", value=value)
    with pytest.raises(ValidationError):
        Passes(seconds=value)
    with pytest.raises(ValidationError):
        Judgement(metric="a.b", min=value, outcome="pass")
    assert finite(value) is None


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "[[1e999]]"])
def test_no_file_brings_in_what_is_not_finite(result, text):
    for before in ('"config": {', '"params": {', '"data": {'):
        document = result.to_json()
        assert before in document
        with pytest.raises(InputError):
            Result.from_json(document.replace(before, f'{before}"odd": {text}, ', 1))


def test_finite_takes_numpy_numbers():
    assert finite(np.float32(0.5)) == 0.5
    assert type(finite(np.float64(0.5))) is float
    assert finite(None) is None


# --- records ----------------------------------------------------------------------------------------------------------


def test_an_interval_that_is_turned_round_is_refused():
    with pytest.raises(ValidationError, match="low to high"):
        Metric(**METRIC | {"low": 0.9, "high": 0.1})


def test_a_judgement_has_one_side():
    for sides in ({}, {"min": 0.1, "max": 0.2}):
        with pytest.raises(ValidationError, match="one of them"):
            Judgement(metric="a.b", outcome="pass", **sides)


@given(st.lists(st.booleans(), max_size=70))
def test_outcomes_unpack_to_what_was_packed(bits):
    table = OutcomeTable.pack("0" * 64, len(bits), {"a.b": np.asarray(bits, dtype=bool)})
    again = OutcomeTable.model_validate_json(table.model_dump_json())
    assert again.names() == ["a.b"]
    assert again.bits("a.b").tolist() == bits


def test_outcomes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one bit for each of 3 samples"):
        OutcomeTable.pack("0", 3, {"a.b": np.zeros(4, dtype=bool)})
    for text in ("AAAA", "not base64", "", "ÿ"):
        table = OutcomeTable(ids_sha256="0", n=3, **{"a.b": text})
        with pytest.raises(InputError, match=r"a\.b"):
            table.bits("a.b")
    with pytest.raises(KeyError, match=r"it has \['a.b'\]"):
        table.bits("a.c")


def test_costs_add_up():
    one, two = Passes(forwards=1, backwards=2, seconds=0.5), Passes(forwards=10, backwards=20, seconds=1.5)
    assert sum([one, two], Passes()) == Passes(forwards=11, backwards=22, seconds=2.0)
    assert Cost(forwards=11, backwards=22, seconds=2.0, parts={"a.b": one, "a.c": two}).parts["a.b"] == one


@given(st.lists(st.text(max_size=8), unique=True, max_size=12))
def test_slugs_are_parts_of_ids_and_differ(names):
    made = slugs(names)
    assert list(made) == names
    assert len(set(made.values())) == len(names)
    for text in made.values():
        Metric(**METRIC | {"id": f"fairness.{text}.accuracy"})


def test_slug():
    assert slug("Marital Status") == "marital_status"
    assert slug("") == "_"
    assert slug("a.b/c") == "a_b_c"


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_name_that_is_not_unicode_can_be_written_and_read_back(result, tmp_path):
    odd = os.fsdecode(b"mod\xe9l.pt")
    result = result.model_copy(update={"model": result.model.model_copy(update={"source": odd})})
    result.save(tmp_path)
    assert Result.load(tmp_path).model.source == odd
    assert (tmp_path / "report.html").read_bytes().decode("utf-8")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / "folder", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "result.json"]


def test_a_folder_that_cannot_be_made_says_which_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"):
        make_folder(tmp_path / "file" / "out")


def test_a_check_id_is_a_name():
    with pytest.raises(ValidationError):
        CheckResult(id="My Check", status="measured", question="?", answer=".")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_the_place_of_a_result_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(InputError, match="pipe"):
        Result.load(tmp_path)


def test_a_number_of_samples_is_one_that_can_be_counted(result):
    held = json.loads(result.to_json())
    held["checks"][0]["metrics"][0].update(n=10**400, outcome="")
    with pytest.raises(InputError, match="less than or equal"):
        Result.from_json(json.dumps(held))
