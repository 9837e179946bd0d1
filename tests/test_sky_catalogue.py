from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

from tapetum.core.errors import FormatError, InputError, LimitError, MissingExtraError, NetworkError
from tapetum.sky.catalogue import Catalogue, fetch_catalogue, read_catalogue

RA, DEC = [10.684, 10.7, 359.9], [41.27, -41.5, 89.0]


def plain():
    return Table({"RA": RA, "Dec": DEC, "gmag": [17.0, 18.0, np.nan], "e_gmag": [0.01, 0.02, np.nan]})


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".fits.gz", ".vot", ".xml", ".parquet"])
def test_every_kind_of_file_gives_the_same(tmp_path, suffix):
    path = tmp_path / f"stars{suffix}"
    table = plain()
    if suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({name: np.asarray(table[name]) for name in table.colnames}), path)
    elif suffix == ".csv":
        path.write_text("RA,Dec,gmag,e_gmag\n10.684,41.27,17.0,0.01\n10.7,-41.5,18.0,0.02\n359.9,89,,\n")
    else:
        table.write(
            path, format={".ecsv": "ascii.ecsv", ".vot": "votable", ".xml": "votable"}.get(suffix, "fits")
        )
    catalogue = read_catalogue(path, system="ps1")
    np.testing.assert_allclose(catalogue.ra, RA)
    np.testing.assert_allclose(catalogue.dec, DEC)
    assert list(catalogue.mags) == ["ps1::g"]
    np.testing.assert_allclose(catalogue.mags["ps1::g"], [17, 18, np.nan])
    np.testing.assert_allclose(catalogue.mag_errs["ps1::g"], [0.01, 0.02, np.nan])
    assert catalogue.name == str(path)


@pytest.mark.parametrize(
    ("ra", "dec"),
    [("ra", "dec"), ("RAJ2000", "DEJ2000"), ("_RAJ2000", "_DEJ2000"), ("ALPHA_J2000", "DELTA_J2000"),
     ("RA_ICRS", "DE_ICRS"), ("raMean", "decMean")],
)  # fmt: skip
def test_position_columns_by_any_usual_name(tmp_path, ra, dec):
    Table({ra: RA, dec: DEC}).write(tmp_path / "a.ecsv")
    np.testing.assert_allclose(read_catalogue(tmp_path / "a.ecsv").dec, DEC)


def test_units_are_honoured(tmp_path):
    table = Table({"ra": [0.5, 1.0] * u.rad, "dec": [600.0, -1200.0] * u.arcmin})
    table.write(tmp_path / "a.ecsv")
    catalogue = read_catalogue(tmp_path / "a.ecsv")
    np.testing.assert_allclose(catalogue.ra, np.rad2deg([0.5, 1.0]))
    np.testing.assert_allclose(catalogue.dec, [10, -20])
    hours = Table({"ra": [1.0, 2.0] * u.h, "dec": [1.0, 2.0] * u.deg})
    hours.write(tmp_path / "h.fits")
    np.testing.assert_allclose(read_catalogue(tmp_path / "h.fits").ra, [15, 30])
    (tmp_path / "s.csv").write_text('ra,dec,r\n"00:42:44.3","-41:16:09",17.5\n"23 59 59.0","+00 00 01",18\n')
    text = read_catalogue(tmp_path / "s.csv")
    np.testing.assert_allclose(text.ra, [10.68458333, 359.99583333], atol=1e-7)
    np.testing.assert_allclose(text.dec, [-41.26916667, 1 / 3600], atol=1e-7)
    Table({"ra": [1.0] * u.kg, "dec": [1.0]}).write(tmp_path / "kg.ecsv")
    with pytest.raises(FormatError, match="no angle"):
        read_catalogue(tmp_path / "kg.ecsv")


@pytest.mark.parametrize(
    ("columns", "bands"),
    [
        (["phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag"], ["gaia::g", "gaia::gbp", "gaia::grp"]),
        (["Gmag", "gmag"], ["gaia::g", "g"]),
        (["rMeanPSFMag", "rMeanPSFMagErr"], ["ps1::r"]),
        (["psfMag_i"], ["sdssi"]),
        (["Bmag", "Vmag", "g'mag", "r_mag"], ["bessellb", "bessellv", "sdssg", "sdssr"]),
        (["B1mag", "R1mag", "B2mag", "R2mag", "Imag"], ["bessellb", "besselli", "bessellr"]),
        (["g", "r", "g_err"], ["g", "r"]),
        (["mag_z", "zmag"], ["z"]),
        (["name_of_r", "flux"], []),
    ],
)
def test_magnitude_columns_mean_their_band(tmp_path, columns, bands):
    Table({"ra": RA, "dec": DEC, **{name: [17.0, 99.0, -999.0] for name in columns}}).write(
        tmp_path / "a.ecsv"
    )
    catalogue = read_catalogue(tmp_path / "a.ecsv")
    assert sorted(catalogue.mags) == sorted(bands)
    for mag in catalogue.mags.values():
        np.testing.assert_array_equal(mag, [17.0, np.nan, np.nan])  # placeholders are no magnitudes


def test_the_band_for_a_survey():
    def with_bands(*bands):
        return Catalogue("x", np.zeros(1), np.zeros(1), {band: np.zeros(1) for band in bands})

    assert with_bands("sdssr", "ps1::r").band_for("ztfr") == "ps1::r"
    assert with_bands("r", "g").band_for("ztfg") == "g"
    assert with_bands("gaia::g").band_for("ztfi") == "gaia::g"
    assert with_bands("ps1::g", "ps1::r").band_for("bessellv") == "ps1::g"
    assert with_bands("ps1::g", "ps1::r").band_for("clear") == "ps1::r"
    assert with_bands("bessellv").band_for("bessellv") == "bessellv"
    assert with_bands("sdssu").band_for("ztfr") is None


def test_selecting_and_matching():
    catalogue = Catalogue(
        "x",
        np.array([10.0, 10.001, 200.0]),
        np.zeros(3),
        {"r": np.arange(3.0)},
        {},
        np.array([False, True, False]),
    )
    near = catalogue.cone(10.0, 0.0, 0.01)
    assert len(near) == 2
    np.testing.assert_array_equal(near.extended, [False, True])
    index, apart = catalogue.match([10.00101, 50.0], [0.0, 0.0], 2.0)
    np.testing.assert_array_equal(index, [1, -1])
    assert apart[0] == pytest.approx(0.036, abs=1e-6)
    assert np.isnan(apart[1])


def test_bad_files_say_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no such catalogue"):
        read_catalogue(tmp_path / "none.csv")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(InputError, match="unknown kind"):
        read_catalogue(tmp_path / "a.doc")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(FormatError, match=r"no position columns.*x y"):
        read_catalogue(tmp_path / "a.csv")
    for name in ("a.fits", "a.parquet", "a.vot", "a.ecsv"):
        (tmp_path / name).write_bytes(b"\x00\xffgarbage\n" * 3)
        with pytest.raises(FormatError, match=name):
            read_catalogue(tmp_path / name)
    (tmp_path / "b.csv").write_text("ra,dec\nx,y\n")
    with pytest.raises(FormatError, match="neither a number nor an angle"):
        read_catalogue(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("ra,dec\n1,99\n,5\n")
    with pytest.raises(FormatError, match="no row has a usable position"):
        read_catalogue(tmp_path / "c.csv")
    with pytest.raises(InputError, match="photometric system"):
        read_catalogue(tmp_path / "c.csv", system="vega")


# ---- VizieR ----


def test_a_catalogue_from_vizier(vizier):
    table = Table({"_RAJ2000": RA * u.deg, "_DEJ2000": DEC * u.deg})
    table["rmag"] = MaskedColumn([17.0, 18.0, 0.0], mask=[False, False, True], unit="mag")
    table["e_rmag"] = [0.01, 0.02, 0.03]
    vizier.answer = vizier.votable(table)
    catalogue = fetch_catalogue("ps1", 10.7, 41.3, 0.5, server=vizier.url)
    np.testing.assert_allclose(catalogue.ra, RA)
    np.testing.assert_allclose(catalogue.mags["ps1::r"], [17.0, 18.0, np.nan])
    np.testing.assert_allclose(catalogue.mag_errs["ps1::r"], [0.01, 0.02, 0.03])
    [question] = vizier.questions
    assert question["path"] == ["/viz-bin/votable"]
    assert "II/349/ps1" in question["body"][0]
    assert "10.7" in question["body"][0]
    assert "rmag" in question["body"][0]


def test_galaxies_of_sdss_are_known(vizier):
    vizier.answer = vizier.votable(
        Table({"_RAJ2000": RA, "_DEJ2000": DEC, "class": [3, 6, 6], "gmag": [17.0, 18, 19]})
    )
    catalogue = fetch_catalogue("sdss12", 10.7, 41.3, 0.5, server=vizier.url)
    np.testing.assert_array_equal(catalogue.extended, [True, False, False])
    assert list(catalogue.mags) == ["sdssg"]


def test_an_empty_field_is_an_empty_catalogue(vizier):
    vizier.answer = vizier.votable(Table({"_RAJ2000": [1.0], "_DEJ2000": [1.0]})[:0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astroquery says so too
        assert len(fetch_catalogue("gaia-dr3", 10.7, 41.3, 0.5, server=vizier.url)) == 0


def test_trouble_with_the_server_has_its_own_errors(vizier):
    vizier.answer = vizier.votable(Table({"_RAJ2000": RA, "_DEJ2000": DEC}))
    with pytest.raises(LimitError, match="more than 2 objects"):
        fetch_catalogue("gaia-dr3", 10.7, 41.3, 0.5, server=vizier.url, max_rows=2)
    vizier.answer = b"<?xml version='1.0'?><VOTABLE><broken"
    with pytest.raises(NetworkError, match="VizieR"), pytest.warns():
        fetch_catalogue("gaia-dr3", 10.7, 41.3, 0.5, server=vizier.url)
    vizier.status = 500
    with pytest.raises(NetworkError, match="VizieR"):
        fetch_catalogue("gaia-dr3", 10.7, 41.3, 0.5, server=vizier.url)
    with pytest.raises(NetworkError, match="VizieR"):
        fetch_catalogue("gaia-dr3", 10.7, 41.3, 0.5, server="http://127.0.0.1:9")


def test_impossible_questions_are_refused():
    with pytest.raises(InputError, match=r"unknown catalogue 'ucac'.*gaia-dr3"):
        fetch_catalogue("ucac", 1, 1, 1)
    with pytest.raises(InputError, match="no such field"):
        fetch_catalogue("ps1", 1, 1, 90)


def test_without_astroquery_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "astroquery.vizier", None)
    monkeypatch.setitem(sys.modules, "astroquery.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"tapetum\[online\]"):
        fetch_catalogue("ps1", 1, 1, 1)
