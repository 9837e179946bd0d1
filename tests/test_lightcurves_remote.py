"""Light curves and what belongs to them out of a server that answers as Kowalski does, on real documents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.core.errors import FormatError, InputError, NetworkError, UsageError
from tapetum.core.http import HttpClient, Patience
from tapetum.lightcurves.around import (
    covering_cones,
    fetch_alert_statistics,
    fetch_bright_stars,
    fetch_curves_around,
    fetch_matches,
)
from tapetum.lightcurves.bright_stars import near_bright_stars
from tapetum.lightcurves.remote import (
    Quadrant,
    count_ids,
    curves_of,
    epochs_column,
    features_of,
    fetch_curves,
    fetch_features,
    fetch_ids,
    fetch_rows,
    position_of,
    quadrants_of,
)
from tapetum.lightcurves.wanted import coordinate_name, find_curves, read_ids, read_wanted, wanted_of
from tapetum.report.tables import write_table
from tapetum.sky.match import separation_arcsec
from tapetum.surveys.kowalski import Kowalski, Login

SOURCES, FEATURES = "ZTF_sources_20230109", "ZTF_source_features_DR16"
WHERE = Quadrant(245, 10, 1)


@pytest.fixture
def server(kowalski: Any) -> Iterator[Kowalski]:
    with HttpClient(Patience(connect_s=5, read_s=5, attempts=2, pause_s=0.01)) as client:
        yield Kowalski(kowalski.url, client, Login(kowalski.user, kowalski.password))


@pytest.fixture(scope="session")
def documents(real_data: Path) -> list[dict[str, Any]]:
    """Nine light curves of one ZTF quadrant, as Kowalski keeps them."""
    text = (real_data / "catalogs" / "golden_documents_ztf_000245_zr_c10_q1.json").read_text()
    return list(json.loads(text))


def made_up(number: int, **more: Any) -> dict[str, Any]:
    data = [
        {"hjd": 2458000.0 + i, "mag": 15.0 + i, "magerr": 0.01, "catflags": 0, "programid": 1}
        for i in range(3)
    ]
    place = {"radec_geojson": {"type": "Point", "coordinates": [number / 100 - 180.0, 10.0]}}
    return {
        "_id": number, "filter": 1, "field": 301, "ccd": 2, "quad": 3, "nobs": 3, "ra": number / 100, "dec": 10.0,
        "coordinates": place, "data": data, **more,
    }  # fmt: skip


def test_real_documents_become_light_curves(documents: list[dict[str, Any]]) -> None:
    curves = curves_of(documents)
    assert curves.ids == [str(document["_id"]) for document in documents]
    assert curves.n_points.tolist() == [len(document["data"]) for document in documents]
    first = documents[0]["data"]
    time, mag, magerr = next(iter(curves))
    assert time.tolist() == [point["hjd"] for point in first]
    assert mag.tolist() == [point["mag"] for point in first]
    assert magerr.tolist() == [point["magerr"] for point in first]
    assert curves.flags is not None
    assert curves.flags[: len(first)].tolist() == [point["catflags"] for point in first]
    row = curves.table.slice(0, 1).to_pylist()[0]
    assert row == {
        "lc_id": "10245362000000", "survey": "ztf", "band": "ztfr", "ra": 2.6104292, "dec": -22.4325758, "field": 245,
        "ccd": 10, "quadrant": 1, "n_points": 56, "time_system": "hjd",
    }  # fmt: skip


def test_programs_and_late_points_are_left_out(documents: list[dict[str, Any]]) -> None:
    document = made_up(1)
    for point, program in zip(document["data"], (1, 2, None), strict=True):
        point["programid"] = program
    assert curves_of([document], programs=(1,)).mag.tolist() == [
        15.0,
        17.0,
    ]  # a public release names no program
    assert curves_of([document], latest_hjd=2458001.0).mag.tolist() == [15.0, 16.0]
    public = curves_of(documents, programs=(1,))
    counts = [sum(point["programid"] == 1 for point in document["data"]) for document in documents]
    assert public.n_points.tolist() == counts == public.table["n_points"].to_pylist()


def test_points_may_lack_anything() -> None:
    bare = {"_id": "a", "data": [{"hjd": 1.0, "mag": None}, {"mag": 2.0, "magerr": math.nan}]}
    curves = curves_of([bare, {"_id": "b"}, {"_id": "c", "data": None}])
    assert curves.n_points.tolist() == [2, 0, 0]
    assert np.isnan(curves.mag).tolist() == [True, False]
    assert np.isnan(curves.time).tolist() == [False, True]
    assert curves.table["band"].to_pylist() == [None] * 3
    assert len(curves_of([])) == 0


@pytest.mark.parametrize(
    "document",
    [
        {"data": []},
        {"_id": 1, "data": [{"mag": "bright"}]},
        {"_id": 1, "data": [1, 2]},
        {"_id": 1, "data": 3},
        {"_id": 1, "field": "north"},
        {"_id": 1, "data": [{"catflags": "x"}]},
    ],
)
def test_what_is_no_light_curve_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match="document"):
        curves_of([document])


def test_positions_are_turned_back_by_half_a_circle() -> None:
    assert position_of({"ra": 1.5, "dec": -2.0, "coordinates": {}}) == (1.5, -2.0)
    assert position_of({"coordinates": {"radec_geojson": {"coordinates": [-177.5, 3.0]}}}) == (2.5, 3.0)
    assert all(math.isnan(value) for value in position_of({"ra": "1", "dec": 2, "coordinates": [1]}))


def test_curves_come_in_the_order_asked_for(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]]
) -> None:
    kowalski.catalogues[SOURCES] = documents
    wanted = [str(documents[k]["_id"]) for k in (4, 0, 7)]
    curves = fetch_curves(server, SOURCES, [wanted[0], "12345", *wanted[1:], wanted[0]])
    assert curves.ids == wanted
    assert curves.mag.tolist() == [p["mag"] for k in (4, 0, 7) for p in documents[k]["data"]]
    asked = kowalski.asked[0]["query"]
    assert asked["filter"]["_id"]["$in"][1] == 12345
    assert "data.chi" not in asked["projection"]
    assert len(fetch_curves(server, SOURCES, [])) == 0
    assert fetch_rows(server, SOURCES, wanted)["n_points"].to_pylist() == [
        documents[k]["nobs"] for k in (4, 0, 7)
    ]


def test_ids_of_a_quadrant(server: Kowalski, kowalski: Any, documents: list[dict[str, Any]]) -> None:
    kowalski.catalogues[SOURCES] = [*reversed(documents), made_up(5)]
    table = fetch_ids(server, SOURCES, WHERE, min_epochs=20, page=3)
    expected = sorted(document["_id"] for document in documents if document["nobs"] >= 20)
    assert table["lc_id"].to_pylist() == [str(number) for number in expected]
    assert len(kowalski.asked) > 2
    assert kowalski.asked[0]["query"]["filter"]["nobs"] == {"$gte": 20}
    some = fetch_ids(server, SOURCES, WHERE, min_epochs=0, skip=2, limit=4, page=3)
    assert some["lc_id"].to_pylist() == [str(n) for n in sorted(d["_id"] for d in documents)[2:6]]
    one = fetch_ids(server, SOURCES, WHERE, limit=1).to_pylist()[0]
    assert (one["field"], one["ccd"], one["quadrant"], one["band"], one["survey"]) == (
        245,
        10,
        1,
        "ztfr",
        "ztf",
    )


def test_a_catalogue_that_grows_between_pages_loses_nothing(server: Kowalski, kowalski: Any) -> None:
    kowalski.catalogues[SOURCES] = [made_up(number) for number in (10, 20, 30, 40)]

    def grow(body: dict[str, Any]) -> None:
        if len(kowalski.asked) == 2:
            kowalski.catalogues[SOURCES].insert(
                0, made_up(1)
            )  # before what was read: pages by number would shift

    kowalski.fault_of = grow
    table = fetch_ids(server, SOURCES, Quadrant(301, 2, 3), min_epochs=1, page=2)
    assert table["lc_id"].to_pylist() == ["10", "20", "30", "40"]


def test_the_number_of_epochs_has_two_names(server: Kowalski, kowalski: Any) -> None:
    assert (epochs_column(FEATURES), epochs_column(SOURCES)) == ("n", "nobs")
    kowalski.catalogues[FEATURES] = [made_up(n, n=10.0 * n) for n in range(1, 6)]
    table = fetch_ids(server, FEATURES, Quadrant(301, 2, 3), min_epochs=30)
    assert table["n_points"].to_pylist() == [30, 40, 50]
    assert fetch_ids(server, FEATURES, Quadrant(301, 2, 3), min_epochs=4, epochs="nobs").num_rows == 0


def test_quadrants_and_their_counts(server: Kowalski, kowalski: Any, documents: list[dict[str, Any]]) -> None:
    assert len(quadrants_of(301)) == 64
    assert quadrants_of(301, (2, 3), (4, 4)) == [Quadrant(301, 2, 4), Quadrant(301, 3, 4)]
    assert str(WHERE) == "field 245 CCD 10 quadrant 1"
    for ccds, quadrants in (((0, 4), (1, 4)), ((3, 2), (1, 4)), ((1, 16), (1, 5))):
        with pytest.raises(UsageError, match="ZTF has 1 to"):
            quadrants_of(301, ccds, quadrants)
    kowalski.catalogues[SOURCES] = documents
    counts = count_ids(server, SOURCES, quadrants_of(245, (10, 10), (1, 2)), min_epochs=1, threads=2)
    assert counts.to_pydict() == {
        "field": [245, 245], "ccd": [10, 10], "quadrant": [1, 2], "n_curves": [len(documents), 0],
    }  # fmt: skip


def test_stored_features_of_real_sources(server: Kowalski, kowalski: Any, real_data: Path) -> None:
    rows = pq.read_table(real_data / "catalogs" / "ztf_source_features_331_2_3_7.parquet").to_pylist()[:20]
    kowalski.catalogues[FEATURES] = [
        {**row, "coordinates": {"l": 1.0}, "dmdt": [[0.5] * 26] * 26} for row in rows
    ]
    ids = [str(row["_id"]) for row in rows]
    table = fetch_features(server, FEATURES, ids[::-1])
    assert table["lc_id"].to_pylist() == ids[::-1]
    assert "coordinates" not in table.column_names
    assert table["dmdt"].type == pa.list_(pa.float32(), 676)
    for name in ("period_EAOV", "f1_relamp1_ECE", "n", "name", "filters"):
        assert table[name].to_pylist() == [row[name] for row in rows][::-1]
    some = fetch_features(server, FEATURES, ids[:2], ["period_ECE", "absent"])
    assert some.column_names == ["lc_id", "period_ECE", "absent"]
    assert some["absent"].to_pylist() == [None, None]
    assert fetch_features(server, FEATURES, []).num_rows == 0


def test_documents_that_do_not_agree_are_named() -> None:
    with pytest.raises(NetworkError, match="feature ad"):
        features_of([{"_id": 1, "ad": 1.0}, {"_id": 2, "ad": [1.0]}])
    with pytest.raises(NetworkError, match="feature dmdt"):
        features_of([{"_id": 1, "dmdt": [[1.0]]}])
    mixed = features_of([{"_id": 1, "ad": 1}, {"_id": 2, "ad": 1.5, "sw": None}])
    assert mixed.to_pydict() == {"lc_id": ["1", "2"], "ad": [1.0, 1.5], "sw": [None, None]}


def star(number: int, ra: float, dec: float, **more: Any) -> dict[str, Any]:
    return {"_id": number, "coordinates": {"radec_geojson": {"coordinates": [ra - 180.0, dec]}}, **more}


def test_curves_around_positions_are_the_nearest_first(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]]
) -> None:
    kowalski.catalogues[SOURCES] = documents
    ra = np.array([documents[3]["ra"], 100.0, documents[0]["ra"]])
    dec = np.array([documents[3]["dec"] + 1 / 3600, 0.0, documents[0]["dec"]])
    table = fetch_curves_around(server, SOURCES, ra, dec, 400.0, at_a_time=2)
    assert len(kowalski.asked) == 2
    lon, lat = np.array([[d["ra"], d["dec"]] for d in documents]).T
    for number in range(3):
        mine = table.filter(pa.array(np.asarray(table["position"]) == number))
        apart = separation_arcsec(ra[number], dec[number], lon, lat)
        order = [k for k in np.argsort(apart) if apart[k] <= 400.0]
        assert mine["lc_id"].to_pylist() == [str(documents[k]["_id"]) for k in order]
        np.testing.assert_allclose(mine["separation_arcsec"].to_numpy(), apart[order], atol=1e-6)
    assert table["separation_arcsec"][0].as_py() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="finite"):
        fetch_curves_around(server, SOURCES, [math.nan], [1.0])


def test_the_nearest_entry_of_a_catalogue(server: Kowalski, kowalski: Any) -> None:
    kowalski.catalogues["Gaia_EDR3"] = [
        star(7, 10.0, 5.0 + 1.5 / 3600, parallax=1.0),
        star(8, 10.0, 5.0 - 0.5 / 3600, parallax=2.0),
        star(9, 10.0, 5.0 + 1.0 / 3600, parallax=3.0),
    ]
    table = fetch_matches(server, "Gaia_EDR3", [10.0, 20.0], [5.0, 5.0], ["parallax", "pmra"])
    assert table.to_pydict() == {
        "Gaia_EDR3___id": [8, None], "Gaia_EDR3__parallax": [2.0, None], "Gaia_EDR3__pmra": [None, None],
    }  # fmt: skip
    none = fetch_matches(server, "Gaia_EDR3", [20.0], [5.0], ["parallax"])
    assert none.schema.types == [pa.int64(), pa.float64()]


def test_alerts_are_counted_and_their_braai_averaged(server: Kowalski, kowalski: Any) -> None:
    kowalski.catalogues["ZTF_alerts"] = [
        star(1, 10.0, 5.0, classifications={"braai": 0.5, "acai_h": 0.0}),
        star(2, 10.0, 5.0, classifications={"braai": 0.9, "braai_version": "d6_m9"}),
        star(3, 10.0, 5.0, classifications={"braai": math.nan}),
        star(4, 30.0, 5.0),
    ]
    table = fetch_alert_statistics(server, [10.0, 20.0, 30.0], [5.0, 5.0, 5.0])
    assert table["n_ztf_alerts"].to_pylist() == [3, 0, 1]
    assert table["mean_ztf_alert_braai"].to_pylist() == pytest.approx([0.7, 0.0, 0.0])


def test_bright_stars_are_asked_for_by_field_not_by_source(
    server: Kowalski, kowalski: Any, rng: np.random.Generator
) -> None:
    ra, dec = 359.8 + rng.uniform(0, 0.5, 300), 40.0 + rng.uniform(0, 0.4, 300)
    stars = np.column_stack(
        [359.5 + rng.uniform(0, 1.1, 80), 39.7 + rng.uniform(0, 1, 80), rng.uniform(8, 16, 80)]
    )
    stars[1] = ra[0], dec[0] + 5 / 3600, 9.0
    kowalski.catalogues["Gaia_EDR3"] = [
        star(n, lon % 360, lat, phot_g_mean_mag=g, **({"bp_rp": 0.5} if n % 2 else {"phot_bp_mean_mag": g}))
        for n, (lon, lat, g) in enumerate(stars.tolist())
    ]
    table = fetch_bright_stars(server, ra % 360, dec)
    assert len(kowalski.asked) < 20
    found = set(table["gaia_id"].to_pylist())
    assert len(found) == table.num_rows
    near = [
        n
        for n, (lon, lat, g) in enumerate(stars)
        if g < 13 and (separation_arcsec(lon, lat, ra, dec) <= 300).any()
    ]
    assert set(near) <= found
    assert len(near) > 10
    assert max(table["phot_g_mean_mag"].to_pylist()) < 13
    row = dict(zip(table["gaia_id"].to_pylist(), table["bp_rp"].to_pylist(), strict=True))
    assert {row[n] for n in found if n % 2} == {0.5}
    assert {row[n] for n in found if n % 2 == 0} == {None}
    places = [table[name].to_numpy() for name in ("ra", "dec", "phot_g_mean_mag", "bp_rp")]
    assert near_bright_stars(ra % 360, dec, *places).excluded[0]


def test_cones_hold_all_that_they_must(rng: np.random.Generator) -> None:
    for centre in (0.0, 60.0, -89.9, 89.95):
        ra, dec = rng.uniform(0, 360, 200), np.clip(centre + rng.uniform(-0.3, 0.3, 200), -90, 90)
        cones = np.array(covering_cones([*ra, math.nan], [*dec, 1.0], 30.0))
        room = cones[:, 2] - separation_arcsec(ra[:, None], dec[:, None], cones[:, 0], cones[:, 1])
        assert (room.max(axis=1) >= 30.0 - 1e-6).all()
    assert covering_cones([], [], 30.0) == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".h5"])
@pytest.mark.parametrize(
    "names", [("ra", "dec", "obj_id"), ("R.A.", "Decl.", "OBJ_ID"), ("radeg", "DE_deg", "name")]
)
def test_tables_of_coordinates_under_any_name(
    tmp_path: Path, suffix: str, names: tuple[str, str, str]
) -> None:
    path = tmp_path / f"sources{suffix}"
    columns = dict(zip(names, ([282.714726, -1.0], [6.370752, 5.0], ["obj_1", "obj_2"]), strict=True))
    write_table(pa.table({**columns, "period": [1.0, 2.0]}), str(path))
    wanted = read_wanted(path)
    assert wanted.column_names == ["object_id", "ra", "dec", "period"]
    assert wanted["object_id"].to_pylist() == ["obj_1", "obj_2"]
    assert wanted["ra"].to_pylist() == [282.714726, 359.0]


def test_sources_without_a_name_get_one() -> None:
    assert coordinate_name(282.714726, 6.370752) == "J185051.53+062214.7"
    assert coordinate_name(0.1, -0.05) == "J000024.00-000300.0"
    assert coordinate_name(359.9999999, -89.99999) == "J235959.99-895959.9"
    assert wanted_of(pa.table({"ra": [0.1], "dec": [-0.05]}), "t")["object_id"].to_pylist() == [
        "J000024.00-000300.0"
    ]
    by_id = wanted_of(pa.table({"ZTFID": [10487361000071.0]}), "t")
    assert by_id.to_pydict() == {"object_id": ["ZTF_10487361000071"], "lc_id": ["10487361000071"]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [1]}, "no columns of positions"),
        ({"ra": [1.0], "dec": [91.0]}, "row 1: dec is 91.0"),
        ({"ra": [1.0, None], "dec": [1.0, 1.0]}, "row 2: ra is nan"),
        ({"ra": ["a"], "dec": [1.0]}, "column ra is not in degrees"),
        ({"_id": [1.5]}, "no whole numbers"),
        ({"_id": [1, None]}, "1 light-curve ids are missing"),
    ],
)
def test_tables_that_name_no_source_are_refused(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        wanted_of(pa.table(columns), "t.csv")


def test_ids_are_read_from_tables_and_from_bare_datasets(tmp_path: Path) -> None:
    bare, ours, other = tmp_path / "data_ccd_02_quad_3.h5", tmp_path / "ids.h5", tmp_path / "positions.h5"
    with h5py.File(bare, "w") as file:  # as the described tool writes it: numbers with a point
        file["dataset_ccd_2_quad_3_field_301"] = np.array([10301072000001, 10301072000002], np.float64)
    assert read_ids(bare) == ["10301072000001", "10301072000002"]
    write_table(pa.table({"lc_id": ["7", "9", "7"]}), str(ours))
    assert read_ids(ours) == ["7", "9"]
    write_table(pa.table({"ra": [1.0], "dec": [1.0]}), str(other))
    with pytest.raises(FormatError, match="no column of light-curve ids"):
        read_ids(other)
    with pytest.raises(InputError, match="no such file"):
        read_ids(tmp_path / "absent.h5")
    bare.write_bytes(b"no hdf5")
    with pytest.raises(FormatError, match=r"data_ccd_02_quad_3\.h5"):
        read_ids(bare)


def test_curves_of_named_sources_by_position_and_by_id(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]]
) -> None:
    kowalski.catalogues[SOURCES] = documents
    first, second = documents[2], documents[5]
    places = pa.table({"name": ["near", "far"], "ra": [first["ra"], 200.0], "dec": [first["dec"], 10.0]})
    found = find_curves(server, SOURCES, wanted_of(places, "t"))
    assert found["object_id"].to_pylist() == ["near"]
    assert found["lc_id"].to_pylist() == [str(first["_id"])]
    ids = pa.table({"name": ["b", "a", "gone"], "ztf_id": [second["_id"], first["_id"], 1]})
    by_id = find_curves(server, SOURCES, wanted_of(ids, "t"))
    assert by_id["object_id"].to_pylist() == ["b", "a"]
    assert by_id["ra"].to_pylist() == [second["ra"], first["ra"]]
    assert find_curves(server, SOURCES, wanted_of(ids, "t"), min_epochs=10_000).num_rows == 0
