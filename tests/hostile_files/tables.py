"""Tables (CSV, gzipped CSV, Parquet) that are wider, deeper or longer than they look."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("tables", file="hostile.csv", kind="data")
TARGET = ("--target", "label")
GROUP = ("--sensitive", "b")


def read(file: Path, _: Place) -> Any:
    return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)


EXHAUSTS = Proof("exhausts", read)


def add(case: str, content: Any, proof: Proof, *words: str, **more: Any) -> None:
    more.setdefault("options", TARGET)
    FAMILY.add(case, content, proof, *words, **more)


def _wide(place: Place) -> None:
    place.write("hostile.csv", ",".join(f"c{i}" for i in range(1_500_000)) + "\n" + "0," * 1_499_999 + "0\n")


add("1,500,000 columns", _wide, EXHAUSTS, "at most 10,000")
add(
    "a thousand million rows in a megabyte",
    lambda p: p.write("hostile.csv.gz", gzip.compress(b"a,label\n" + b"1,0\n" * 60_000_000, 9)),
    EXHAUSTS,
    "exhaust memory",
    file="hostile.csv.gz",
)


def _gzips(place: Place) -> None:
    """Put a thousand gzip members behind one another: 1 MB that unpacks to 1 GB."""
    member = gzip.compress(b"1,0\n" * 2_500_000, 9)
    place.write("hostile.csv.gz", gzip.compress(b"a,label\n") + member * 100)


add("gzip behind gzip", _gzips, EXHAUSTS, "exhaust memory", file="hostile.csv.gz")
add("a quote that never ends", b'a,label\n"' + b"x,\n" * 1_000_000, Proof("fixed", read, "EOF inside string"), "cannot be read")
add(
    "a header of one name of a megabyte",
    b'"' + b"x" * 1_000_000 + b'",label\n1,0\n',
    Proof("differs", lambda f, p: [len(max(read(f, p).columns, key=len)) > 1000, False]),
    "header",
)
add(
    "NUL in a name",
    b"a\0b,label\n1,0\n2,1\n",
    Proof("differs", lambda f, p: [list(read(f, p).columns), ["a\0b ", "label"]]),
    "a\\x00b",
)
add(
    "a formula, and a name that commands the terminal",
    b"\x1b[2J\x1b[31ma,label\n=cmd|'/c calc'!A0,0\n2,1\n",
    Proof("escapes", lambda f, p: str(read(f, p).columns[0])),
    "holds text",
)
add(
    "numbers of 400,000 digits",
    b"a,label\n" + b"9" * 400_000 + b",0\n1,1\n",
    Proof("differs", lambda f, p: [read(f, p)["a"].iloc[0], 9.0]),
    "holds text",
)


def _repeated(rows: int, letters: int) -> Callable[[Place], None]:
    """Return a maker of a Parquet file in which one long text stands in each row."""

    def make(place: Place) -> None:
        table = pa.table({"a": np.zeros(rows, "f4"), "label": np.zeros(rows, "i1")})
        coded = pa.DictionaryArray.from_arrays(np.zeros(rows, "i4"), ["x" * letters])
        held = table.append_column("b", coded.cast(pa.dictionary(pa.int32(), pa.string())))
        pq.write_table(held, place.at / "hostile.parquet", compression="zstd", store_schema=False)

    return make


PARQUET = {"file": "hostile.parquet", "options": (*TARGET, *GROUP)}
add("a text of 100 kB in 20,000 rows", _repeated(20_000, 100_000), EXHAUSTS, "exhaust memory", quick=True, **PARQUET)


def _zeros(place: Place) -> None:
    """Write one group of rows many times: the same page of zeros, a few bytes long."""
    rows = 4_000_000
    table = pa.table({"a": np.zeros(rows, "f8"), "label": np.zeros(rows, "i8")})
    with pq.ParquetWriter(place.at / "hostile.parquet", table.schema, compression="zstd") as writer:
        for _ in range(12):
            writer.write_table(table)


add("a thousand million zeros", _zeros, EXHAUSTS, "exhaust memory", file="hostile.parquet")


def _forged(place: Place) -> None:
    """Let the description of a small file claim a thousand million million rows."""
    path = place.at / "hostile.parquet"
    pq.write_table(pa.table({"a": np.zeros(77), "label": np.zeros(77, "i8")}), path, compression="none")
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    end = content[-8 - length : -8]
    # 77 as thrift writes it, wherever it stands, becomes a number of nine bytes.
    forged = end.replace(b"\x16\x9a\x01", b"\x16" + b"\xfe" * 7 + b"\x7f")
    path.write_bytes(content[: -8 - length] + forged + len(forged).to_bytes(4, "little") + b"PAR1")


add("rows that are only claimed", _forged, Proof("fixed", read, ""), "exhaust memory", file="hostile.parquet")


add(
    "a Parquet file that ends in its middle",
    b"PAR1" + bytes(1000) + b"\xff\xff\xff\x7fPAR1",
    Proof("fixed", read, ""),
    "truncated or damaged",
    file="hostile.parquet",
)
