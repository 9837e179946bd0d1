from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tapetum.core.errors import InputError
from tapetum.images.astrometry import check_astrometry, refine_wcs

SHAPE = (1000, 1200)


def tan(scale=1.0, ctype="TAN", dec=40.0, ra=0.01):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{ctype}", f"DEC--{ctype}"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [600.5, 500.5]
    wcs.wcs.cd = np.array([[-1.0, 0.02], [0.02, 1.0]]) * scale / 3600
    wcs.array_shape = SHAPE
    wcs.wcs.set()
    return wcs


def sip():
    header = tan(ctype="TAN-SIP").to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-5, "A_0_2": -1e-5, "B_1_1": 1.5e-5, "B_0_2": 1e-5})
    return WCS(header)


def tpv(real_data):
    with fits.open(real_data / "imagepairs" / "ztf_zr_sci.fits.fz") as file:
        return WCS(file[1].header)


def perturbed(wcs, *, east=0.0, north=0.0, rotation_deg=0.0, scale=1.0):
    """The WCS as a clumsy mount would have it."""
    new = wcs.deepcopy()
    turn = np.deg2rad(rotation_deg)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if new.wcs.has_cd():
        new.wcs.cd = new.wcs.cd @ matrix
    else:
        new.wcs.pc = new.wcs.get_pc() @ matrix
    crval = new.wcs.crval
    new.wcs.crval = [crval[0] + east / 3600 / np.cos(np.deg2rad(crval[1])), crval[1] + north / 3600]
    new.wcs.set()
    return new


def sources(wcs, rng, n=150, noise_pix=0.08, missing=40, foreign=60):
    """Stars seen with noise, and a catalogue that misses some and has others."""
    x, y = rng.uniform(5, SHAPE[1] - 5, n), rng.uniform(5, SHAPE[0] - 5, n)
    sky = wcs.all_pix2world(np.column_stack([x, y])[missing:], 0)
    more = wcs.all_pix2world(rng.uniform(0, 1000, (foreign, 2)), 0)
    ra, dec = np.concatenate([sky, more]).T
    return x + rng.normal(0, noise_pix, n), y + rng.normal(0, noise_pix, n), ra, dec


@pytest.mark.parametrize("dec", [0.0, 40.0, -85.0])
def test_a_good_wcs_is_called_good(dec, rng):
    wcs = tan(dec=dec)
    x, y, ra, dec_cat = sources(wcs, rng)
    fit = check_astrometry(x, y, wcs, ra, dec_cat)
    assert fit.offset_arcsec < 0.05
    assert fit.rms_arcsec == pytest.approx(0.08 * np.sqrt(2), rel=0.2)
    assert 95 <= fit.n_matched <= 110
    assert fit.n_stars == 150
    np.testing.assert_array_equal(
        fit.i_star[fit.i_catalogue < 110], fit.i_catalogue[fit.i_catalogue < 110] + 40
    )


def test_an_offset_is_measured_with_its_sign(rng):
    wcs = tan()
    x, y, ra, dec = sources(wcs, rng)
    fit = check_astrometry(x, y, perturbed(wcs, east=3.0, north=-4.0), ra, dec)
    assert fit.offset_ra_arcsec == pytest.approx(-3, abs=0.06)  # catalogue minus image
    assert fit.offset_dec_arcsec == pytest.approx(4, abs=0.06)
    assert fit.offset_arcsec == pytest.approx(5, abs=0.06)


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize(
    "change", [{"east": 5.0, "north": -6.0}, {"rotation_deg": 0.15, "scale": 1.001, "east": 2.0}]
)
def test_known_perturbations_are_undone(kind, change, rng, request):
    truth = {"TAN": tan, "SIP": sip, "TPV": lambda: tpv(request.getfixturevalue("real_data"))}[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y, ra, dec = sources(truth, rng)
        wrong = perturbed(truth, **change)
        better = refine_wcs(wrong, x, y, ra, dec)
        corners = np.array([[0, 0], [1199, 0], [0, 999], [1199, 999], [600, 500]], float)

        def error(wcs):
            sky, want = wcs.all_pix2world(corners, 0), truth.all_pix2world(corners, 0)
            east = ((sky - want)[:, 0] + 180) % 360 - 180
            return 3600 * np.hypot(east * np.cos(np.deg2rad(want[:, 1])), (sky - want)[:, 1])

        assert error(wrong).max() > 3
        assert error(better).max() < 0.08
        np.testing.assert_array_equal(better.wcs.crpix, truth.wcs.crpix)
        assert list(better.wcs.ctype) == list(truth.wcs.ctype)
        assert (better.sip is None) == (truth.sip is None)
        # it survives a header
        again = WCS(better.to_header(relax=True))
        np.testing.assert_allclose(
            again.all_pix2world(corners, 0), better.all_pix2world(corners, 0), atol=1e-8
        )


def test_few_stars_only_shift(rng):
    wcs = tan()
    x, y, ra, dec = sources(wcs, rng, n=5, missing=0, foreign=0, noise_pix=0.02)
    wrong = perturbed(wcs, east=2.0)
    better = refine_wcs(wrong, x, y, ra, dec)
    np.testing.assert_allclose(better.wcs.cd, wrong.wcs.cd, rtol=1e-12)
    assert check_astrometry(x, y, better, ra, dec).offset_arcsec < 0.05


def test_absurd_corrections_and_wrong_fields_are_refused(rng):
    wcs = tan()
    x, y, ra, dec = sources(wcs, rng)
    with pytest.raises(InputError, match="refused to correct"):
        refine_wcs(perturbed(wcs, east=5.0), x, y, ra, dec, max_shift_arcsec=2.0)
    with pytest.raises(InputError, match="refused to correct"):
        refine_wcs(perturbed(wcs, rotation_deg=0.2), x, y, ra, dec, max_rotation_deg=0.1)
    with pytest.raises(InputError, match="pairs of 150 stars"):
        check_astrometry(x, y, wcs, ra, dec + 5)
    strangers = wcs.all_pix2world(rng.uniform(0, 1000, (400, 2)), 0)
    with pytest.raises(InputError, match=r"no offset stands out|agree with the catalogue"):
        check_astrometry(x, y, wcs, *strangers.T)
