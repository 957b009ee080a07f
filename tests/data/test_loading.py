"""Which data are read, what stands in them, and what is refused."""

from __future__ import annotations

import gzip
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from audit.data.base import Dataset
from audit.data.load import class_names
from audit.errors import DataError, UsageError
from tests import hostile

X, Y = hostile.rows(12)
FRAME = pd.DataFrame(
    {
        "age": [30, 41, 25, 60] * 3,
        "sex": ["f", "m", "f", None] * 3,
        "height": X[:, 0],
        "smokes": [True, False] * 6,
        "label": Y,
    }
)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# --- arrays -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32", "float64", ">f4", "bool"])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_values_stay_as_they_were_stored(dtype: str, compressed: bool, tmp_path: Path):
    x = (X * 2).astype(dtype).reshape(12, 1, 2, 2)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", x=x, y=Y)
    data = Dataset.load(tmp_path / "d.npz")
    assert data.test.x.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(data.test.x, x)
    assert np.array_equal(data.test.y, Y)
    assert np.array_equal(data.test.ids, np.arange(12))
    assert data.kind == "image"
    assert data.tensor(np.asarray([3])).shape == (1, 1, 2, 2)


def test_npz_order_of_storage_makes_no_difference(tmp_path: Path):
    a = Dataset.load(npz(tmp_path / "a.npz", x=np.asfortranarray(X), y=Y))
    b = Dataset.load(npz(tmp_path / "b.npz", x=X, y=Y.astype(float)))
    assert a.test.sha256() == b.test.sha256()
    assert a.sha256 != b.sha256, "that of the file"


def test_npz_holds_sensitive_attributes(tmp_path: Path):
    groups = np.asarray(["a", "b"] * 6)
    path = npz(tmp_path / "d.npz", x=X, y=Y, sensitive_sex=groups, sensitive_age=np.arange(12) // 6, anomaly=np.zeros(12))
    assert sorted(Dataset.load(path).test.sensitive) == ["age", "sex"]
    data = Dataset.load(path, sensitive=["age"])
    assert list(data.test.sensitive) == ["age"]
    assert set(data.test.sensitive["age"]) == {"0", "1"}
    with pytest.raises(DataError, match="12 samples"):
        Dataset.load(npz(tmp_path / "short.npz", x=X, y=Y, sensitive_sex=groups[:5]))


def test_text_labels_are_looked_up_in_the_stated_classes(tmp_path: Path):
    path = npz(tmp_path / "d.npz", x=X, y=np.asarray(["cat", "dog", "eel"])[Y])
    assert np.array_equal(Dataset.load(path, classes=["cat", "dog", "eel"]).test.y, Y)
    names = tmp_path / "classes.txt"
    names.write_bytes(b"\xef\xbb\xbfeel\r\n\r\n dog \r\ncat\r\n")
    data = Dataset.load(path, classes=names)
    assert data.classes == ("eel", "dog", "cat")
    assert np.array_equal(data.test.y, 2 - Y)
    with pytest.raises(DataError, match="'eel' are not among"):
        Dataset.load(path, classes=["cat", "dog"])
    with pytest.raises(DataError, match="--classes"):
        Dataset.load(path)
    for wrong in (["cat"], ["cat", "cat"]):
        with pytest.raises(DataError, match="each once"):
            Dataset.load(path, classes=wrong)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, "x and y"),
        ({"x": X, "y": Y[:-1]}, r"\(12,\)"),
        ({"x": X[:, 0], "y": Y}, r"\(samples, …\)"),
        ({"x": 3.0, "y": 1}, "single value"),
        ({"x": X[:, :0], "y": Y}, "hold values"),
        ({"x": X[:0], "y": Y[:0]}, "no rows"),
        ({"x": X.astype(complex), "y": Y}, "complex128"),
        ({"x": X.astype(str), "y": Y}, "should be numbers"),
        ({"x": np.where(X > 0.9, np.inf, X), "y": Y}, "NaN or infinity"),
        ({"x": X, "y": np.where(Y > 1, np.nan, Y)}, "y holds NaN"),
        ({"x": X.astype(np.longdouble), "y": Y}, "float64 or float32"),
    ],
)
def test_arrays_that_cannot_be_audited(arrays: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(DataError, match=words):
        Dataset.load(npz(tmp_path / "d.npz", **arrays))
    with pytest.raises(DataError, match=words):
        Dataset.load(arrays)


def test_labels_are_whole_numbers_or_not():
    assert Dataset(X, [True, False] * 6).test.y.dtype == np.int64
    assert Dataset(X, Y.astype(np.float32)).test.y.dtype == np.int64
    assert Dataset(X, Y + 0.5).test.y.dtype == np.float64
    assert Dataset(X, np.full(12, 1e300)).test.y.dtype == np.float64
    assert Dataset(X, Y[:, None]).test.y.shape == (12,)


def test_preprocess_is_applied_to_test_and_reference(tmp_path: Path):
    path = npz(tmp_path / "d.npz", x=(X * 255).astype(np.uint8), y=Y)
    data = Dataset.load(path, reference=path, preprocess=lambda x: x / 255)
    assert data.test.x.dtype == np.float64
    assert float(data.test.x.max()) <= 1
    assert data.reference is not None
    assert np.array_equal(data.reference.x, data.test.x)
    assert any("same as the test part" in note for note in data.notes)
    for wrong, words in (
        (lambda x: x[:3], r"\(12, …\)"),
        (lambda x: "text", "numbers"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ):
        with pytest.raises(DataError, match=words):
            Dataset.load(path, preprocess=wrong)


# --- tables -------------------------------------------------------------------------------------------------------------


def written(path: Path, frame: pd.DataFrame = FRAME) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "CSV"])
def test_tables_go_in_as_they_are(ending: str, tmp_path: Path):
    data = Dataset.load(written(tmp_path / f"d.{ending}"), target="label", sensitive=["sex", "age"])
    assert data.columns == ("age", "height", "smokes"), "all but the target in the file's order, less sensitive text"
    assert np.allclose(data.test.x[:, 0], FRAME["age"])
    assert np.array_equal(data.test.x[:, 2], FRAME["smokes"].astype(float))
    assert np.array_equal(data.test.y, Y)
    assert set(data.test.sensitive["sex"]) == {"f", "m", "(missing)"}
    assert set(data.test.sensitive["age"]) == {"30", "41", "25", "60"}
    assert any("not inputs: sex" in note for note in data.notes)


def test_inputs_are_those_stated_in_that_order():
    data = Dataset.load(FRAME, target="label", inputs=["height", "age"], sensitive=["age"])
    assert data.columns == ("height", "age")
    assert np.allclose(data.test.x[:, 1], FRAME["age"])
    only = Dataset.load(FRAME, target="label", inputs=["height"], sensitive=["age"])
    assert only.columns == ("height",)
    assert set(only.test.sensitive) == {"age"}, "a sensitive column need not be an input"


def test_commas_at_the_end_of_rows_do_not_shift_the_columns(tmp_path: Path):
    (tmp_path / "d.csv").write_text("a,b,label\n1,2,0,\n3,4,1,\n")
    data = Dataset.load(tmp_path / "d.csv", target="label")
    assert data.test.x.tolist() == [[1, 2], [3, 4]]
    assert data.test.y.tolist() == [0, 1]


def test_numbers_with_gaps_of_pandas_own_are_read():
    frame = FRAME.drop(columns="sex").astype({"age": "Int64", "label": "Int64", "smokes": "boolean"})
    data = Dataset.load(frame, target="label")
    assert data.test.x.dtype == np.float64
    assert data.test.y.dtype == np.int64
    booleans = Dataset.load(frame, target="smokes")
    assert set(booleans.test.y) == {0, 1}


TEXTUAL = FRAME.drop(columns="sex")


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (FRAME, r"column 'sex' holds text \('f'\)"),
        (TEXTUAL.assign(age=["1", "2", "three", "4"] * 3), r"column 'age' holds text \('three'\)"),
        (TEXTUAL.assign(age=["1", "2"] * 6), r"column 'age' holds text \('1'\)"),
        (TEXTUAL.assign(age=pd.Series([1, None, 3] * 4, dtype=object)), "column 'age' is missing in 4 of 12 rows"),
        (TEXTUAL.assign(age=[1.0, np.nan] * 6), "column 'age' is missing in 6"),
        (TEXTUAL.assign(age=[1.0, np.inf] * 6), "column 'age' holds infinity"),
        (TEXTUAL.assign(age=pd.Categorical(["u", "v"] * 6)), "column 'age' holds text"),
        (TEXTUAL.assign(age=pd.date_range("2020", periods=12)), "column 'age' holds text"),
        (TEXTUAL.assign(age=[1j] * 12), "column 'age' holds text"),
        (TEXTUAL.assign(label=[0.0, np.nan] * 6), "'label' .the target. is missing in 6 rows"),
        (TEXTUAL.iloc[:0], "no rows"),
        (TEXTUAL[["label"]], "no column is left"),
        (pd.concat([TEXTUAL, TEXTUAL[["age"]]], axis=1), "two columns are called 'age'"),
    ],
)
def test_nothing_is_encoded_or_imputed(frame: pd.DataFrame, words: str):
    with pytest.raises(DataError, match=words):
        Dataset.load(frame, target="label")


def test_objects_that_are_numbers_are_numbers():
    data = Dataset.load(TEXTUAL.assign(age=pd.Series([1, 2.5, True] * 4, dtype=object)), target="label")
    assert np.array_equal(data.test.x[:3, 0], [1, 2.5, 1])


def test_preprocess_gets_the_raw_rows_of_the_inputs():
    def encode(frame: pd.DataFrame) -> np.ndarray:
        assert list(frame.columns) == ["age", "sex", "height", "smokes"]
        return np.column_stack([frame["age"] / 100, frame["sex"].eq("f")])

    data = Dataset.load(FRAME, target="label", sensitive=["sex"], preprocess=encode)
    assert data.test.x.shape == (12, 2)
    assert set(data.test.x[:, 1]) == {0.0, 1.0}


def test_columns_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match="--target"):
        Dataset.load(FRAME)
    for options in ({"target": "lable"}, {"target": "label", "inputs": ["aeg"]}, {"target": "label", "sensitive": ["sexx"]}):
        with pytest.raises(DataError, match="did you mean"):
            Dataset.load(FRAME, **options)
    with pytest.raises(UsageError, match="the answer"):
        Dataset.load(FRAME, target="label", inputs=["age", "label"])


def test_the_reference_part_needs_the_same_columns_but_no_groups(tmp_path: Path):
    reference = FRAME.drop(columns="sex")
    data = Dataset.load(FRAME, reference=reference, target="label", inputs=["age", "height"], sensitive=["sex"])
    assert data.reference is not None
    assert len(data.reference) == 12
    for other, words in (
        (reference.drop(columns="age"), "differ: age"),
        (reference[["height", "age", "smokes", "label"]], "the order"),
    ):
        with pytest.raises(DataError, match=words):
            Dataset.load(FRAME.drop(columns="sex"), reference=other, target="label")
    with pytest.raises(DataError, match=r"shape \(4, 1\), got \(3, 1\)"):
        Dataset.load({"x": X[:, :, None], "y": Y}, reference={"x": X[:, :3, None], "y": Y})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", b"a,label\n1,0,7\n2,1,7\n", "more fields than its header"),
        ("d.csv", b"\xff\xfe\x00", "cannot be read"),
        ("d.csv", b"a,label\n1,0\n2,1,3,4\n", "cannot be read"),
        ("d.csv", b"\n\n", "cannot be read"),
        ("d.csv.gz", gzip.compress(b"a,label\n1,0\n")[:-6], "truncated"),
        ("d.csv.gz", b"a,label\n1,0\n", "truncated or damaged"),
        ("d.parquet", b"PAR1 but no more", "truncated or damaged"),
        ("d.npz", b"a,label\n1,0\n", "not a .npz archive"),
        ("d.npz", hostile.zipped({"x.npy": b"\x93NUMPY\x09\x00", "y.npy": b""}), "'x' is truncated or damaged"),
        ("d.npz", hostile.zipped({"x.npy": hostile.npz_member("(2, 2)", body=b"\0" * 15), "y.npy": b""}), "claims|damaged"),
        ("d.npz", hostile.zipped({"x.npy": hostile.npz_member("(True, 2)"), "y.npy": b""}), "damaged"),
        ("d.json", b"{}", "data should be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives hold the time: their bytes name no test
)
def test_damaged_files_say_so(name: str, content: bytes, words: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        Dataset.load(tmp_path / name, target="label")


def test_a_table_that_is_too_wide_is_refused_before_it_is_parsed(tmp_path: Path):
    path = tmp_path / "wide.csv"
    started = time.monotonic()
    for header in (
        ",".join(f"c{i}" for i in range(300_000)),
        "\ufeff" + ",".join(f'"c{i}"' for i in range(300_000)),
        "\n  \r\n" + "," * 300_000,
    ):
        path.write_text(header + "\n" + "0," * 10 + "\n")
        with pytest.raises(DataError, match=r"300,00\d columns; at most 10,000.*npz"):
            Dataset.load(path, target="c0")
        (tmp_path / "wide.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(DataError, match="at most 10,000"):
            Dataset.load(tmp_path / "wide.csv.gz", target="c0")
    assert time.monotonic() - started < 10
    path.write_text('"' + "x" * 200_000 + '",label\n1,0\n')
    with pytest.raises(DataError, match="header line cannot be read"):
        Dataset.load(path, target="label")


def test_commas_and_line_breaks_inside_quotes_make_no_columns(tmp_path: Path):
    (tmp_path / "d.csv").write_bytes(b'\xef\xbb\xbf"a,' + b"," * 20_000 + b'\nb",label\n1,0\n2,1\n')
    assert Dataset.load(tmp_path / "d.csv", target="label").test.x.tolist() == [[1], [2]]


def repeated(path: Path, rows: int, text: str) -> Path:
    frame = pd.DataFrame({"a": np.zeros(rows, "f4"), "label": np.zeros(rows, "i1")})
    table = pa.Table.from_pandas(frame).append_column(
        "b", pa.DictionaryArray.from_arrays(np.zeros(rows, "i4"), [text]).cast(pa.dictionary(pa.int32(), pa.string()))
    )
    pq.write_table(table, path, compression="zstd", store_schema=False)
    return path


@pytest.mark.parametrize(("rows", "text"), [(2_000_000, "x" * 20), (20_000, "x" * 100_000)], ids=["rows", "text"])
def test_a_parquet_file_of_repeated_values_is_refused_before_it_fills_the_memory(rows: int, text: str, tmp_path: Path):
    path = repeated(tmp_path / "d.parquet", rows, text)
    assert path.stat().st_size < 1_500_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"made to exhaust memory.*--inputs"):
        Dataset.load(path, target="label", sensitive=["b"])
    assert pa.total_allocated_bytes() - before < 2**20
    data = Dataset.load(path, target="label", inputs=["a"])
    assert data.test.x.shape == (rows, 1), "columns that nobody asked for are not read"


def test_parquet_columns_that_are_not_stated_are_not_needed(tmp_path: Path):
    path = tmp_path / "d.parquet"
    FRAME.assign(lists=[[1, 2]] * 12).rename(columns={"height": "body.height"}).to_parquet(path)
    data = Dataset.load(path, target="label", inputs=["body.height", "age"], sensitive=["sex"])
    assert data.columns == ("body.height", "age")
    assert set(data.test.sensitive["sex"]) == {"f", "m", "(missing)"}
    with pytest.raises(DataError, match=r"did you mean 'body.height'"):
        Dataset.load(FRAME.rename(columns={"height": "body.height"}), target="label", inputs=["body.heigth"])
    with pytest.raises(DataError, match=r"'lists.* holds lists"):
        Dataset.load(path, target="label")
    pd.DataFrame(np.zeros((2, 10_001))).rename(columns=str).to_parquet(path)
    with pytest.raises(DataError, match="10,001 columns"):
        Dataset.load(path, target="0")


def test_a_column_is_named_once(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--inputs.*'age' twice"):
        Dataset.load(FRAME, target="label", inputs=["age", "height", "age"])
    with pytest.raises(UsageError, match=r"--sensitive.*'sex' twice"):
        Dataset.load(FRAME, target="label", inputs=["age"], sensitive=["sex", "sex"])
    with pytest.raises(UsageError, match=r"--sensitive.*'sex' twice"):
        Dataset.load({"x": X, "y": Y, "sensitive_sex": Y}, sensitive=["sex", "sex"])


def test_many_classes_are_read_soon_and_too_many_not(tmp_path: Path):
    path = tmp_path / "classes.txt"
    names = [f"c{i}" for i in range(100_000)]
    path.write_text("\n".join(names))
    started = time.monotonic()
    assert class_names(path) == tuple(names)
    assert time.monotonic() - started < 5
    with pytest.raises(DataError, match="got 'c7' twice"):
        class_names([*names[:-1], "c7"])
    with pytest.raises(DataError, match=r"100,001 classes; at most 100,000"):
        class_names([*names, "one more"])


# --- scikit-learn, torch and pairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("digits", (1797, 1, 8, 8)), ("iris", (150, 4)), ("diabetes", (442, 10)), ("wine", (178, 13))]
)
def test_bundled_data(name: str, shape: tuple[int, ...]):
    data = Dataset.load(f"sklearn:{name}")
    assert data.test.x.shape == shape
    assert data.test.y.dtype == np.int64
    if name == "digits":
        assert [float(side) for side in data.box()] == [0.0, 16.0]
        assert len(data.classes) == 10
    with pytest.raises(UsageError, match="did you mean 'iris'"):
        Dataset.load("sklearn:irys")


TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


class Ints:
    """A data set whose labels are Python numbers."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return X[i], int(Y[i])


@pytest.mark.parametrize(
    "source",
    [
        TENSORS,
        Ints(),
        DataLoader(TENSORS, batch_size=5),
        DataLoader(TENSORS, batch_size=None),
        {"x": X, "y": Y},
        {"x": torch.from_numpy(X).requires_grad_(), "y": torch.from_numpy(Y)},
        (X, Y),
        (torch.from_numpy(X), torch.from_numpy(Y)),
    ],
    ids=lambda source: type(source).__name__,
)
def test_sources_in_memory(source: Any):
    if isinstance(source, DataLoader) and source.batch_size is None:
        source = DataLoader(TensorDataset(torch.from_numpy(X)[None], torch.from_numpy(Y)[None]), batch_size=None)
    data = Dataset.load(source)
    assert np.array_equal(data.test.x, X)
    assert np.array_equal(data.test.y, Y)
    assert np.array_equal(data.test.ids, np.arange(12))


class OwnOrder(Sampler[int]):
    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def __iter__(self) -> Any:
        return iter(np.random.default_rng(self.seed).permutation(12).tolist())

    def __len__(self) -> int:
        return 12


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"sampler": WeightedRandomSampler([1.0] * 12, 12)},
        {"sampler": SubsetRandomSampler(range(12))},
        {"batch_sampler": BatchSampler(RandomSampler(TENSORS), 4, False)},
        {"sampler": OwnOrder(None)},
    ],
)
def test_a_loader_in_random_order_is_refused(options: dict[str, Any]):
    with pytest.raises(DataError, match="shuffle=False"):
        Dataset.load(DataLoader(TENSORS, **options))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(X, Y, strict=True)))


def test_loaders_in_an_order_of_their_own_are_taken():
    order = list(OwnOrder(3))
    data = Dataset.load(DataLoader(TENSORS, sampler=OwnOrder(3), batch_size=4))
    assert np.array_equal(data.test.x, X[order])
    assert np.array_equal(Dataset.load(DataLoader(Stream(), batch_size=5)).test.x, X)
    dropped = Dataset.load(DataLoader(TENSORS, batch_size=5, drop_last=True))
    assert len(dropped) == 10
    assert any("left out 2 of its 12" in note for note in dropped.notes)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([X[0], X[1]], "pairs"),
        ([], "no rows"),
        ([(X[0], 0), (X[1][:2], 1)], "one shape"),
        ([(X[0], "cat")], "one number a sample"),
        ([(X[0], [[0, 1]])], "one number a sample"),
        ([(X[0], [0, 1]), (X[1], 1)], "labels of one shape"),
        (X, "got ndarray"),
        (3, "got int"),
        (DataLoader(TensorDataset(torch.from_numpy(X[:0]), torch.from_numpy(Y[:0]))), "no batch"),
    ],
)
def test_sources_that_hold_no_pairs(source: Any, words: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=words):
            Dataset.load(source)


def test_a_dataset_comes_back_as_it_is(tmp_path: Path):
    data = Dataset(X, Y)
    assert Dataset.load(data) is data
