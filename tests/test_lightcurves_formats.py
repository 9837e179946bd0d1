"""Light curves in and out of every format, against real files, golden documents and each other."""

import json
import pickle

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.core.errors import FormatError, InputError, LimitError, TapetumError, UsageError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.columns import CURVE_NAMES, Reading
from tapetum.lightcurves.formats.hats import write_hats
from tapetum.lightcurves.formats.opening import curves_of, open_curves, write_curves
from tapetum.lightcurves.formats.sources import Given
from tapetum.lightcurves.wanted import NAMES, read_wanted
from tapetum.pipelines.lightcurve_classify import IDS, with_keys

TABLES = ("csv", "ecsv", "fits", "vot", "xml", "hdf5", "h5")


@pytest.fixture
def curves(rng):
    """Three curves of ZTF, each with points in no order."""
    sizes = [5, 1, 7]
    table = pa.table(
        {
            "lc_id": ["10245362000000", "10245362000001", "10245362000007"],
            "object_id": ["a", "a", "b"],
            "band": ["ztfr", "ztfr", "ztfr"],
            "ra": [10.0, 10.5, 200.0],
            "dec": [-20.0, 20.0, 80.0],
            "field": [245, 245, 245],
            "rcid": [36, 36, 36],
            "time_system": ["hjd", "hjd", "hjd"],
            "label": ["RRab", None, "EW, maybe"],
        },
        metadata={"catalogue": "made up", "date": "2026-11-20"},
    )
    return LightCurves.of_lists(
        [2458000.5 + rng.uniform(0, 900, n) for n in sizes],
        [np.float32(rng.normal(18, 1, n)) for n in sizes],
        [np.float32(rng.uniform(0.01, 0.1, n)) for n in sizes],
        table,
        [rng.integers(0, 2, n) * 32768 for n in sizes],
    )


def points(curves):
    return [[column.tolist() for column in curve] for curve in curves]


def same(one, other):
    """Ids, points and flags are the same."""
    assert one.ids == other.ids
    assert points(one) == points(other)
    flags = [np.zeros(len(part.time)) if part.flags is None else part.flags for part in (one, other)]
    assert flags[0].tolist() == flags[1].tolist()


# ---- real files ----------------------------------------------------------------------------------------------------


def test_the_nested_file_of_the_goldens(real_data):
    path = real_data / "lightcurves" / "lightcurves.parquet"
    raw, curves = pq.read_table(path), open_curves(path).read()
    assert curves.ids == raw["lc_id"].to_pylist()
    assert [time.tolist() for time, _, _ in curves] == raw["time"].to_pylist()
    assert curves.flags is not None
    assert curves.flags.tolist() == [flag for flags in raw["catflags"].to_pylist() for flag in flags]
    assert {"survey", "band", "ra", "dec", "label", "time_system"} < set(curves.table.column_names)
    assert all(column.flags.writeable for column in (curves.time, curves.mag, curves.magerr, curves.flags))


def test_labelled_curves_in_batches_and_in_parts(real_data):
    source = open_curves(real_data / "lightcurves" / "labelled" / "labelled_lightcurves.parquet")
    batches = [batch.ids for batch in source.batches(1000)]
    assert max(map(len, batches)) <= 1000
    ids = [lc_id for batch in batches for lc_id in batch]
    assert len(ids) == 6417
    parts = pickle.loads(pickle.dumps(source.parts()))
    assert len({part.name for part in parts}) == len(parts) == 13
    assert [lc_id for part in parts for lc_id in part.read().ids] == ids


def test_public_light_curves_of_ztf(real_data):
    path = real_data / "catalogs" / "ztf_dr5_000250_zg_c01_q1.parquet"
    curves, raw = open_curves(path).read(), pq.read_table(path)
    first = curves.table.slice(0, 1).to_pylist()[0]
    about = {
        "survey": "ztf",
        "band": "ztfg",
        "field": 250,
        "rcid": 0,
        "ccd": 1,
        "quadrant": 1,
        "time_system": "hmjd",
    }
    assert {key: first[key] for key in about} == about
    assert curves.ids == [str(number) for number in raw["objectid"].to_pylist()]
    assert curves.n_points.tolist() == raw["nepochs"].to_pylist()
    assert curves.table["ra"].to_pylist() == raw["objra"].to_pylist()


def test_a_matchfile_gives_the_golden_documents(real_data):
    folder = real_data / "catalogs"
    curves = open_curves(folder / "ztf_000245_zr_c10_q1_match.pytable").read().ordered()
    documents = json.loads((folder / "golden_documents_ztf_000245_zr_c10_q1.json").read_text())
    assert curves.ids == [str(document["_id"]) for document in documents]
    rows = curves.table.to_pylist()
    for row, (time, mag, magerr), document in zip(rows, curves, documents, strict=True):
        for column, key in ((time, "hjd"), (mag, "mag"), (magerr, "magerr")):
            np.testing.assert_allclose(column, [point[key] for point in document["data"]], atol=6e-6, rtol=0)
        assert (row["field"], row["ccd"], row["quadrant"], row["rcid"]) == (245, 10, 1, document["rc"])
        assert (row["ra"], row["dec"], row["nobs"]) == (document["ra"], document["dec"], document["nobs"])
        assert row["refmag"] == pytest.approx(document["refmag"], abs=6e-4)
    assert curves.flags is not None
    expected = [point["catflags"] for document in documents for point in document["data"]]
    assert curves.flags.tolist() == expected


def test_the_documents_themselves_are_light_curves_too(real_data):
    text = (real_data / "catalogs" / "golden_documents_ztf_000245_zr_c10_q1.json").read_text()
    curves = curves_of(pa.Table.from_pylist(json.loads(text)), "an answer")
    assert curves.ids[0] == "10245362000000"
    assert curves.n_points.sum() == 336
    first = curves.table.slice(0, 1).to_pylist()[0]
    assert (first["band"], first["ccd"], first["quadrant"], first["time_system"]) == ("ztfr", 10, 1, "hjd")


def test_a_matchfile_of_ptf(real_data):
    """Two exposures, so no relative photometry: magnitudes are apertures' plus the zero point."""
    path = real_data / "catalogs" / "PTF_d002867_f01_c01_sexcat_match.pytable"
    curves = open_curves(path).read()
    rows = curves.table
    assert len(curves) == 833
    assert len(curves.time) == 1564
    assert set(rows["survey"].to_pylist()) == {"ptf"}
    assert set(rows["ccd"].to_pylist()) == {1}
    good = (rows["ngoodobs"].to_numpy() == 2) & (curves.n_points == 2)
    means = np.array([mag.mean() for _, mag, _ in curves])
    np.testing.assert_allclose(means[good], rows["uncalibMeanMag"].to_numpy()[good], atol=0.001)
    assert good.sum() > 300
    assert 0.0001 < curves.magerr.min() < curves.magerr.max() < 1
    assert curves.flags is not None
    assert 0.7 < np.mean(curves.flags == 0) < 1


def test_points_of_one_programme(real_data):
    path = real_data / "catalogs" / "ztf_000245_zr_c10_q1_match.pytable"
    with h5py.File(path) as file:
        programs = file["matches/sourcedata"]["programid"]
    public = open_curves(path, Reading(programs=(1,))).read()
    assert len(public.time) == (programs == 1).sum()
    both = open_curves(path, Reading(programs=(1, 2, 3))).read()
    assert len(both.time) == len(programs)
    with pytest.raises(FormatError, match="no column programid"):
        open_curves(real_data / "lightcurves" / "lightcurves.parquet", Reading(programs=(1,)))


@pytest.mark.parametrize(
    "name", ["igaps-dr1-215a-small.fits.gz", "ztf_source_features_331_2_3_7.parquet", "README.md"]
)
def test_what_is_no_light_curve_is_named_with_what_it_has(real_data, name):
    with pytest.raises(FormatError) as caught:
        open_curves(real_data / "catalogs" / name)
    assert name in str(caught.value)
    assert any(
        words in str(caught.value) for words in ("It has: name RA DEC", "It has: _id ra dec", "suffix '.md'")
    )


# ---- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "layout"),
    [("parquet", "nested"), ("parquet", "long"), *((suffix, "long") for suffix in TABLES)],
)
def test_written_and_read_again_nothing_is_lost(curves, tmp_path, suffix, layout):
    path = tmp_path / f"curves.{suffix}"
    assert write_curves(curves, path, layout, {"code": "tapetum 1"}) == 3
    back = open_curves(path).read()
    same(back, curves)
    added = {"ccd": [10, 10, 10], "quadrant": [1, 1, 1], "survey": ["ztf"] * 3}
    assert {**curves.table.to_pydict(), **added} == {
        name: [value if value != "" else None for value in column]
        for name, column in back.table.to_pydict().items()
    }
    if suffix != "csv":  # which has no place for them
        words = {key.decode(): value.decode() for key, value in back.table.schema.metadata.items()}
        expected = {"catalogue": "made up", "date": "2026-11-20", "code": "tapetum 1"}
        assert words == expected
        again = tmp_path / f"again.{suffix}"
        write_curves(open_curves(path), again, layout)
        same(open_curves(again).read(), curves)
        assert open_curves(again).read().table.schema.metadata == back.table.schema.metadata


def test_units_come_back(curves, tmp_path):
    write_curves(curves, tmp_path / "a.fits")
    field = open_curves(tmp_path / "a.fits").read().table.schema.field("ra")
    assert field.metadata == {b"unit": b"deg"}


def test_other_units_become_ours(tmp_path):
    from astropy.table import Table

    columns = {"time": [86400.0, 172800.0], "mag": [18000.0, 18100.0], "magerr": [0.1, 0.2]}
    units = {"time": "s", "mag": "mmag", "magerr": "mag"}
    Table(columns, units=units).write(tmp_path / "a.ecsv")
    curves = open_curves(tmp_path / "a.ecsv").read()
    assert points(curves) == [[[1, 2], [18, pytest.approx(18.1)], [0.1, 0.2]]]


def test_a_text_may_begin_late_in_a_csv(tmp_path, monkeypatch):
    monkeypatch.setattr("tapetum.lightcurves.formats.tables.BLOCK", 256)
    rows = [f"{i},{i}.5,18,0.1,{'RRab' if i > 50 else ''},{i % 3 + 1}" for i in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["lc_id,mjd,mag,magerr,label,fid", *rows]) + "\n")
    table = open_curves(tmp_path / "a.csv").read().table
    assert table["label"].to_pylist()[49:52] == [None, None, "RRab"]
    assert table["band"].to_pylist()[:3] == ["ztfg", "ztfr", "ztfi"]
    assert table["lc_id"].to_pylist()[:3] == ["0", "1", "2"]


def test_a_curve_without_points_survives_in_nested_files(curves, tmp_path):
    empty = curves.where(np.repeat([True, False, True], [5, 1, 7]))
    write_curves(empty, tmp_path / "a.parquet")
    assert open_curves(tmp_path / "a.parquet").read().n_points.tolist() == [5, 0, 7]
    assert write_curves(empty, tmp_path / "a.csv") == 2
    assert open_curves(tmp_path / "a.csv").read().ids == [curves.ids[0], curves.ids[2]]


def test_nothing_is_written_as_nothing(curves, tmp_path):
    assert write_curves(curves.take(np.array([], int)), tmp_path / "a.parquet") == 0
    assert len(open_curves(tmp_path / "a.parquet").read()) == 0
    with pytest.raises(InputError, match="no light curves to write"):
        write_curves(curves.take(np.array([], int)), tmp_path / "hats")


def test_public_light_curves_of_ztf_are_written_under_their_names(curves, tmp_path):
    path = tmp_path / "ztf.parquet"
    write_curves(curves, path, "ztf-dr")
    raw = pq.read_table(path)
    wanted = [
        "objectid",
        "filterid",
        "fieldid",
        "rcid",
        "objra",
        "objdec",
        "nepochs",
        "hmjd",
        "mag",
        "magerr",
        "catflags",
    ]
    assert raw.column_names == wanted
    assert raw["filterid"].to_pylist() == [2, 2, 2]
    back = open_curves(path).read()
    np.testing.assert_allclose(back.time, curves.time - 2400000.5, atol=1e-9)
    assert set(back.table["time_system"].to_pylist()) == {"hmjd"}
    with pytest.raises(UsageError, match="column band, field"):
        write_curves(LightCurves.of_lists([[1.0]], [[1.0]], [[1.0]]), path, "ztf-dr")


def test_a_matchfile_is_written_and_read(curves, tmp_path):
    path = tmp_path / "own.pytable"
    assert write_curves(curves, path) == 3
    back = open_curves(path).read()
    same(back, curves)
    assert back.table["nobs"].to_pylist() == [5, 1, 7]
    with h5py.File(path) as file:
        assert file["matches/sourcedata"].attrs["CLASS"] == b"TABLE"
        assert file["matches/sourcedata"].attrs["FIELD_1_NAME"] == b"hjd"
    mixed = LightCurves(
        **{**vars(curves), "table": curves.table.set_column(2, "band", [["ztfg", "ztfr", "ztfr"]])}
    )
    with pytest.raises(UsageError, match="one quadrant"):
        write_curves(mixed, path)
    named = LightCurves(**{**vars(curves), "table": curves.table.set_column(0, "lc_id", [["x", "y", "z"]])})
    with pytest.raises(UsageError, match="lc_id is not"):
        write_curves(named, path)


def test_suffix_and_layout_must_fit(curves, tmp_path):
    for path, layout in (("a.csv", "nested"), ("a", "long"), ("a.parquet", "hats"), ("a.png", None)):
        with pytest.raises(UsageError, match=r"a\.?"):
            write_curves(curves, tmp_path / path, layout)
    assert list(tmp_path.glob("a*")) == []


def test_files_with_other_columns_do_not_go_into_one(curves, tmp_path):
    write_curves(curves, tmp_path / "a.parquet")
    other = LightCurves(**{**vars(curves), "table": curves.table.append_column("colour", [[1, 2, 3]])})
    write_curves(other, tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="colour"):
        write_curves(open_curves([tmp_path / "a.parquet", tmp_path / "b.parquet"]), tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()
    write_curves(open_curves([tmp_path / "b.parquet", tmp_path / "a.parquet"]), tmp_path / "c.parquet")
    assert open_curves(tmp_path / "c.parquet").read().table["colour"].to_pylist() == [
        1,
        2,
        3,
        None,
        None,
        None,
    ]


# ---- long tables ---------------------------------------------------------------------------------------------------


def scattered(rng, n_rows, n_ids, *, text):
    """Rows of ids and bands in no order, and what curves they make: (id, band) -> numbers of rows."""
    ids = rng.integers(0, n_ids, n_rows)
    bands = rng.choice(["g", "r"], n_rows)
    names = [f"star{number}" for number in ids] if text else (ids + 10**15).tolist()
    table = pa.table(
        {"objid": names, "band": bands.tolist(), "mjd": np.arange(n_rows) * 1.0, "mag": rng.normal(size=n_rows),
         "magerr": np.ones(n_rows), "ra": ids * 0.1, "dec": ids * 0.1}
    )  # fmt: skip
    expected = {}
    for row, (name, band) in enumerate(zip(names, bands, strict=True)):
        expected.setdefault(f"{name}-{band}", []).append(float(row))
    return table, expected


def as_dict(source, n=10):
    found = {}
    for batch in source.batches(n):
        assert 0 < len(batch) <= n
        for name, (time, _, _) in zip(batch.ids, batch, strict=True):
            assert name not in found
            found[name] = time.tolist()
    return found


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_rows_of_a_curve_may_be_anywhere(rng, tmp_path, monkeypatch, text, suffix):
    """In memory, sorted onto shelves, and, when rows of an id are together, cut out of the stream."""
    monkeypatch.setattr("tapetum.lightcurves.formats.parquet.ROWS_AT_A_TIME", 64)
    monkeypatch.setattr("tapetum.lightcurves.formats.tables.BLOCK", 4096)
    table, expected = scattered(rng, 1000, 57, text=text)
    together = table.take(pa.array(np.argsort(table["ra"].to_numpy(), kind="stable")))
    for number, content in enumerate((table, together)):
        path = tmp_path / f"{number}.{suffix}"
        if suffix == "csv":
            pa.csv.write_csv(content, path)
        else:
            pq.write_table(content, path)
        whole = as_dict(open_curves(path))
        assert whole == expected
        few = open_curves(path, Reading(memory_rows=100))
        assert as_dict(few) == expected
        assert list(as_dict(few)) == list(as_dict(pickle.loads(pickle.dumps(few))))
    assert list(whole) == list(as_dict(few, n=3))  # together: in the order of the file
    about = open_curves(path).read().table
    assert about["object_id"].to_pylist() == [name.rsplit("-", 1)[0] for name in about["lc_id"].to_pylist()]


def test_one_star_in_a_file_without_ids(tmp_path):
    path = tmp_path / "rr_lyr.csv"
    path.write_text("t,m,e\n1,7.1,0.1\n2,7.2,0.1\n")
    curves = open_curves(path).read()
    assert curves.ids == ["rr_lyr"]
    assert points(curves) == [[[1, 2], [7.1, 7.2], [0.1, 0.1]]]
    path.write_text("t,m,e,filter\n1,7.1,0.1,V\n2,7.2,0.1,B\n3,7.3,0.1,V\n")
    two = open_curves(path).read()
    assert two.ids == ["rr_lyr-V", "rr_lyr-B"]
    assert two.table["object_id"].to_pylist() == ["rr_lyr", "rr_lyr"]
    with pytest.raises(LimitError, match="no column of ids"):
        open_curves(path, Reading(memory_rows=1)).read()


def test_the_columns_of_irsa_s_service(tmp_path):
    path = tmp_path / "irsa.csv"
    path.write_text(
        "oid,expid,hjd,mjd,mag,magerr,catflags,filtercode,ra,dec,field,ccdid,qid\n"
        "686103400034440,1,2458204.8,58204.3,15.1,0.01,0,zr,298.0025,29.87147,686,9,3\n"
        "686103400034440,2,2458205.8,58205.3,15.2,0.01,32768,zr,298.0025,29.87147,686,9,3\n"
    )
    curves = open_curves(path).read()
    row = curves.table.to_pylist()[0]
    expected = {
        "lc_id": "686103400034440",
        "band": "ztfr",
        "field": 686,
        "ccd": 9,
        "quadrant": 3,
        "time_system": "hjd",
    }
    assert {key: row[key] for key in expected} == expected
    assert curves.time.tolist() == [2458204.8, 2458205.8]
    assert curves.flags is not None
    assert curves.flags.tolist() == [0, 32768]
    modified = open_curves(path, Reading(columns={"time": "mjd", "lc_id": "expid"}, keep=("oid",))).read()
    assert modified.ids == ["1", "2"]
    assert modified.time.tolist() == [58204.3, 58205.3]
    assert modified.table["oid"].to_pylist() == [686103400034440] * 2


def test_a_name_means_the_same_for_curves_lists_and_features(tmp_path):
    """But for ZTF's `objectid`, which is of a light curve, while the `objectID` of a list is of a source."""
    curves = {name: key for key in ("lc_id", "object_id") for name in CURVE_NAMES[key] if name != "objectid"}
    for other in (NAMES, IDS):
        for key in ("lc_id", "object_id"):
            assert {curves.get(name, key) for name in other[key]} == {key}
    points = {"mjd": [1.0, 2, 3], "mag": [1.0, 2, 3], "magerr": [0.1] * 3}
    (tmp_path / "c.csv").write_text("ztf_id,name,mjd,mag,magerr\n01,007,1,1,0.1\n02,007,2,2,0.1\n")
    read = open_curves(tmp_path / "c.csv").read()
    assert (read.ids, read.table["object_id"].to_pylist()) == (["01", "02"], ["007", "007"])
    (tmp_path / "l.csv").write_text("ztf_id,name\n01,007\n02,007\n")
    assert read_wanted(tmp_path / "l.csv").to_pylist() == [
        {"object_id": "007", "lc_id": "01"},
        {"object_id": "007", "lc_id": "02"},
    ]
    assert with_keys(pa.table({"ztf_id": ["01"], "obj_id": ["007"]}), "t").to_pylist()[0]["lc_id"] == "01"
    only = curves_of(pa.table({"name": ["a", "a", "b"], **points}), "here")
    assert (only.ids, only.table["object_id"].to_pylist()) == (["a", "b"], ["a", "b"])


def test_mixed_bands_under_one_id_are_two_curves():
    table = pa.table({"lc_id": ["a", "a", "b", "a"], "band": ["g", "r", "g", "g"], "mjd": [1.0, 2, 3, 4],
                      "mag": [1.0, 2, 3, 4], "magerr": [0.1] * 4})  # fmt: skip
    curves = curves_of(table, "here")
    assert curves.ids == ["a-g", "a-r", "b"]
    assert curves.table["object_id"].to_pylist() == ["a", "a", "b"]
    assert [time.tolist() for time, _, _ in curves] == [[1, 4], [2], [3]]


# ---- nested tables -------------------------------------------------------------------------------------------------

LISTS = {
    "hmjd": [[2.0, 1.0], [], [3.0]],
    "mag": [[18.0, 19.0], [], [20.0]],
    "magerr": [[0.1, 0.2], [], [0.3]],
}


def nested(kind):
    """The same three curves as lists, as a struct of lists, or as a list of structs."""
    about = {"objectid": [7, 8, 9], "objra": [1.0, 2, 3], "objdec": [4.0, 5, 6]}
    if kind == "lists":
        return pa.table({**about, **LISTS})
    if kind == "struct":
        return pa.table(
            {**about, "lc": [dict(zip(LISTS, row, strict=True)) for row in zip(*LISTS.values(), strict=True)]}
        )
    return pa.table(
        {**about, "lc": [[dict(zip(LISTS, point, strict=True)) for point in zip(*row, strict=True)]
                         for row in zip(*LISTS.values(), strict=True)]},
        schema=pa.schema([("objectid", pa.int64()), ("objra", pa.float64()), ("objdec", pa.float64()),
                          ("lc", pa.list_(pa.struct([(name, pa.float64()) for name in LISTS])))]),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["lists", "struct", "structs"])
def test_every_kind_of_nesting_is_understood(tmp_path, kind):
    path = tmp_path / "nested.parquet"
    pq.write_table(nested(kind), path)
    for batches in (
        open_curves(path).batches(),
        open_curves(path).batches(1),
        [curves_of(nested(kind), "here")],
    ):
        found = [(name, time.tolist(), mag.tolist()) for batch in batches
                 for name, (time, mag, _) in zip(batch.ids, batch, strict=True)]  # fmt: skip
        assert found == [("7", [2, 1], [18, 19]), ("8", [], []), ("9", [3], [20])]
    sliced = curves_of(nested(kind).slice(2, 1), "here")
    assert (sliced.ids, sliced.time.tolist()) == (["9"], [3])


@pytest.mark.parametrize("kind", ["large", "fixed", "missing"])
def test_odd_lists(kind):
    table = nested("lists")
    if kind == "large":
        for name in LISTS:
            number = table.column_names.index(name)
            table = table.set_column(number, name, table[name].cast(pa.large_list(pa.float32())))
        assert curves_of(table, "here").time.tolist() == [2, 1, 3]
    elif kind == "fixed":
        values = [[1.0, 2.0], [3.0, 4.0]]
        table = pa.table({name: pa.array(values, pa.list_(pa.float64(), 2)) for name in LISTS})
        assert curves_of(table, "some/file.parquet").ids == ["file:0", "file:1"]
    else:
        lists = {**LISTS, "mag": [[18.0, None], None, [20.0]]}
        curves = curves_of(pa.table({"objectid": [7, 8, 9], **lists}), "here")
        np.testing.assert_array_equal(curves.mag, [18, np.nan, 20])


def test_a_band_for_every_point_makes_curves_of_each():
    points_ = [
        {"band": band, "mjd": time, "mag": 1.0, "magerr": 0.1}
        for band, time in (("g", 1.0), ("r", 2.0), ("g", 3.0))
    ]
    curves = curves_of(
        pa.Table.from_pylist([{"objectId": 1, "lc": points_}, {"objectId": 2, "lc": points_[:1]}]), "here"
    )
    assert curves.ids == ["1-g", "1-r", "2-g"]
    assert curves.table["object_id"].to_pylist() == ["1", "1", "2"]
    assert curves.table["band"].to_pylist() == ["g", "r", "g"]
    assert [time.tolist() for time, _, _ in curves] == [[1, 3], [2], [1]]


def test_lists_that_do_not_fit_together_are_refused():
    table = pa.table({"lc_id": ["a"], "time": [[1.0, 2.0]], "mag": [[1.0]], "magerr": [[1.0, 2.0]]})
    with pytest.raises(FormatError, match="here: a curve has 2 points in time and 1 in mag"):
        curves_of(table, "here")


def test_flags_keep_being_bad_whatever_their_type():
    flags = pa.array([[0, 2**40, 2**31, 5, None]], pa.list_(pa.int64()))
    times = [[1.0, 2, 3, 4, 5]]
    curves = curves_of(pa.table({"time": times, "mag": times, "magerr": times, "flags": flags}), "here")
    assert curves.flags is not None
    assert (curves.flags != 0).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.int64(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_ids_are_text_whatever_their_type(kind):
    ids = pa.array([7, 8, 9], pa.int64()).cast(pa.string())
    ids = ids.cast(pa.int64()).cast(kind) if pa.types.is_primitive(kind) else ids.cast(kind)
    table = nested("lists").set_column(0, "objectid", ids)
    assert curves_of(table, "here").ids == ["7", "8", "9"]


def test_a_curve_without_id_is_refused():
    table = nested("lists").set_column(0, "objectid", pa.array([7, None, 9]))
    with pytest.raises(FormatError, match="no lc_id"):
        curves_of(table, "here")


# ---- HATS ----------------------------------------------------------------------------------------------------------


def test_a_catalogue_is_written_as_hats_and_read_again(rng, tmp_path):
    n = 500
    ra, dec = rng.uniform(0, 360, n), np.rad2deg(np.arcsin(rng.uniform(-1, 1, n)))
    lists = [rng.normal(size=size) for size in rng.integers(0, 5, n)]
    table = pa.table(
        {"lc_id": [f"s{i}" for i in range(n)], "ra": ra, "dec": dec}, metadata={"catalogue": "made up"}
    )
    curves = LightCurves.of_lists(lists, lists, lists, table)
    folder = tmp_path / "catalogue"
    assert write_hats(Given("all", curves), folder, most_rows=20) == n
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "catalogue", "config"]
    parts = open_curves(folder).parts()
    assert len(parts) > 25
    assert all(0 < len(part.read()) <= 20 for part in parts)
    back = open_curves(folder).read()
    order = [back.ids.index(name) for name in curves.ids]
    same(back.take(np.array(order)), curves)
    assert (np.diff(back.table["_healpix_29"].to_numpy()) > 0).all()
    assert back.table.schema.metadata == {b"catalogue": b"made up"}
    listed = (folder / "partition_info.csv").read_text().split()[1:]
    assert [part.name.split("#")[1] for part in parts] == [
        "Norder={},Npix={}".format(*line.split(",")) for line in listed
    ]
    assert "hats_nrows=500\n" in (folder / "hats.properties").read_text()
    with pytest.raises(UsageError, match="exists already"):
        write_curves(curves, folder)
    write_hats(open_curves(folder), folder, overwrite=True)  # from itself, into fewer partitions
    assert len(open_curves(folder).parts()) == 12
    assert open_curves(folder).read().ids == back.ids


def test_sources_without_a_position_have_no_place_in_hats(curves, tmp_path):
    for missing, message in ((["ra"], "needs the column ra"), ([], "no position")):
        table = (
            curves.table.drop_columns(missing)
            if missing
            else curves.table.set_column(3, "ra", [[1.0, np.nan, 2]])
        )
        with pytest.raises(UsageError, match=message):
            write_curves(LightCurves(**{**vars(curves), "table": table}), tmp_path / "hats")
        assert not (tmp_path / "hats").exists()


@pytest.mark.parametrize("kind", ["lists", "struct", "structs"])
@pytest.mark.parametrize("suffix", [".parquet", "/part0.snappy.parquet"])
def test_other_people_s_hats(tmp_path, kind, suffix):
    """A collection with its margin, which is not read; partitions as files or as folders."""
    folder = tmp_path / "collection"
    for name, table in (("main", nested(kind)), ("main_margin", nested(kind).slice(0, 1))):
        for number, (order, pixel) in enumerate([(1, 47), (0, 4)]):
            path = folder / name / f"dataset/Norder={order}/Dir=0/Npix={pixel}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(number, 2 - number), path)
        (folder / name / "hats.properties").write_text("#HATS catalog\nobs_collection=main\n")
    (folder / "collection.properties").write_text("#HATS\nhats_primary_table_url=main\n")
    source = open_curves(folder)
    assert [part.name.rsplit("#", 1)[1] for part in source.parts()] == ["Norder=0,Npix=4", "Norder=1,Npix=47"]
    assert source.read().ids == ["8", "7", "8"]
    (folder / "collection.properties").write_text("hats_primary_table_url=../elsewhere\n")
    with pytest.raises(FormatError, match="hats_primary_table_url"):
        open_curves(folder)


def test_a_long_catalogue_in_hats(rng, tmp_path):
    table, expected = scattered(rng, 100, 5, text=True)
    path = tmp_path / "hats" / "dataset" / "Norder=0" / "Dir=0" / "Npix=1.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    (tmp_path / "hats" / "properties").write_text("dataproduct_type=source\n")
    assert as_dict(open_curves(tmp_path / "hats")) == expected


def test_hats_without_partitions(tmp_path):
    (tmp_path / "hats.properties").write_text("")
    with pytest.raises(FormatError, match="without partitions"):
        open_curves(tmp_path)


# ---- many files, bad files -----------------------------------------------------------------------------------------


def test_a_folder_is_all_its_files(curves, tmp_path):
    folder = tmp_path / "many"
    for number, suffix in enumerate(["csv", "parquet", "fits"]):
        write_curves(curves.take(np.array([number])), folder / f"{number}.{suffix}")
    (folder / "notes.txt").write_text("not light curves")
    source = open_curves(folder)
    assert source.read().ids == curves.ids
    assert [part.name for part in source.parts()] == [
        str(folder / name) for name in ("0.csv", "1.parquet", "2.fits")
    ]
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="no light curves in this folder"):
        open_curves(folder / "empty")


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.parquet: no such file"):
        open_curves(tmp_path / "nowhere.parquet")
    with pytest.raises(InputError, match="no light curves were named"):
        open_curves([])


def test_a_missing_column_is_named_with_all_that_are_there(tmp_path):
    path = tmp_path / "flux.csv"
    path.write_text("star,mjd,flux,flux_err\na,1,2,3\n")
    with pytest.raises(FormatError) as caught:
        open_curves(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "no column of mag, magerr" in message
    assert "It has: star mjd flux flux_err" in message
    with pytest.raises(FormatError, match="no column brightness; it has: star"):
        open_curves(path, Reading(columns={"mag": "brightness"}))
    named = open_curves(path, Reading(columns={"mag": "flux", "magerr": "flux_err", "lc_id": "star"}))
    assert named.read().mag.tolist() == [2]


def test_text_where_numbers_belong(tmp_path):
    (tmp_path / "a.csv").write_text("lc_id,mjd,mag,magerr\na,1,bright,0.1\n")
    with pytest.raises(FormatError, match=r"a\.csv.*bright"):
        open_curves(tmp_path / "a.csv").read()
    with pytest.raises(FormatError, match="column mag holds string"):
        curves_of(pa.table({"mjd": [1.0], "mag": ["bright"], "magerr": [0.1]}), "here")


def test_compression_that_nobody_can_undo_is_named(curves, tmp_path):
    path = tmp_path / "blosc.pytable"
    write_curves(curves, path)
    with h5py.File(path, "a") as file:
        rows = file["matches/sourcedata"][()]
        del file["matches/sourcedata"]
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((4,))
        how.set_filter(32099, h5py.h5z.FLAG_OPTIONAL)  # nobody's number
        kind = h5py.h5t.py_create(rows.dtype, logical=True)
        data = h5py.h5d.create(
            file["matches"].id, b"sourcedata", kind, h5py.h5s.create_simple(rows.shape), how
        )
        h5py.Dataset(data)[...] = rows
    with pytest.raises(InputError, match="hdf5plugin"):
        open_curves(path)


def test_an_hdf5_file_of_something_else(tmp_path):
    with h5py.File(tmp_path / "a.pytable", "w") as file:
        file.create_group("matches").create_group("sources")
    with pytest.raises(FormatError, match="not a matchfile"):
        open_curves(tmp_path / "a.pytable")


@pytest.mark.parametrize("suffix", ["parquet", "pytable", *TABLES])
def test_a_damaged_file_is_an_error_that_names_it(curves, rng, tmp_path, suffix):
    """Cut short, or with some bytes changed: read as something, or refused; never another error."""
    path = tmp_path / f"curves.{suffix}"
    write_curves(curves, path)
    content = path.read_bytes()
    refused = []
    for trial in range(12):
        bad = bytearray(content[: int(len(content) * trial / 12)] if trial < 6 else content)
        if trial >= 6 and suffix not in ("pytable", "hdf5", "h5"):  # the HDF5 library itself trusts its input
            for place in rng.integers(0, len(bad), 20):
                bad[place] = rng.integers(256)
        path.write_bytes(bad)
        try:
            open_curves(path).read()
        except TapetumError as problem:
            refused.append(str(problem))
    assert refused
    assert all(str(path) in message for message in refused)
