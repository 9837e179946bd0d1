"""Positions are ICRS, whatever system and order of axes a WCS has: in tables, in truth, and from image to image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import FK4, FK5, ICRS, Galactic, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from tapetum.core.errors import InputError
from tapetum.images.astrometry import check_astrometry, refine_wcs
from tapetum.images.celestial import (
    enclosing_cone,
    pixels_in_other,
    pixels_of_sky,
    sky_of_pixels,
    sky_positions,
)
from tapetum.images.fits import read_frame
from tapetum.images.frame import Frame, FrameInfo
from tapetum.images.psf import PsfModel
from tapetum.images.remap import align
from tapetum.images.summary import summarise
from tapetum.pipelines.references import References
from tapetum.simulate.inject import inject
from tapetum.simulate.sources import Source

SHAPE = (200, 240)
CENTRE = SkyCoord(150.0, 20.0, unit="deg")
SCALE = 1.0  # arcsec per pixel
X, Y = np.array([0.0, 30.25, 119.5, 220.0]), np.array([5.0, 180.5, 99.5, 12.75])

KINDS = {
    "icrs": (ICRS(), {"RADESYS": "ICRS"}, False),
    "galactic": (Galactic(), {}, False),
    "latitude first": (ICRS(), {"RADESYS": "ICRS"}, True),
    "galactic, latitude first": (Galactic(), {}, True),
    "FK4": (FK4(equinox="B1950"), {"RADESYS": "FK4", "EQUINOX": 1950.0}, False),
    "FK4 by its equinox": (FK4(equinox="B1950"), {"EQUINOX": 1950.0}, False),
    "FK4, latitude first": (FK4(equinox="B1950"), {"RADESYS": "FK4", "EQUINOX": 1950.0}, True),
    "FK5 of 1975": (FK5(equinox="J1975"), {"RADESYS": "FK5", "EQUINOX": 1975.0}, False),
}
OTHERS = [kind for kind in KINDS if kind != "icrs"]


def wcs_of(kind, scale=SCALE):
    """A WCS of about the same field in another system, as a header says it."""
    system, cards, latitude_first = KINDS[kind]
    centre = CENTRE.transform_to(system).spherical
    lon, lat = ("GLON", "GLAT") if isinstance(system, Galactic) else ("RA--", "DEC-")
    axes = [(f"{lon}-TAN", centre.lon.deg, (-1.0, 0.1)), (f"{lat}-TAN", centre.lat.deg, (0.1, 1.0))]
    header = fits.Header({"NAXIS": 2, "CRPIX1": 120.5, "CRPIX2": 100.5, **cards})
    for number, (name, value, row) in enumerate(axes[::-1] if latitude_first else axes, 1):
        header[f"CTYPE{number}"], header[f"CRVAL{number}"], header[f"CUNIT{number}"] = name, value, "deg"
        header[f"CD{number}_1"], header[f"CD{number}_2"] = (scale / 3600 * part for part in row)
    return WCS(header)


def truly(wcs, kind, x, y):
    """ICRS positions by astropy's own classes."""
    system, _, latitude_first = KINDS[kind]
    world = wcs.wcs_pix2world(x, y, 0)
    return SkyCoord(*(world[::-1] if latitude_first else world), unit="deg", frame=system).icrs


def apart(ra, dec, there):
    """Largest separation [arcsec]."""
    return float(SkyCoord(ra, dec, unit="deg").separation(there).arcsec.max())


def written(path, kind, data):
    header = wcs_of(kind).to_header()
    header.update({"GAIN": 2.0, "MAGZP": 26.0, "SATURATE": 5e4, "FILTER": "ztfr"})
    fits.PrimaryHDU(data.astype(np.float32), header).writeto(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_have_icrs_positions_and_come_back(kind):
    wcs = wcs_of(kind)
    ra, dec = sky_positions(wcs, X, Y)
    assert apart(ra, dec, truly(wcs, kind, X, Y)) < 1e-4
    assert apart(ra, dec, CENTRE) < 200  # not another part of the sky
    np.testing.assert_allclose(pixels_of_sky(wcs, ra, dec), (X, Y), atol=2e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_images_lie_on_each_other(kind):
    here, there = wcs_of("icrs"), wcs_of(kind)
    x, y = pixels_in_other(there, here, X, Y)
    assert apart(*sky_of_pixels(here, X, Y), truly(there, kind, x, y)) < 1e-4
    np.testing.assert_allclose(pixels_in_other(there, there, X, Y), (X, Y), atol=1e-6)


def test_a_plain_wcs_gives_its_own_numbers():
    wcs = wcs_of("icrs")
    for radesys, equinox in (("ICRS", np.nan), ("FK5", 2000.0), ("", np.nan), ("", 2000.0), ("FK5", np.nan)):
        wcs.wcs.radesys, wcs.wcs.equinox = radesys, equinox
        wcs.wcs.set()
        np.testing.assert_array_equal(sky_of_pixels(wcs, X, Y), wcs.all_pix2world(X, Y, 0))


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_is_read_summarised_and_injected_into_in_icrs(kind, tmp_path, rng):
    frame = read_frame(written(tmp_path / "image.fits", kind, rng.normal(100, 5, SHAPE)))
    assert frame.info.pixel_scale_arcsec == pytest.approx(SCALE * np.sqrt(1.01), rel=1e-4)
    assert not [text for text in frame.info.warnings if "RADESYS" in text or "WCS" in text]
    said = summarise(frame)
    assert apart(said["ra"], said["dec"], truly(frame.wcs, kind, 119.5, 99.5)) < 0.01
    psf = PsfModel.moffat(2.5, 3.0, SHAPE)
    sources = [Source("transient", x, y, 1e4) for x, y in zip(X, Y, strict=True)]
    _, truth = inject(frame, psf, sources, rng)
    assert apart(truth["RA"], truth["Dec"], truly(frame.wcs, kind, X, Y)) < 1e-4


@pytest.mark.parametrize("kind", ["galactic", "latitude first", "FK4"])
def test_a_star_is_at_its_place_after_alignment(kind):
    psf = PsfModel.moffat(3.0, 3.0, SHAPE)
    mask, info = np.zeros(SHAPE, np.uint8), FrameInfo()
    x, y = np.array([60.3]), np.array([80.6])
    there = wcs_of(kind)
    data = np.zeros(SHAPE, np.float32)
    stamp, half = psf.stamp(60.3, 80.6), psf.half
    data[81 - half : 82 + half, 60 - half : 61 + half] = 1e4 * stamp
    onto = Frame("onto", "onto", np.zeros(SHAPE, np.float32), mask, wcs_of("icrs"), None, info)
    moved = align(Frame("one", "one", data, mask, there, None, info), onto)
    want_x, want_y = (float(v[0]) for v in onto.wcs.world_to_pixel(truly(there, kind, x, y)))
    inner = np.nan_to_num(moved.data)
    rows, columns = np.indices(SHAPE)
    near = np.hypot(columns - want_x, rows - want_y) < 12
    light = float(inner[near].sum())
    assert light == pytest.approx(1e4, rel=0.05)
    assert (inner * columns)[near].sum() / light == pytest.approx(want_x, abs=0.05)
    assert (inner * rows)[near].sum() / light == pytest.approx(want_y, abs=0.05)


@pytest.mark.parametrize("kind", OTHERS)
def test_stars_of_a_catalogue_check_and_correct_the_wcs(kind, rng):
    truth = wcs_of(kind)
    x, y = rng.uniform(2, 238, 60), rng.uniform(2, 198, 60)
    sky = truly(truth, kind, x, y)
    fit = check_astrometry(x, y, truth, sky.ra.deg, sky.dec.deg)
    assert fit.n_matched > 50
    assert fit.offset_arcsec < 1e-3
    wrong = truth.deepcopy()
    wrong.wcs.crval = wrong.wcs.crval + 3.0 / 3600
    wrong.wcs.cd = wrong.wcs.cd * 1.002
    wrong.wcs.set()
    assert check_astrometry(x, y, wrong, sky.ra.deg, sky.dec.deg).offset_arcsec > 2.9
    better = refine_wcs(wrong, x, y, sky.ra.deg, sky.dec.deg)
    assert list(better.wcs.ctype) == list(truth.wcs.ctype)
    assert apart(*sky_of_pixels(better, X, Y), truly(truth, kind, X, Y)) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_cone_encloses_the_image(kind):
    wcs = wcs_of(kind)
    ra, dec, radius = enclosing_cone(wcs, SHAPE)
    corners = truly(wcs, kind, np.array([-0.5, 239.5, -0.5, 239.5]), np.array([-0.5, -0.5, 199.5, 199.5]))
    furthest = SkyCoord(ra, dec, unit="deg").separation(corners).deg.max()
    assert furthest < radius < furthest + 0.011


def test_references_are_chosen_for_an_image_of_another_system(tmp_path, rng):
    (tmp_path / "references").mkdir()
    written(tmp_path / "references" / "galactic.fits", "galactic", rng.normal(100, 5, SHAPE))
    frame = read_frame(written(tmp_path / "science.fits", "FK4", rng.normal(100, 5, SHAPE)))
    found = list(References.open([str(tmp_path / "references")]).frames_for(frame))
    assert [cell.name for cell in found] == ["galactic"]


def test_what_cannot_be_placed_says_so(tmp_path, rng):
    header = wcs_of("icrs").to_header()
    strange = fits.PrimaryHDU(rng.normal(100, 5, SHAPE).astype(np.float32), header)
    strange.header["RADESYS"] = "GAPPT"
    strange.writeto(tmp_path / "strange.fits")
    frame = read_frame(tmp_path / "strange.fits")
    assert any("RADESYS GAPPT is not known: taken as ICRS" in text for text in frame.info.warnings)
    np.testing.assert_allclose(sky_of_pixels(frame.wcs, X, Y), sky_of_pixels(wcs_of("icrs"), X, Y))
    strange.header.update({"RADESYS": "FK5", "EQUINOX": 0.0})
    strange.writeto(tmp_path / "year.fits")
    assert any("EQUINOX 0" in text for text in read_frame(tmp_path / "year.fits").info.warnings)
    for key in ("CTYPE1", "CTYPE2"):
        strange.header[key] = strange.header[key].replace("RA--", "ELON").replace("DEC-", "ELAT")
    strange.writeto(tmp_path / "ecliptic.fits")
    frame = read_frame(tmp_path / "ecliptic.fits")
    assert frame.wcs is None
    assert any("ELON is neither equatorial nor galactic" in text for text in frame.info.warnings)
    assert np.isnan(sky_positions(WCS(strange.header), X, Y)).all()
    with pytest.raises(InputError, match="celestial"):
        sky_of_pixels(WCS(strange.header), X, Y)


def test_a_named_reference_of_another_band_is_used_with_a_warning(tmp_path, rng):
    frame = read_frame(written(tmp_path / "science.fits", "icrs", rng.normal(100, 5, SHAPE)))
    path = written(tmp_path / "green.fits", "galactic", rng.normal(100, 5, SHAPE))
    fits.setval(path, "FILTER", value="ztfg")
    [cell] = References.open([str(path)]).aligned(frame)
    assert any("is of band ztfg, the image of ztfr" in text for text in cell.info.warnings)
    [cell] = References.open([str(path)]).aligned(replace(frame, info=replace(frame.info, band="ztfg")))
    assert not any("band" in text for text in cell.info.warnings)
