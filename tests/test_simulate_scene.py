"""Whole scenes: statistics, photometry against GalSim, labels, seeds; and second epochs of an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy.ndimage import convolve1d

from tapetum.core.errors import UsageError
from tapetum.images.background import Background
from tapetum.images.frame import Bad, Frame, FrameInfo
from tapetum.simulate.scene import (
    SERSIC_INDICES,
    EpochChange,
    ScenePair,
    SceneSettings,
    detect,
    draw_mags,
    galaxy_points,
    second_epoch,
    sersic_radii,
    simulate_scene,
)
from tapetum.simulate.stamping import MoffatField, TabulatedPsf

SMALL = SceneSettings(shape=(500, 600), stars=(5e4, 5e4), galaxies=(2e4, 2e4), gradient=(0.2, 0.2))


@pytest.fixture(scope="module")
def pair() -> ScenePair:
    counts = {
        **SMALL.counts,
        "satellite": (1, 1),
        "ghost": (1, 1),
        "bad_column": (2, 2),
        "transient": (40, 40),
    }
    return simulate_scene(replace(SMALL, counts=counts), np.random.default_rng(12), "s")


def test_a_scene_is_one_field_twice(pair: ScenePair) -> None:
    assert (pair.science.name, pair.reference.name) == ("s_sci", "s_ref")
    science, reference = (frame.data - np.median(frame.data) for frame in (pair.science, pair.reference))
    good = pair.labels == 0
    bright = good & (reference > 300)
    assert bright.sum() > 100
    assert np.corrcoef(science[bright], reference[bright])[0, 1] > 0.6  # other seeing, the same stars
    assert pair.reference.info.gain == 15 * pair.science.info.gain
    assert pair.science.info.mjd > pair.reference.info.mjd


def test_noise_is_that_of_the_detector(pair: ScenePair) -> None:
    for frame in (pair.science, pair.reference):
        steps = np.diff(frame.data, axis=1)[(frame.mask[:, 1:] | pair.labels[:, 1:]) == 0] / np.sqrt(2)
        noise = 1.4826 * np.median(np.abs(steps))
        sky = float(np.median(frame.data))
        expected = np.sqrt(sky / frame.info.gain + (frame.info.read_noise / frame.info.gain) ** 2)
        assert noise == pytest.approx(expected, rel=0.12)


def test_the_truth_says_what_only_the_science_image_has(pair: ScenePair) -> None:
    truth = pair.truth
    assert truth["idx"].tolist() == list(range(len(truth)))
    kinds = truth["kind"].tolist()
    assert kinds.count("transient") == 40
    assert kinds.count("bad_column") == 2
    strong = truth[(truth["kind"] == "transient") & (truth["snr"] > 60) & (truth["inside"] > 0.99)]
    assert len(strong) > 8
    for row in strong:
        y, x = round(row["y"]), round(row["x"])
        box = np.s_[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        excess = (pair.science.data[box] - np.median(pair.science.data)).sum()
        excess -= (pair.reference.data[box] - np.median(pair.reference.data)).sum()
        assert excess > 0.25 * row["flux"]
    there = pair.science.wcs.pixel_to_world(truth["x"], truth["y"])
    assert np.abs(there.ra.deg - truth["RA"]).max() < 1e-7
    on_galaxies = np.isfinite(truth["host_x"]).sum()
    assert 10 <= on_galaxies <= 30
    assert np.nanmax(truth["host_distance"]) < 60


def test_labels_know_more_than_the_mask(pair: ScenePair) -> None:
    for bit in (Bad.ARTEFACT, Bad.COSMIC, Bad.DEFECT):
        assert (pair.labels & bit).any()
    assert not (pair.science.mask & (Bad.ARTEFACT | Bad.COSMIC)).any()
    assert ((pair.science.mask & ~pair.labels) == 0).all()
    columns = pair.truth[pair.truth["kind"] == "bad_column"]
    for row in columns:
        assert (pair.science.mask[int(row["y"]) :, int(row["x"])] & Bad.DEFECT).all()


def test_the_same_seed_is_the_same_scene() -> None:
    tiny = replace(SMALL, shape=(150, 160))
    one, same = (simulate_scene(tiny, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(one.science.data, same.science.data)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert one.truth["x"].tolist() == same.truth["x"].tolist()


def test_full_pixels_bleed(rng: np.random.Generator) -> None:
    image = np.full((100, 100), 200.0, np.float32)
    image[50, 50] = 5e5
    detect(image, 5.0, 5.0, 6e4, rng)
    assert image.max() == 6e4
    assert 7 <= (image[:, 50] == 6e4).sum() <= 11


def test_a_dark_image_is_counted_in_electrons(rng: np.random.Generator) -> None:
    image = np.full((300, 300), 0.7, np.float32)
    detect(image, 2.0, 0.0, np.inf, rng)
    np.testing.assert_array_equal(image * 2, np.rint(image * 2))
    assert image.var() == pytest.approx(0.35, rel=0.03)


def test_number_counts_have_their_slope(rng: np.random.Generator) -> None:
    mags = draw_mags(200_000, 0.35, (12.0, 20.0), rng)
    assert mags.min() >= 12
    assert mags.max() <= 20
    bright, faint = (((mags >= m) & (mags < m + 1)).sum() for m in (16, 18))
    assert np.log10(faint / bright) / 2 == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize("index", SERSIC_INDICES)
def test_half_of_the_light_is_within_the_half_light_radius(index: float) -> None:
    share, radius = sersic_radii(index)
    inside = np.interp(1.0, radius, share)
    assert 0.5 <= inside < 0.62  # of what lies within 5 of them
    assert radius[-1] == pytest.approx(5, rel=1e-6)


# against GalSim


def test_stars_agree_with_galsim() -> None:
    galsim = pytest.importorskip("galsim", reason="GalSim is not installed; it comes with the extra `rivals`")
    shape = (120, 160)
    ours = TabulatedPsf.of_field(MoffatField(2.2, 3.1, e1=(0.06, 0, 0), e2=(0.04, 0, 0)), shape)
    e = float(np.hypot(0.06, 0.04))  # 1 - q, at half the angle of (e1, e2)
    profile = galsim.Moffat(beta=3.1, fwhm=2.2).shear(
        q=1 - e, beta=0.5 * np.arctan2(0.04, 0.06) * galsim.radians
    )
    for x, y in ((60.0, 50.0), (70.31, 60.77), (80.49, 40.02)):
        image = np.zeros(shape, np.float32)
        ours.add(image, np.array([x]), np.array([y]), np.array([1e5]))
        theirs = galsim.ImageF(shape[1], shape[0], scale=1.0, xmin=0, ymin=0)
        (profile * 1e5).drawImage(theirs, center=galsim.PositionD(x, y), method="auto")
        peak = theirs.array.max()
        assert np.abs(image - theirs.array).max() < 0.005 * peak
        assert image.sum() == pytest.approx(theirs.array.sum(), rel=0.01)


def test_galaxies_agree_with_galsim() -> None:
    galsim = pytest.importorskip("galsim", reason="GalSim is not installed; it comes with the extra `rivals`")
    shape = (161, 161)
    psf = TabulatedPsf.of_field(MoffatField(2.2, 3.1), shape)
    for index, radius in ((1.0, 4.0), (4.0, 3.0)):
        one = (np.array([value]) for value in (80.3, 79.8, 1e5, radius, 0.6, 0.5, index))
        x, y, flux, _ = galaxy_points(*one, unit=20.0)
        image = np.zeros(shape, np.float32)
        psf.add(image, x, y, flux)
        galaxy = galsim.Sersic(
            index, half_light_radius=radius, trunc=5 * radius, flux_untruncated=True, flux=1.0
        )
        galaxy = galaxy.withFlux(1e5).shear(q=0.6, beta=0.5 * galsim.radians)
        theirs = galsim.ImageF(*shape, scale=1.0, xmin=0, ymin=0)
        seen = galsim.Convolve(galaxy, galsim.Moffat(beta=3.1, fwhm=2.2))
        seen.drawImage(theirs, center=galsim.PositionD(80.3, 79.8), method="auto")
        r = np.hypot(*(np.indices(shape)[::-1] - np.array([80.3, 79.8])[:, None, None]))
        for aperture in (3.0, 6.0, 12.0, 40.0):
            inside = r < aperture
            assert image[inside].sum() == pytest.approx(theirs.array[inside].sum(), rel=0.01)


# a second epoch


def field_of_stars(rng: np.random.Generator) -> tuple[Frame, Background]:
    shape = (400, 420)
    psf = TabulatedPsf.of_field(MoffatField(2.4, 3.5), shape)
    data = np.full(shape, 300.0, np.float32)
    psf.add(data, np.array([200.3, 100.0]), np.array([210.6, 100.0]), np.array([4e5, 6e4]))
    x, y = rng.uniform(0, 420, 60), rng.uniform(0, 400, 60)
    psf.add(data, x, y, rng.uniform(500, 3000, 60))
    data += np.sqrt(data / 2.0) * rng.standard_normal(shape).astype(np.float32)
    data[:, 30] = np.nan
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [10.0, 20.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [210.0, 200.0], [-3e-4, 3e-4]
    mask = np.where(np.isfinite(data), 0, Bad.NO_DATA).astype(np.uint8)
    info = FrameInfo(gain=2.0, zero_point=25.0, saturation=6e4)
    level = np.full(shape, 300.0, np.float32)
    return Frame("f", "f", data, mask, wcs, None, info), Background(
        level, np.full(shape, np.sqrt(150.0), np.float32)
    )


def test_a_second_epoch_is_moved_blurred_and_darker(rng: np.random.Generator) -> None:
    frame, background = field_of_stars(rng)
    change = EpochChange((2.3, -1.4), 1.3, 1.5, 0.8)
    epoch = second_epoch(frame, background, 2.5, change, rng)
    star = epoch.data[180:240, 170:232] - 450.0
    y, x = np.indices(star.shape)
    near = np.hypot(x + 170 - 202.6, y + 180 - 209.2) < 12
    assert star[near].sum() == pytest.approx(0.8 * 4e5, rel=0.02)
    weight = np.where(near, star, 0)
    assert (weight * x).sum() / weight.sum() + 170 == pytest.approx(202.6, abs=0.05)
    assert (weight * y).sum() / weight.sum() + 180 == pytest.approx(209.2, abs=0.05)
    sky = frame.wcs.all_pix2world(200.3, 210.6, 0)
    np.testing.assert_allclose(epoch.wcs.all_world2pix(*sky, 0), [202.6, 209.2], atol=1e-6)
    assert epoch.info.zero_point == pytest.approx(25.0 + 2.5 * np.log10(0.8))
    assert epoch.info.fwhm_pix == pytest.approx(2.5 * 1.3)
    assert np.isnan(epoch.data[100:110, 32]).all()
    assert ((epoch.mask & Bad.NO_DATA) > 0)[:, :2].all()
    assert np.isfinite(frame.data[:, 40]).all()


def test_the_difference_of_the_epochs_is_as_noisy_as_that_of_two_exposures(rng: np.random.Generator) -> None:
    frame, background = field_of_stars(rng)
    change = EpochChange((0.4, 0.3), 1.25)
    epoch = second_epoch(frame, background, 2.5, replace(change, sky_factor=1.0), rng)
    sigma = 2.5 / 2.3548 * np.sqrt(1.25**2 - 1)
    kernels = [np.exp(-(((np.arange(-6, 7) - shift) / sigma) ** 2) / 2) for shift in change.shift]
    kernels = [kernel / kernel.sum() for kernel in kernels]
    first = np.nan_to_num(frame.data - 300.0)
    smooth = convolve1d(convolve1d(first, kernels[0], axis=1), kernels[1], axis=0)
    difference = epoch.data - 300.0 - smooth
    leaks = np.prod([(kernel**2).sum() for kernel in kernels])
    blank = np.ones(frame.shape, np.bool_)
    blank[:, :60] = False
    blank &= smooth < 15
    noise = 1.4826 * np.median(np.abs(difference[blank]))
    assert noise == pytest.approx(np.sqrt(150 * (1 + leaks)), rel=0.05)
    star = smooth > 500  # photon noise dominates: half the electrons' variance per epoch, as smoothed
    pull = difference[star] / np.sqrt(150 + smooth[star] / 2 + leaks * (150 + smooth[star] / 2))
    assert pull.size > 60
    assert pull.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "change", [EpochChange(fwhm_ratio=0.8), EpochChange(fwhm_ratio=3.0), EpochChange(sky_factor=0.0)]
)
def test_changes_that_cannot_be_made(rng: np.random.Generator, change: EpochChange) -> None:
    frame, background = field_of_stars(rng)
    with pytest.raises(UsageError, match="second epoch"):
        second_epoch(frame, background, 2.5, change, rng)


def test_a_second_epoch_without_a_change_keeps_the_pixels(rng: np.random.Generator) -> None:
    frame, background = field_of_stars(rng)
    epoch = second_epoch(frame, background, 2.5, EpochChange((3.0, 0.0), 1.0, 1.0), rng, name="later")
    assert epoch.name == "later"
    assert epoch.info.fwhm_pix == 2.5
    assert epoch.data[211, 203] == pytest.approx(frame.data[211, 200], rel=0.02)
