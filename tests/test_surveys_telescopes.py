"""Telescopes: found by any spelling, recognised by what their images say, nothing invented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tapetum.core.errors import InputError
from tapetum.surveys.profile import ImageDefaults, SurveyProfile, load_alert_profile, load_profile
from tapetum.surveys.telescopes import (
    archive_path,
    band_of,
    file_name_groups,
    find_telescope,
    generic_profile,
    keys_of,
    mask_file_names,
    recognise,
    telescope_names,
)

GMADET = (
    "FRAM-Auger",
    "FRAM-CTA-N",
    "IRIS",
    "KAIT",
    "Lisniky-AZT8",
    "OAJ-T80",
    "TCA",
    "TCH",
    "TRE",
    "UBAI-T60N",
    "UBAI-T60S",
)
FRAME = "ztf_20200924431759_000655_zr_c13_o_q3"

MINE = """
name = "mine"
title = "My telescope"
aliases = ["My-40cm"]
[image]
recognise = [{ TELESCOP = "40cm", INSTRUME = "cam" }, { OBSERVER = "^me$" }]
[image.keys]
gain = []
[image.defaults]
gain = 1.5
[image.bands]
"Red" = "bessellr"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "config" / "tapetum" / "surveys"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(MINE)
    return folder / "mine.toml"


@pytest.mark.parametrize("name", [*GMADET, "ztf", "DECam", "generic"])
def test_every_promised_name_is_found_however_it_is_spelt(name):
    assert name in telescope_names()
    found = find_telescope(name)
    for spelling in (name.upper(), name.lower(), name.replace("-", "_"), name.replace("-", " "), found.name):
        assert find_telescope(spelling) == found


def test_nothing_is_invented_for_telescopes_without_a_source():
    for name in GMADET:
        profile = find_telescope(name)
        assert profile.image.defaults == ImageDefaults()
        assert not profile.image.recognise
        assert profile.image.mask is None
        assert "GAIN" in keys_of(profile).gain


def test_profiles_of_the_user(mine: Path):
    assert "My-40cm" in telescope_names()
    assert find_telescope("my 40CM") == find_telescope(str(mine)) == find_telescope(mine)
    assert recognise({"TELESCOP": "the 40cm", "INSTRUME": "cam2"}).name == "mine"
    assert recognise({"OBSERVER": "me"}).name == "mine"
    assert recognise({"TELESCOP": "the 40cm"}).name == "generic"
    assert band_of(find_telescope("mine"), "Red") == "bessellr"
    assert keys_of(find_telescope("mine")).gain == []  # no key tells it, so the profile does
    assert keys_of(find_telescope("mine")).exposure == keys_of(generic_profile()).exposure


def test_what_is_no_telescope(mine: Path):
    with pytest.raises(InputError, match=r"'hubble' is not a telescope; known: .*DECam.*ztf"):
        find_telescope("hubble")
    with pytest.raises(InputError, match="no such survey profile"):
        find_telescope("none.toml")
    with pytest.raises(InputError, match=r"winter: this profile has no part \[image\]"):
        find_telescope("winter")
    with pytest.raises(InputError, match=r"decam: this profile has no part \[alert\]"):
        load_alert_profile("decam")
    assert load_profile("ztf") == load_alert_profile("ztf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"^me$"', '"(me"'), "not a regular expression"),
        (("gain = 1.5", "gain = -1"), r"image\.defaults\.gain"),
        (("[image.bands]", "[image.colours]"), r"image\.colours"),
        ((MINE[MINE.index("[image]") :], ""), r"a profile has a part \[alert\] or \[image\]"),
        (
            (
                "[image.bands]",
                "[image.mask]\nbits = { defect = [1] }\ncodes = { defect = [1] }\n[image.bands]",
            ),
            "bits or codes",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change, message):
    path = tmp_path / "bad.toml"
    path.write_text(MINE.replace(*change))
    with pytest.raises(InputError, match=message):
        find_telescope(path)


@pytest.mark.parametrize(
    ("header", "filename", "name"),
    [
        ({"TELESCOP": "Palomar 48-inch", "INSTRUME": "ZTF/MOSAIC"}, "x.fits", "ztf"),
        ({}, f"{FRAME}_sciimg.fits.fz", "ztf"),
        ({}, "ztf_000655_zr_c13_q3_refimg.fits", "ztf"),
        ({"INSTRUME": "DECam"}, "", "decam"),
        ({"FPA": "DECAM_BKP4"}, "", "decam"),
        ({}, "c4d_180804_092331_ooi_i_v1.fits.fz", "decam"),
        ({"TELESCOP": "TCA "}, "", "tca"),
        ({"TELESCOP": "Palomar 48-inch"}, "ztf.fits", "generic"),
        ({}, "", "generic"),
    ],
)
def test_images_say_where_they_come_from(header, filename, name):
    assert recognise(header, filename).name == name


def test_ztf_file_names_lead_to_the_archive():
    ztf = find_telescope("ztf")
    groups = file_name_groups(ztf, f"{FRAME}_sciimg.fits.fz")
    assert {key: text for key, text in groups.items() if not key.startswith("_")} == {
        "name": FRAME,
        "date": "20200924",
        "field": "000655",
        "filter": "zr",
        "ccd": "13",
        "quadrant": "3",
    }
    folder = "sci/2020/0924/431759"
    assert archive_path(ztf, f"{FRAME}_mskimg.fits") == f"{folder}/{FRAME}_sciimg.fits"
    assert archive_path(ztf, FRAME, "mask") == f"{folder}/{FRAME}_mskimg.fits"
    assert archive_path(ztf, FRAME, "difference") == f"{folder}/{FRAME}_scimrefdiffimg.fits.fz"
    reference = "ref/000/field000655/zr/ccd13/q3/ztf_000655_zr_c13_q3_refimg.fits"
    assert archive_path(ztf, FRAME, "reference") == reference
    assert archive_path(ztf, "ztf_000655_zr_c13_q3_refimg.fits", "reference") == reference
    for name, product, message in (
        ("a.fits", "science", "no _year"),
        ("ztf_000655_zr_c13_q3_refimg.fits", "science", "not enough of a ztf file name"),
        (FRAME, "spectrum", "known products: science, mask, difference"),
    ):
        with pytest.raises(InputError, match=message):
            archive_path(ztf, name, product)


def test_no_shipped_profile_names_a_host():
    for path in (Path(__file__).parents[1] / "src/tapetum/surveys/profiles").glob("*.toml"):
        assert "://" not in path.read_text(), path


@pytest.mark.parametrize(
    ("telescope", "name", "band"),
    [
        ("ztf", "ZTF_g", "ztfg"),
        ("ztf", "zr", "ztfr"),
        ("decam", "i DECam SDSS c0003 7835.0 1470.0", "desi"),
        ("decam", "Y DECam c0005 10095.0 1130.0", "desy"),
        ("decam", "VR DECam c0007 6300.0 2600.0", None),
        ("generic", "R", "bessellr"),
        ("generic", "r", "sdssr"),
        ("generic", "r'", "sdssr"),
        ("generic", "rp", "sdssr"),
        ("generic", "SDSS g", "sdssg"),
        ("generic", "Johnson B", "bessellb"),
        ("generic", "I_c", "besselli"),
        ("generic", "Ks", "2massks"),
        ("generic", "F200W", "f200w"),
        ("generic", "g.00000", "ps1::g"),
        ("generic", "PS1 y", "ps1::y"),
        ("generic", "ZTF_i", "ztfi"),
        ("generic", "No Filter", "clear"),
        ("generic", "Halpha", None),
        ("TCA", "C", "clear"),
        ("KAIT", " V ", "bessellv"),
    ],
)
def test_filters_have_their_names(telescope, name, band):
    assert band_of(find_telescope(telescope), name) == band


def test_masks_lie_where_they_usually_do():
    assert mask_file_names(find_telescope("ztf"), f"{FRAME}_sciimg.fits.fz") == [f"{FRAME}_mskimg"]
    assert mask_file_names(find_telescope("ztf"), f"{FRAME}_scimrefdiffimg.fits.fz") == [f"{FRAME}_mskimg"]
    assert mask_file_names(find_telescope("ztf"), "ztf_000655_zr_c13_q3_refimg.fits") == []
    assert mask_file_names(find_telescope("decam"), "c4d_1_2_ooi_i_v1.fits.fz") == ["c4d_1_2_ood_i_v1"]
    assert mask_file_names(generic_profile(), "a_sci.fits") == ["a_mask", "a_msk"]
    assert mask_file_names(generic_profile(), "b.fit") == ["b_mask", "b_msk"]


def test_all_telescopes_read_images():
    for name in telescope_names():
        profile = find_telescope(name)
        assert isinstance(profile, SurveyProfile)
        assert profile.image is not None
        keys = keys_of(profile)
        assert all(getattr(keys, key) is not None for key in type(keys).model_fields)


def test_the_profile_of_the_how_to_is_one(tmp_path: Path):
    page = (Path(__file__).parents[1] / "docs/how-to/add-a-telescope.md").read_text()
    first, mask, rest = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    head, _, parts = rest.partition("\n\n")
    path = tmp_path / "attic40.toml"
    path.write_text(first.replace("[image]\n", head + "\n", 1) + mask + parts)
    profile = find_telescope(path)
    name = "attic_20200102_0017_r_img.fits"
    groups = file_name_groups(profile, name)
    assert (groups["date"], groups["field"]) == ("20200102", "0017")
    assert mask_file_names(profile, name) == ["attic_20200102_0017_r_flags"]
    assert (profile.image.defaults.gain, profile.image.quality.warn) == (1.42, [0, 1])
