"""What the table writer wrote is read again: values, nulls, types, lists, units and metadata."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from tapetum.core.errors import FormatError, InputError, LimitError, UsageError
from tapetum.report import read_tables
from tapetum.report.read_tables import read_table, units_of, words_of
from tapetum.report.tables import sidecar_of, write_table

WORDS = {
    "catalogue": "ZTF_sources_20230109",
    "created": "2026-11-20T12:00:00",
    "catalogues": ["Gaia_EDR3", "PS1"],
}
FLAT = ["lc_id", "n", "x", "ok", "note"]


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "lc_id": ["10487361000071", "b, c", None],
            "n": pa.array([1, None, 2**62 + 1], pa.int64()),
            "x": [1.5, None, float("nan")],
            "ok": [True, None, False],
            "note": ["", "nan", 'a "b"'],
            "dmdt": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
            "square": pa.array([[[1, 2], [3, 4]]] * 3, pa.list_(pa.list_(pa.int32(), 2), 2)),
            "time": [[1.0, 2.0, 3.0], None, []],
            "deep": [[[1, 2], [3]], [], None],
        },
        metadata={"made_by": "a test"},
    )


def same(one: pa.Table, other: pa.Table) -> bool:
    return str(one.to_pylist()) == str(other.to_pylist())  # as text: NaN is not NaN


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".h5", ".hdf5", ".ecsv"])
def test_tables_come_back_with_all_that_was_said(table: pa.Table, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix in (".csv", ".ecsv"):
        table = table.select(FLAT if suffix == ".csv" else FLAT[:-1])  # ECSV has no empty text
    write_table(
        table, str(path), WORDS, {"x": "mag", "time": "d"}, {"x": "a mean", "time": "of it"}, sidecar=True
    )
    back = read_table(path)
    assert same(back, table)
    assert back.schema.field("n").type == pa.int64()
    words = words_of(back)
    assert {**words, "catalogues": json.loads(words["catalogues"])} == {**WORDS, "made_by": "a test"}
    nested = "time" in table.column_names
    assert units_of(back) == ({"x": "mag", "time": "d"} if nested else {"x": "mag"})
    described = ["x", "time"] if nested else ["x"]
    assert [back.schema.field(name).metadata[b"description"] for name in described] == [b"a mean", b"of it"][
        : len(described)
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".h5", ".ecsv", ".fits", ".vot"])
def test_long_and_odd_words_come_back_from_every_format(tmp_path: Path, suffix: str) -> None:
    long = json.dumps({f"key {k}": "a = b  " + "c " * (k % 40) + "%41%% \u03c0 'q'" for k in range(60)})
    assert len(long) > 3000
    words = {
        "options": long, "classification": long, "tapetum": "1.2", "MODE": "fast", "made_by": "tapetum x = y",
        "sixty": "a" * 60, "blanks_after": "x  ", "a_word_of_which_the_line_has_72_letters": "b" * 30,
    }  # fmt: skip
    words |= {f"cut_{k}": json.dumps(["a" * (40 + k), " b = c " + "d " * 80]) for k in range(72)}
    path = tmp_path / f"t{suffix}"
    write_table(pa.table({"x": [1.0]}), str(path), words, sidecar=True)
    back = words_of(read_table(path))
    assert back == words


def test_lists_of_one_length_are_arrays_for_everybody(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    write_table(table, str(path))
    plain = Table.read(path, format="hdf5", path="table")
    assert plain["dmdt"].shape == (3, 2)
    assert plain["square"].shape == (3, 2, 2)
    with h5py.File(path) as file:
        assert file["lists/time/values"][:].tolist() == [1.0, 2.0, 3.0]
        assert file["lists/time/offsets"][:].tolist() == [0, 3, 3, 3]
        assert file["lists/time/missing"][:].tolist() == [False, True, False]
    for suffix in (".fits", ".vot", ".ecsv"):
        write_table(table.select(["dmdt", "square"]), str(tmp_path / f"v{suffix}"))
        assert read_table(tmp_path / f"v{suffix}").to_pylist() == table.select(["dmdt", "square"]).to_pylist()


def test_a_missing_list_of_one_length(tmp_path: Path) -> None:
    kinds = pa.list_(pa.float32(), 2), pa.list_(pa.int32(), 2)
    table = pa.table({"f": pa.array([[1, 2], None], kinds[0]), "i": pa.array([None, [3, 4]], kinds[1])})
    write_table(table, str(tmp_path / "t.h5"))
    back = read_table(tmp_path / "t.h5")
    assert str(back["f"].to_pylist()) == "[[1.0, 2.0], [nan, nan]]"
    assert back["i"].to_pylist() == [None, [3, 4]]


@pytest.mark.parametrize("suffix", [".parquet", ".h5", ".csv"])
def test_empty_tables_keep_their_columns(table: pa.Table, tmp_path: Path, suffix: str) -> None:
    empty = (table.select(FLAT) if suffix == ".csv" else table).slice(0, 0)
    write_table(empty, str(tmp_path / f"t{suffix}"), WORDS, sidecar=True)
    back = read_table(tmp_path / f"t{suffix}")
    assert (back.num_rows, back.column_names) == (0, empty.column_names)
    assert back.schema.field("n").type == pa.int64()


def test_slices_are_written_as_they_look(table: pa.Table, tmp_path: Path) -> None:
    joined = pa.concat_tables([table, table]).slice(1, 4)
    write_table(joined, str(tmp_path / "t.h5"))
    assert same(read_table(tmp_path / "t.h5"), joined)


def test_lists_that_have_no_place_are_refused(tmp_path: Path) -> None:
    odd: list[tuple[str, Any]] = [
        (".h5", pa.array([["a"], []])),
        (".h5", pa.array([{"a": 1}])),
        (".h5", pa.array([[None, [1, 2]]], pa.list_(pa.list_(pa.int32(), 2), 2))),
        (".h5", pa.array([["a", "b"]], pa.list_(pa.string(), 2))),
        (".fits", pa.array([[1], [1, 2]])),
        (".csv", pa.array([[1, 2]], pa.list_(pa.int32(), 2))),
    ]
    for suffix, column in odd:
        with pytest.raises(UsageError, match=r"column 'odd'.*parquet"):
            write_table(pa.table({"odd": column}), str(tmp_path / f"t{suffix}"))
    assert list(tmp_path.glob("t*")) == []


def test_a_csv_file_has_its_metadata_beside_it(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(table.select(FLAT), str(path), WORDS, {"x": "mag"}, sidecar=True)
    about = json.loads(sidecar_of(path).read_text())
    assert sidecar_of(path).name == "t.csv-metadata.json"
    assert (about["@context"], about["url"]) == ("http://www.w3.org/ns/csvw", "t.csv")
    assert [column["datatype"] for column in about["tableSchema"]["columns"]] == [
        "string", "integer", "double", "boolean", "string",
    ]  # fmt: skip
    write_table(table.select(["n"]), str(path))
    assert not sidecar_of(path).exists()  # of another table by now
    assert words_of(read_table(path)) == {}


def test_other_peoples_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ra,dec,obj_id\n282.714726,6.370752,obj_1\n282.7,NaN,\n")
    assert read_table(path).to_pydict() == {
        "ra": [282.714726, 282.7], "dec": [6.370752, None], "obj_id": ["obj_1", None],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_names_of_numbers_keep_their_zeros(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    with gzip.open(path, "wt") if suffix.endswith("gz") else path.open("w") as file:
        file.write("Obj_id,n,x\n007,007,1.5\n-1,8,\n")
    table = read_table(path, names={"obj_id", "x"})
    assert table.to_pylist() == [{"Obj_id": "007", "n": 7, "x": 1.5}, {"Obj_id": "-1", "n": 8, "x": None}]
    assert read_table(path)["Obj_id"].to_pylist() == [7, -1]


@pytest.mark.parametrize("suffix", [".csv.gz", ".ecsv.gz", ".fits.gz", ".vot.gz"])
def test_what_is_packed_is_not_unpacked_without_end(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_tables, "LARGEST_FILE", 2**20)
    path = tmp_path / f"t{suffix}"
    with gzip.open(path, "wb") as file:
        file.write(b"a\n" + b"0\n" * 2**20)
    assert path.stat().st_size < 2**14
    with pytest.raises(LimitError, match="when it is unpacked"):
        read_table(path)


def test_a_stream_is_written_piece_by_piece(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64())])
    batches = (pa.record_batch({"n": np.arange(3) + k}, schema) for k in range(4))
    write_table(
        pa.RecordBatchReader.from_batches(schema, batches), str(tmp_path / "t.parquet"), WORDS, {"n": "d"}
    )
    back = pq.ParquetFile(tmp_path / "t.parquet")
    assert back.num_row_groups == 4
    assert back.read()["n"].to_pylist() == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5]
    assert units_of(back.read()) == {"n": "d"}
    batches = (pa.record_batch({"n": [1]}, schema) for _ in range(2))
    write_table(pa.RecordBatchReader.from_batches(schema, batches), str(tmp_path / "t.csv"))
    assert (tmp_path / "t.csv").read_text() == "n\n1\n1\n"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".h5", ".ecsv", ".fits", ".vot"])
def test_what_is_no_table_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    with pytest.raises(InputError, match="no such file"):
        read_table(path)
    path.write_bytes(b"\x00\xff\x01 no table \n\n1,2\n")
    with pytest.raises(FormatError, match=f"t{suffix}: not a"):
        read_table(path)
    with pytest.raises(UsageError, match="unknown table suffix"):
        read_table(tmp_path / "t.txt")
