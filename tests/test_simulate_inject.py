"""Injection: exact sub-pixel truth, fluxes, photon noise, saturation, positions on the sky."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS
from scipy.optimize import least_squares

from tapetum.core.errors import FormatError, InputError
from tapetum.images.background import Background, estimate_background
from tapetum.images.fits import read_frame
from tapetum.images.frame import Bad, Frame, FrameInfo
from tapetum.images.psf import PsfModel, measure_psf
from tapetum.simulate.inject import equivalent_fwhm, inject, light_of, with_photon_noise
from tapetum.simulate.sources import KINDS, Conditions, Source, draw_sources, parse_kinds
from tapetum.simulate.truth import GMADET_COLUMNS, name_file, read_list, read_truth, stack_truth, write_truth

SHAPE = (240, 320)
INFO = FrameInfo(band="ztfr", gain=4.0, saturation=40_000.0, zero_point=26.0)
SKY, NOISE = 200.0, 5.0
BACKGROUND = Background(np.full(SHAPE, SKY, np.float32), np.full(SHAPE, NOISE, np.float32))
PSF = PsfModel.moffat(2.3, 3.0, SHAPE)


def blank(wcs: WCS | None = None, info: FrameInfo = INFO, name: str = "blank") -> Frame:
    data = np.full(SHAPE, SKY, np.float32)
    return Frame(name, f"{name}.fits", data, np.zeros(SHAPE, np.uint8), wcs, None, info)


def put(sources: list[Source], frame: Frame | None = None, **options: bool) -> tuple[np.ndarray, Table]:
    """Light that injection adds, and its truth."""
    frame = blank() if frame is None else frame
    done, truth = inject(frame, PSF, sources, np.random.default_rng(5), background=BACKGROUND, **options)
    return done.data - frame.data, truth


def fitted(light: np.ndarray, psf: PsfModel, x: float, y: float, noise: float) -> tuple[float, float, float]:
    """Position and flux of a star, by fitting the PSF from half a pixel beside."""
    column, row, half = round(x), round(y), 7
    cut = light[row - half : row + half + 1, column - half : column + half + 1]
    inner = slice(psf.half - half, psf.half + half + 1)

    def residual(p: np.ndarray) -> np.ndarray:
        # the stamp is about the pixel of the fitted place: put it on the pixels of the cut
        stamp = np.zeros((psf.size + 4, psf.size + 4))
        dx, dy = int(np.floor(p[0] + 0.5)) - column + 2, int(np.floor(p[1] + 0.5)) - row + 2
        stamp[dy : dy + psf.size, dx : dx + psf.size] = psf.stamp(p[0], p[1])
        return ((p[2] * stamp[2:-2, 2:-2][inner, inner] - cut) / noise).ravel()

    first = [column + 0.1, row - 0.1, cut.sum()]
    return tuple(least_squares(residual, first, x_scale=[0.1, 0.1, first[2]], diff_step=1e-3).x)


@pytest.fixture(scope="module")
def ztf(real_data: Path) -> tuple[Frame, Background, PsfModel]:
    whole = read_frame(real_data / "imagepairs" / "ztf_zr_sci.fits.fz")
    part = np.s_[:700, :800]
    frame = replace(whole, data=whole.data[part].copy(), mask=whole.mask[part].copy())
    background = estimate_background(frame.data, frame.mask)
    return frame, background, measure_psf(frame.data, background, frame.mask, frame.info)


def test_positions_and_fluxes_are_exact_in_a_real_image(ztf: tuple[Frame, Background, PsfModel]) -> None:
    frame, background, psf = ztf
    rng = np.random.default_rng(8)
    conditions = Conditions(frame.shape, 26.285, (14.0, 14.8), usable=np.isfinite(frame.data))
    sources = draw_sources({"transient": 40}, conditions, rng)
    done, truth = inject(frame, psf, sources, rng, background=background)
    added = done.data - frame.data
    inside = (truth["inside"] > 0.999) & ~truth["saturated"]
    assert inside.sum() > 25
    errors, ratios = [], []
    for row in truth[inside]:
        x, y, flux = fitted(added, psf, row["x"], row["y"], 3.0)
        errors.append(np.hypot(x - row["x"], y - row["y"]))
        ratios.append(flux / row["flux"])
    assert np.median(errors) < 0.01
    assert max(errors) < 0.02
    assert np.abs(np.array(ratios) - 1).max() < 0.01
    assert np.mean(ratios) == pytest.approx(1, abs=0.002)
    mag = frame.info.zero_point - 2.5 * np.log10(np.array(truth["flux"]))
    np.testing.assert_allclose(truth["mag"], mag)


def test_positions_on_the_sky_are_those_of_the_wcs_tpv(ztf: tuple[Frame, Background, PsfModel]) -> None:
    frame, background, psf = ztf
    assert frame.header["CTYPE1"] == "RA---TPV"
    rng = np.random.default_rng(1)
    sources = draw_sources({"transient": 20}, Conditions(frame.shape, 26.285), rng)
    _, truth = inject(frame, psf, sources, rng, background=background)
    check_sky(frame.wcs, truth)


def check_sky(wcs: WCS, truth: Table) -> None:
    np.testing.assert_array_equal(truth["Xpos"], truth["x"] + 1)
    np.testing.assert_array_equal(truth["Ypos"], truth["y"] + 1)
    there = wcs.pixel_to_world(truth["x"], truth["y"])
    milliarcsec = 3.6e6 * np.hypot(
        (there.ra.deg - truth["RA"]) * np.cos(there.dec.rad), there.dec.deg - truth["Dec"]
    )
    assert milliarcsec.max() < 1
    back = wcs.all_world2pix(truth["RA"], truth["Dec"], 1)  # FITS convention, as gmadet's columns
    assert np.hypot(back[0] - truth["Xpos"], back[1] - truth["Ypos"]).max() < 1e-3


def test_positions_on_the_sky_are_those_of_the_wcs_sip() -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [150.0, 40.0], [160.5, 120.5], [-4e-4, 4e-4]
    from astropy.wcs import Sip

    a = np.zeros((3, 3))
    a[2, 0], a[1, 1] = 3e-4, 2e-4
    wcs.sip = Sip(a, a.T, None, None, [160.5, 120.5])
    sources = [Source("transient", 20.25, 200.75, 1e4), Source("transient", 300.1, 11.9, 1e4)]
    _, truth = put(sources, blank(wcs))
    check_sky(wcs, truth)
    linear = wcs.wcs_pix2world(truth["x"], truth["y"], 0)
    assert np.abs(linear[0] - truth["RA"]).max() > 1e-3  # the distortion is in it: pixels


def test_without_a_wcs_there_is_no_position_on_the_sky() -> None:
    _, truth = put([Source("transient", 20.0, 20.0, 1e4)])
    assert np.isnan(truth["RA"]).all()


def test_photon_noise_follows_the_gain_of_each_image() -> None:
    sources = [Source("transient", 100.0, 100.0, 5000.0)]
    for gain in (1.0, 9.0):
        frame = blank(info=replace(INFO, gain=gain))
        rng = np.random.default_rng(2)
        sums = [
            (inject(frame, PSF, sources, rng, background=BACKGROUND)[0].data - SKY).sum(dtype=np.float64)
            for _ in range(300)
        ]
        assert np.mean(sums) == pytest.approx(5000, rel=0.01)
        assert np.var(sums) == pytest.approx(5000 / gain, rel=0.25)


def test_a_variance_plane_gets_the_photon_noise() -> None:
    frame = replace(blank(), variance=np.full(SHAPE, 25.0, np.float32))
    done, _ = inject(
        frame, PSF, [Source("transient", 90.0, 90.0, 8000.0)], np.random.default_rng(0), background=BACKGROUND
    )
    assert done.variance is not None
    assert (done.variance - 25).sum() == pytest.approx(8000 / 4.0, rel=1e-3)
    assert frame.variance is not None
    assert (frame.variance == 25).all()


def test_faint_light_is_counted_in_whole_electrons() -> None:
    light = np.full(10_000, 0.3, np.float32)
    counted = with_photon_noise(light, 2.0, np.random.default_rng(0)) * 2
    np.testing.assert_array_equal(counted, np.rint(counted))
    assert counted.mean() == pytest.approx(0.6, rel=0.05)
    assert counted.var() == pytest.approx(0.6, rel=0.08)
    bright = with_photon_noise(np.full(10_000, 1e5, np.float32), 2.0, np.random.default_rng(0))
    assert bright.std() == pytest.approx(np.sqrt(1e5 / 2), rel=0.05)


def test_full_pixels_stay_full_and_are_masked() -> None:
    frame = blank()
    frame.data[100:103, 100:103] = 45_000.0  # a real star that overflowed
    done, truth = inject(
        frame, PSF, [Source("transient", 101.0, 101.0, 5e6)], np.random.default_rng(0), background=BACKGROUND
    )
    assert (done.data[100:103, 100:103] == 45_000).all()
    assert done.data[101, 105] <= 40_000
    assert ((done.data >= 40_000) == ((done.mask & Bad.SATURATED) > 0)).all()
    assert truth["saturated"].all()


def test_the_input_is_not_changed() -> None:
    frame = blank()
    inject(
        frame, PSF, [Source("transient", 50.0, 50.0, 1e6)], np.random.default_rng(0), background=BACKGROUND
    )
    assert (frame.data == SKY).all()
    assert not frame.mask.any()


def test_signal_to_noise_is_that_of_a_matched_filter() -> None:
    _, truth = put([Source("transient", 150.0, 120.0, 1000.0)])
    squares = np.square(PSF.centred(150, 120), dtype=float)
    photon = 1000 * PSF.centred(150, 120).astype(float)
    expected = np.sqrt((1e6 * squares / (NOISE**2 + photon / 4.0)).sum())
    assert truth["snr"][0] == pytest.approx(expected, rel=1e-3)


def test_light_outside_the_frame_is_lost_and_told() -> None:
    light, truth = put([Source("transient", 0.0, 100.0, 1e4)], photon_noise=False)
    assert truth["inside"][0] == pytest.approx(0.67, abs=0.08)
    assert light.sum() == pytest.approx(1e4 * truth["inside"][0], rel=1e-3)


def test_a_streak_loses_surface_brightness_but_no_flux() -> None:
    star = Source("transient", 150.2, 120.6, 2e4)
    streak = replace(star, kind="streak", length_pix=30.0, angle_deg=25.0)
    light, truth = put([streak], photon_noise=False)
    [dot, trail] = (light_of(PSF, source, 0.1).data.max() for source in (star, streak))
    assert light.sum() == pytest.approx(2e4, rel=1e-3)
    assert trail < dot / 8
    dx, dy = truth["x2"][0] - truth["x1"][0], truth["y2"][0] - truth["y1"][0]
    assert np.hypot(dx, dy) == pytest.approx(30)
    assert np.degrees(np.arctan2(dy, dx)) == pytest.approx(25)
    y, x = np.indices(SHAPE)
    assert (light * x).sum() / light.sum() == pytest.approx(150.2, abs=0.02)
    assert (light * y).sum() / light.sum() == pytest.approx(120.6, abs=0.02)


COMET = Source(
    "comet", 160.37, 121.81, 1e5, coma_slope=1.3, coma_radius_pix=30.0, coma_fan=0.0, nucleus_fraction=0.0,
    tail_fraction=0.0, tail_angle_deg=0.0,
)  # fmt: skip


def test_a_coma_falls_with_its_slope_and_keeps_its_centre() -> None:
    light, _ = put([COMET], photon_noise=False)
    assert light.sum() == pytest.approx(1e5, rel=2e-3)
    y, x = np.indices(SHAPE)
    r = np.hypot(x - COMET.x, y - COMET.y)
    inner, outer = (light[np.abs(r - radius) < 0.7].mean() for radius in (12.0, 24.0))
    expected = (24 / 12) ** 1.3 * np.exp((24**2 - 12**2) / 30.0**2)
    assert inner / outer == pytest.approx(expected, rel=0.03)
    near = r < 8
    assert (light * x)[near].sum() / light[near].sum() == pytest.approx(COMET.x, abs=0.15)
    assert np.unravel_index(light.argmax(), SHAPE) == (122, 160)


def test_a_nucleus_is_a_star_of_its_share() -> None:
    without, _ = put([replace(COMET, flux=0.7 * COMET.flux)], photon_noise=False)
    with_it, _ = put([replace(COMET, nucleus_fraction=0.3)], photon_noise=False)
    star, _ = put([Source("transient", COMET.x, COMET.y, 0.3 * COMET.flux)], photon_noise=False)
    np.testing.assert_allclose(with_it, without + star, atol=0.5)


@pytest.mark.parametrize("angle", [0.0, 130.0])
def test_a_tail_points_and_bends_as_told(angle: float) -> None:
    comet = replace(
        COMET, coma_radius_pix=4.0, tail_fraction=0.8, tail_length_pix=30.0, tail_angle_deg=angle,
        tail_curvature=0.004, tail_width_pix=2.0, tail_growth=0.5,
    )  # fmt: skip
    light, _ = put([comet], photon_noise=False)
    y, x = np.indices(SHAPE)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    s, v = (x - comet.x) * cos + (y - comet.y) * sin, (y - comet.y) * cos - (x - comet.x) * sin
    for distance in (20.0, 45.0):
        here = (np.abs(s - distance) < 1) & (np.abs(v - 0.004 * distance**2) < 20)
        assert np.average(v[here], weights=light[here]) == pytest.approx(0.004 * distance**2, abs=0.4)
    assert light[s > 12].sum() > 20 * light[s < -12].sum()
    width = [np.sqrt(np.average((v[k] - 0.004 * d**2) ** 2, weights=light[k]))
             for d in (10.0, 40.0) for k in [(np.abs(s - d) < 1) & (np.abs(v - 0.004 * d**2) < 15)]]  # fmt: skip
    assert width[1] > 1.3 * width[0]


def satellite(**changes: float) -> Source:
    line = Source(
        "satellite", 160.0, 120.0, 1e6, length_pix=500.0, angle_deg=20.0, width_pix=4.0, variation=0.0,
        period_pix=100.0, phase=0.0, sharpness=1.0,
    )  # fmt: skip
    return replace(line, **changes)


def test_a_satellite_crosses_evenly_or_in_waves() -> None:
    steady, _ = put([satellite()], photon_noise=False)
    wave, _ = put([satellite(variation=1.0)], photon_noise=False)
    ridge = [round(120 + np.tan(np.radians(20.0)) * (x - 160)) for x in range(20, 300)]
    along = [
        [plane[y - 6 : y + 7, x].sum() for x, y in zip(range(20, 300), ridge, strict=True)]
        for plane in (steady, wave)
    ]
    even, waves = (np.array(values) for values in along)
    assert even.std() < 0.02 * even.mean()
    assert even.mean() == pytest.approx(1e6 / 500 / np.cos(np.radians(20.0)), rel=0.02)
    assert waves.max() > 1.8 * even.mean()
    assert waves.min() < 0.05 * even.mean()
    peaks = np.flatnonzero(
        (waves[1:-1] > waves[:-2]) & (waves[1:-1] >= waves[2:]) & (waves[1:-1] > even.mean())
    )
    assert np.diff(peaks).mean() == pytest.approx(100 * np.cos(np.radians(20.0)), abs=2)


def test_detector_artefacts_are_sharp_and_exact() -> None:
    light, truth = put(
        [
            Source("bad_column", 33.0, 100.0, -50.0, length_pix=140.0),
            Source("hot_pixel", 200.0, 50.0, 700.0),
            Source("cosmic_ray", 100.0, 180.0, 3000.0, length_pix=9.0, angle_deg=70.0),
        ]
    )
    assert (light[100:, 33] == -50).all()
    assert not light[:100, 33].any()
    assert light[50, 200] == 700
    assert not light[50, 199]
    ray = light[160:200, 80:120]
    assert ray.sum() == pytest.approx(3000, rel=1e-3)
    assert (ray > 0).sum() < 40
    assert not truth["saturated"].any()
    assert np.isnan(truth["mag"][0])


def test_a_ghost_is_a_ring_of_its_flux() -> None:
    light, _ = put([Source("ghost", 150.0, 120.0, 5e4, width_pix=40.0, hole=0.4)], photon_noise=False)
    assert light.sum() == pytest.approx(5e4, rel=1e-4)
    assert light[120, 152] == 0
    assert light[120, 150 + 30] > 0
    assert light[120, 150 + 43] == 0


def test_a_bright_star_bleeds_and_has_spikes() -> None:
    star = Source("bright_star", 160.3, 120.2, 3e6, angle_deg=0.0, arms=4.0, arm_fraction=0.02)
    light, _ = put([star], photon_noise=False)
    full = light + SKY >= INFO.saturation - 1
    column = full[:, 160].sum()
    assert column > 2 * full[120].sum()
    assert light[120, 200] > 5 * light[120 + 28, 160 + 28]
    assert light.max() + SKY == INFO.saturation


def test_a_frame_without_zero_point_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"blank\.fits: no zero point.*--zero-point"):
        put([], blank(info=replace(INFO, zero_point=None)))
    with pytest.raises(InputError, match=r"blank\.fits: gain.*--gain"):
        put([], blank(info=replace(INFO, gain=0.0)))


def test_the_truth_table_is_read_as_ecsv_and_names_every_source_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tables = []
    for name in ("first", "second"):
        frame = blank(name=name)
        conditions = Conditions(SHAPE, 26.0, fwhm_pix=2.4, sky_noise=NOISE, gain=4.0, saturation=39_800.0)
        sources = draw_sources(parse_kinds(["all"], 18), conditions, rng)
        _, truth = inject(frame, PSF, sources, rng, background=BACKGROUND, seed=11)
        name_file(truth, f"{name}.fits.fz")
        tables.append(truth)
    empty = inject(blank(name="third"), PSF, [], rng, background=BACKGROUND)[1]
    write_truth(tmp_path / "simulated_objects.list", stack_truth([*tables, empty]))
    table = Table.read(tmp_path / "simulated_objects.list", format="ascii.ecsv")
    assert table.colnames[:8] == list(GMADET_COLUMNS)
    assert table["idx"].tolist() == list(range(36))
    assert len(set(table["id"])) == 36
    assert set(table["filename"]) == {"first.fits.fz", "second.fits.fz"}
    assert set(table["kind"]) == set(KINDS)
    assert (table["seed"] == 11).all()
    assert str(table["Xpos"].unit) == "pix"
    for read in (read_truth, read_list):  # one reads what the other reads, and asks for our columns besides
        np.testing.assert_array_equal(read(tmp_path / "simulated_objects.list")["x"], table["x"])


OTHER_TABLE = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: a, datatype: int64}\na\n1\n"


@pytest.mark.parametrize("content", ["", "nothing at all\n", OTHER_TABLE])
def test_a_file_that_is_no_truth_table(tmp_path: Path, content: str) -> None:
    path = tmp_path / "simulated_objects.list"
    path.write_text(content)
    with pytest.raises(FormatError, match="truth table"):
        read_truth(path)


def test_the_equivalent_width_of_a_psf() -> None:
    assert equivalent_fwhm(PSF, 100, 100) == pytest.approx(
        2.3548 * np.sqrt(PSF.neff(100, 100) / (4 * np.pi)), rel=1e-6
    )
