"""The table writer: every format gives back what was written, nulls and metadata included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table

from tapetum.core.errors import UsageError
from tapetum.report.tables import rounded, table_format, write_table

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = [".parquet", ".csv", ".ecsv", ".vot", ".xml", ".fits", ".hdf5", ".h5"]
UNITS = {"ra": "deg", "mjd": "d"}
WORDS = {"tapetum": "1.2.3", "a_longer_key": "π is long, " * 30}


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "alert_id": pa.array([2**62 + 1, None, 999999], pa.int64()),
            "object_id": ["ZTF18a, b", 'quote"d', None],
            "ra": [359.123456789012, None, 0.1],
            "mjd": [60000.5, 60001.5, 60002.25],
            "flags": pa.array([0, 1, 2], pa.int32()),
            "forced": pa.array([True, None, False]),
            "error": pa.array([None, None, None], pa.string()),
        },
        metadata={"made_by": "a test"},
    )


def read_back(path: Path) -> Table:
    formats = {".ecsv": "ascii.ecsv", ".vot": "votable", ".xml": "votable", ".hdf5": "hdf5", ".h5": "hdf5"}
    if path.suffix in formats:
        return Table.read(path, format=formats[path.suffix])
    return Table.read(path, format="fits")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_and_nulls_survive(table: pa.Table, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_table(table, str(path), WORDS, UNITS)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("t")] == [path.name]
    if suffix == ".parquet":
        assert pq.read_table(path).to_pylist() == table.to_pylist()
        return
    if suffix == ".csv":
        types = {field.name: field.type for field in table.schema}
        options = pacsv.ConvertOptions(column_types=types, strings_can_be_null=True)
        assert pacsv.read_csv(path, convert_options=options).to_pylist() == table.to_pylist()
        return
    back = read_back(path)
    assert back.colnames == table.column_names
    assert back["alert_id"][0] == 2**62 + 1
    assert back["alert_id"].mask.tolist() == [False, True, False]
    assert back["alert_id"][2] == 999999
    assert back["ra"][0] == 359.123456789012
    assert bool(np.ma.is_masked(back["ra"][1])) or np.isnan(back["ra"][1])
    assert [str(text) for text in back["object_id"][:2]] == ["ZTF18a, b", 'quote"d']
    assert list(back["flags"]) == [0, 1, 2]
    assert [bool(back["forced"][0]), bool(back["forced"][2])] == [True, False]
    assert back["ra"].unit == "deg"
    assert back["mjd"].unit == "d"


@pytest.mark.parametrize("suffix", [".parquet", ".ecsv", ".hdf5"])
def test_metadata_is_kept(table: pa.Table, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_table(table, str(path), WORDS, UNITS)
    if suffix == ".parquet":
        schema = pq.read_schema(path)
        kept = {key.decode(): value.decode() for key, value in schema.metadata.items()}
        assert schema.field("ra").metadata[b"unit"] == b"deg"
    else:
        kept = dict(read_back(path).meta)
    assert {key: kept[key] for key in (*WORDS, "made_by")} == {**WORDS, "made_by": "a test"}


def test_digits_beyond_what_numbers_are_worth_go() -> None:
    plain = pa.table({"x": [1.23456789, None], "flux": [123456789.4, 0.00123456789], "n": [1, 2]})
    short = rounded(plain, {"x": 3}).to_pydict()
    assert short == {"x": [1.235, None], "flux": [123457000.0, 0.00123457], "n": [1, 2]}


def test_what_a_column_means_is_kept(tmp_path: Path) -> None:
    plain = pa.table({"x": [1.0]})
    write_table(plain, str(tmp_path / "t.ecsv"), {"shape": [3, 4]}, descriptions={"x": "column"})
    back = Table.read(tmp_path / "t.ecsv")
    assert (back["x"].description, list(back.meta["shape"])) == ("column", [3, 4])
    write_table(plain, str(tmp_path / "t.parquet"), {"shape": [3, 4]}, {"x": "pix"}, {"x": "column"})
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.field("x").metadata == {b"description": b"column", b"unit": b"pix"}
    assert schema.metadata[b"shape"] == b"[3, 4]"


def test_fits_and_votable_keep_metadata_in_their_own_places(table: pa.Table, tmp_path: Path) -> None:
    write_table(table, str(tmp_path / "t.fits"), WORDS)
    header = fits.getheader(tmp_path / "t.fits", 1)
    assert header["TAPETUM"] == "1.2.3"
    assert "%%a_longer_key=%CF%80%20is%20long" in str(header["HISTORY"])  # as `read_table` reads it
    assert "CHECKSUM" in header
    write_table(table, str(tmp_path / "t.vot"), WORDS)
    infos = {info.name: info.value for info in parse(tmp_path / "t.vot").resources[0].infos}
    assert infos["a_longer_key"] == WORDS["a_longer_key"]


def test_an_empty_table_is_a_table(table: pa.Table, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write_table(table.slice(0, 0), str(tmp_path / f"e{suffix}"), WORDS, UNITS)
    assert (tmp_path / "e.csv").read_text() == ",".join(table.column_names) + "\n"
    assert len(read_back(tmp_path / "e.fits")) == 0


def test_stdout_is_csv(table: pa.Table, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_table(table.select(["flags", "object_id"]), "-")
    assert capfdbinary.readouterr().out == b'flags,object_id\n0,"ZTF18a, b"\n1,"quote""d"\n2,\n'


def test_dictionary_columns_are_plain_text_outside(tmp_path: Path) -> None:
    table = pa.table({"survey": pa.array(["ztf", "ztf", "lsst"]).dictionary_encode()})
    write_table(table, str(tmp_path / "d.csv"))
    write_table(table, str(tmp_path / "d.fits"))
    assert (tmp_path / "d.csv").read_text() == 'survey\n"ztf"\n"ztf"\n"lsst"\n'
    assert list(read_back(tmp_path / "d.fits")["survey"]) == ["ztf", "ztf", "lsst"]


@pytest.mark.parametrize("path", ["scores.txt", "scores", "scores.parquet.zip"])
def test_unknown_suffix_names_the_known(path: str) -> None:
    with pytest.raises(UsageError, match=r"\.parquet \.csv \.ecsv"):
        table_format(path)


def test_nested_columns_only_fit_parquet(tmp_path: Path) -> None:
    table = pa.table({"history": [[1.0, 2.0], []]})
    write_table(table, str(tmp_path / "n.parquet"))
    for suffix in (".csv", ".ecsv"):
        with pytest.raises(UsageError, match="history"):
            write_table(table, str(tmp_path / f"n{suffix}"))
        assert not (tmp_path / f"n{suffix}").exists()
