"""Anomalies: from a source of their own or marked in the data, apart from what is tested, and in the same units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import audit
from audit.cli import app
from audit.config import Config
from audit.data.base import check_units
from audit.data.load import load
from audit.errors import DataError, UsageError
from audit.model.wrapper import Model
from audit.progress import Progress
from audit.provenance import data_info, job_key
from tests.test_runner import ARCH

N, MARKED = 12, [3, 7, 11]


def arrays(**more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"x": rng.random((N, 1, 4, 4), dtype=np.float32), "y": np.arange(N) % 3, **more}


def marks() -> np.ndarray:
    return np.isin(np.arange(N), MARKED).astype(np.uint8)


def save(path: Path, values: dict[str, Any]) -> Path:
    np.savez(path, **values)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    columns = {"age": rng.normal(40, 9, N), "income": rng.normal(30, 4, N), "fraud": marks(), "label": np.arange(N) % 2}
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


# --- marked in the data -----------------------------------------------------------------------------------------------


def test_marked_rows_leave_the_test_part_and_keep_their_row_numbers(tmp_path: Path) -> None:
    given = arrays(anomaly=marks())
    given["y"][MARKED] = -5  # of no class
    data = load(save(tmp_path / "d.npz", given))
    assert data.anomalies is not None
    assert data.anomalies.ids.tolist() == MARKED
    assert np.array_equal(data.anomalies.x, given["x"][MARKED])
    assert data.anomalies.y.tolist() == [0, 0, 0]
    assert data.test.ids.tolist() == [i for i in range(N) if i not in MARKED]
    assert np.array_equal(data.test.x, given["x"][data.test.ids])
    assert data.test.y.min() >= 0
    assert data.rows == N
    assert any("3 of 12 rows are marked as anomalies" in note for note in data.notes)


def test_the_report_says_which_rows_were_used(tmp_path: Path) -> None:
    info = data_info(load(save(tmp_path / "d.npz", arrays(anomaly=marks()))))
    assert (info.n, info.rows, info.n_anomalies) == (9, 12, 3)
    assert info.sampled is not None


@pytest.mark.parametrize("label", ["fraud", "a word of no class", ""])
def test_labels_of_marked_rows_may_be_anything(tmp_path: Path, label: str) -> None:
    names = np.array(["cat", "dog", "cow"])[np.arange(N) % 3].astype("<U20")
    names[MARKED] = label
    path = save(tmp_path / "d.npz", arrays(y=names, anomaly=marks()))
    data = load(path, classes=["cat", "cow", "dog"])
    assert data.test.y.tolist() == [[0, 2, 1][i % 3] for i in data.test.ids]
    assert data.anomalies is not None
    with pytest.raises(DataError, match="not among --classes"):
        load(save(tmp_path / "unmarked.npz", arrays(y=names)), classes=["cat", "cow", "dog"])


def test_no_mark_is_no_anomaly(tmp_path: Path) -> None:
    data = load(save(tmp_path / "d.npz", arrays(anomaly=np.zeros(N))))
    assert data.anomalies is None
    assert len(data) == N


@pytest.mark.parametrize("anomaly", [np.arange(N), np.ones(N - 1), np.full(N, np.nan), np.array(["no"] * N), np.ones((N, 2))])
def test_marks_are_one_bit_a_row(tmp_path: Path, anomaly: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"anomaly should be 0 or 1 for each of 12 rows"):
        load(save(tmp_path / "d.npz", arrays(anomaly=anomaly)))


def test_something_must_be_left_to_test(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is left to test"):
        load(save(tmp_path / "d.npz", arrays(anomaly=np.ones(N))))


def test_marked_rows_of_the_reference_part_are_left_out_of_it(tmp_path: Path) -> None:
    data = load(save(tmp_path / "d.npz", arrays()), reference=save(tmp_path / "r.npz", arrays(anomaly=marks())))
    assert data.reference is not None
    assert len(data.reference) == N - 3
    assert data.anomalies is None
    assert any("3 rows of the reference part are marked as anomalies" in note for note in data.notes)


def test_a_column_of_a_table_marks_them_where_it_is_named(table: Path) -> None:
    data = load(table, target="label", anomalies="column:fraud")
    assert data.columns == ("age", "income")  # the mark is no input
    assert data.anomalies is not None
    assert data.anomalies.ids.tolist() == MARKED
    assert len(data) == N - 3
    unnamed = load(table, target="label")  # nothing is taken for a mark by its name
    assert unnamed.columns == ("age", "income", "fraud")
    assert unnamed.anomalies is None


def test_a_gap_in_the_label_of_a_marked_row_does_not_matter(table: Path) -> None:
    frame = pd.read_csv(table).astype({"label": float})
    frame.loc[MARKED, "label"] = np.nan
    assert len(load(frame, target="label", anomalies="column:fraud")) == N - 3
    frame.loc[0, "label"] = np.nan
    with pytest.raises(DataError, match="missing in 1 rows"):
        load(frame, target="label", anomalies="column:fraud")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"anomalies": "column:froud"}, DataError, "no column 'froud'.*fraud"),
        ({"anomalies": "column:label"}, UsageError, "--target"),
        ({"anomalies": "column:age", "inputs": ["age", "income"]}, UsageError, "--inputs"),
        ({"anomalies": "column:age"}, DataError, "0 or 1"),
    ],
)
def test_a_column_that_cannot_mark_is_refused(table: Path, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        load(table, target="label", **options)


def test_only_a_table_has_columns(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not read as a table"):
        load(save(tmp_path / "d.npz", arrays()), anomalies="column:fraud")
    with pytest.raises(UsageError, match="not read as a table"):
        load(audit.Dataset(np.random.default_rng(0).random((4, 2)), [0, 1, 0, 1]), anomalies="column:x0")


# --- from a source of their own ---------------------------------------------------------------------------------------


def test_labels_of_an_archive_may_be_missing(tmp_path: Path) -> None:
    odd = np.random.default_rng(2).random((5, 1, 4, 4))
    data = load(save(tmp_path / "d.npz", arrays()), anomalies=save(tmp_path / "a.npz", {"x": odd}))
    assert data.anomalies is not None
    assert np.array_equal(data.anomalies.x, odd)
    assert data.anomalies.ids.tolist() == [0, 1, 2, 3, 4]
    assert len(data) == N


def test_rows_that_a_source_of_anomalies_marks_as_none_are_left_out(tmp_path: Path) -> None:
    odd = np.random.default_rng(2).random((5, 1, 4, 4))
    some = save(tmp_path / "some.npz", {"x": odd, "anomaly": np.array([0, 1, 0, 1, 1])})
    data = load(save(tmp_path / "d.npz", arrays()), anomalies=some)
    assert data.anomalies is not None
    assert np.array_equal(data.anomalies.x, odd[[1, 3, 4]])
    assert any("2 of 5 rows" in note and "not marked as anomalies" in note for note in data.notes)
    none = save(tmp_path / "none.npz", {"x": odd, "anomaly": np.zeros(5)})
    with pytest.raises(DataError, match=r"none\.npz, given as --anomalies, marks none of its 5 rows"):
        load(tmp_path / "d.npz", anomalies=none)


def test_anomalies_that_are_rows_of_the_data_are_said_to_be(tmp_path: Path) -> None:
    given, odd = arrays(), np.random.default_rng(2).random((5, 1, 4, 4))
    assert not load(given, anomalies=odd).notes
    notes = load(given, anomalies=np.concatenate((odd, given["x"][:3]))).notes
    assert any("3 of 8 anomalies are rows of the test" in note for note in notes)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_table_of_anomalies_needs_no_target(table: Path, labelled: bool) -> None:
    odd = pd.read_csv(table).drop(columns=[] if labelled else ["label"])
    if labelled:
        odd["label"] = "fraud"
    odd.to_csv(table.parent / "odd.csv", index=False)
    data = load(table, target="label", anomalies=table.parent / "odd.csv")
    assert data.anomalies is not None
    assert data.anomalies.x.shape == (N, 3)


def test_a_table_of_anomalies_has_the_columns_of_the_data(table: Path) -> None:
    pd.read_csv(table)[["income", "age", "fraud"]].to_csv(table.parent / "odd.csv", index=False)
    with pytest.raises(DataError, match="the anomalies should have the columns of the data in the same order"):
        load(table, target="label", anomalies=table.parent / "odd.csv")


@pytest.mark.parametrize("source", ["array", "tensor", "mapping", "pairs", "dataset"])
def test_any_source_will_do(source: str) -> None:
    given, odd = arrays(), np.random.default_rng(3).random((6, 1, 4, 4), dtype=np.float32)
    sources: dict[str, Any] = {
        "array": odd,
        "tensor": torch.from_numpy(odd),
        "mapping": {"x": odd},
        "pairs": torch.utils.data.TensorDataset(torch.from_numpy(odd), torch.zeros(6)),
        "dataset": audit.Dataset(odd, np.full(6, 99)),
    }
    data = load(given, anomalies=sources[source])
    assert data.anomalies is not None
    assert np.array_equal(data.anomalies.x, odd)
    assert data.anomalies.y.tolist() == [0] * 6


def test_a_bare_array_fits_a_table_by_its_number_of_columns(table: Path) -> None:
    data = load(table, target="label", anomalies=np.ones((4, 3)))
    assert data.anomalies is not None
    with pytest.raises(DataError, match=r"samples of shape \(3,\), got \(2,\)"):
        load(table, target="label", anomalies=np.ones((4, 2)))


def test_marked_and_given_anomalies_have_ids_of_their_own(tmp_path: Path) -> None:
    data = load(save(tmp_path / "d.npz", arrays(anomaly=marks())), anomalies=arrays())
    assert data.anomalies is not None
    assert data.anomalies.ids.tolist() == [*MARKED, *range(N, 2 * N)]


def test_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"the anomalies should have samples of shape \(1, 4, 4\), got \(1, 5, 5\)"):
        load(arrays(), anomalies=np.zeros((3, 1, 5, 5)))
    with pytest.raises(DataError, match=r"shape \(1, 4, 4\)"):
        audit.Dataset(**arrays(), anomalies=np.zeros((3, 1, 5, 5)))


# --- units --------------------------------------------------------------------------------------------------------------


def pixels(kind: str) -> np.ndarray:
    fractions = np.random.default_rng(4).random((20, 1, 4, 4))
    return {"fractions": fractions, "bytes": (fractions * 255).astype(np.uint8), "whole": np.round(fractions * 255)}[kind]


@pytest.mark.parametrize(("one", "other"), [("fractions", "bytes"), ("bytes", "fractions"), ("fractions", "whole")])
@pytest.mark.parametrize("part", ["reference", "anomalies"])
def test_bytes_beside_fractions_are_refused(one: str, other: str, part: str) -> None:
    given, odd = {"x": pixels(one), "y": np.arange(20) % 2}, {"x": pixels(other), "y": np.arange(20) % 2}
    with pytest.raises(DataError, match=r"the data holds .*, but the (reference part|anomalies) .*--preprocess"):
        load(given, **{part: odd})
    with pytest.raises(DataError, match="units"):
        audit.Dataset(**given, **{part: audit.Dataset(**odd)})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pixels("bytes"), pixels("whole")),
        (pixels("fractions"), np.zeros((5, 1, 4, 4))),  # black: of either unit
        (pixels("fractions"), pixels("fractions") * 3 - 1),  # standardised: far from the data, but no bytes
        (np.random.default_rng(0).random((50, 3)), np.random.default_rng(0).integers(0, 90, (50, 3)).astype(float)),  # a table
        (np.zeros((5, 3), np.uint8), np.random.default_rng(0).random((50, 3))),
    ],
)
def test_what_may_be_of_one_unit_passes(one: np.ndarray, other: np.ndarray) -> None:
    check_units(one, other, "the anomalies")
    check_units(other, one, "the anomalies")


# --- in a run -----------------------------------------------------------------------------------------------------------


def test_sampling_leaves_anomalies_alone() -> None:
    data = load(arrays(anomaly=marks()))
    assert data.sample(4, 0).anomalies is data.anomalies


def test_finished_jobs_are_of_these_anomalies() -> None:
    model = Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), task="classification", classes=3)
    one, other = np.zeros((3, 1, 4, 4)), np.full((3, 1, 4, 4), 0.5)
    keys = {job_key(model, load(arrays(), anomalies=odd), Config(), "") for odd in (None, one, other)}
    assert len(keys) == 3
    assert job_key(model, load(arrays(), anomalies=one), Config(), "") in keys


def test_the_command_line_and_the_keyword_hand_them_on(digits_net: Path, tmp_path: Path, monkeypatch: Any) -> None:
    odd = np.random.default_rng(5).random((7, 1, 8, 8), dtype=np.float32)
    save(tmp_path / "odd.npz", {"x": odd})
    shared: dict[str, Any] = {"arch": ARCH, "checks": ["performance"], "samples": 50}
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    result = audit.run(digits_net / "model.pt", digits_net / "test.npz", anomalies=tmp_path / "odd.npz", **shared)
    assert result.data.n_anomalies == 7
    assert "anomalies: 7 inputs" in said[0]
    config = {"data": {"anomalies": str(tmp_path / "odd.npz")}}
    assert audit.run(digits_net / "model.pt", digits_net / "test.npz", config=config, **shared).data.n_anomalies == 7
    network, data = Model.load(digits_net / "model.pt", arch=ARCH), audit.Dataset.load(digits_net / "test.npz")
    assert audit.run(network, data, anomalies=odd, checks=["performance"], samples=50).data.n_anomalies == 7
    words = ["run", digits_net / "model.pt", "--data", digits_net / "test.npz", "--arch", ARCH, "--out", tmp_path / "out"]
    words += ["--checks", "performance", "--samples", "50", "--anomalies", tmp_path / "odd.npz", "--quiet"]
    app([str(word) for word in words], standalone_mode=False)
    assert audit.Result.load(tmp_path / "out").data.n_anomalies == 7
