"""Light on pixels: exact positions and fluxes, the shape of trails, charge that bleeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from tapetum.images.psf import PsfModel
from tapetum.simulate.stamping import (
    MoffatField,
    Patch,
    TabulatedPsf,
    bleed,
    extended_patch,
    fine_psf,
    line_points,
    points_patch,
    star_patch,
)

SHAPE = (300, 400)


@pytest.fixture(scope="module")
def varying() -> TabulatedPsf:
    field = MoffatField(
        2.1, 3.2, e1=(0.05, 0.02, 0), e2=(0.02, 0, 0.02), growth=(0.03, 0, 0.08, 0, 0.08), coma=0.1
    )
    return TabulatedPsf.of_field(field, SHAPE)


class GaussianPsf:
    """An exact Gaussian, integrated over pixels: what a trail is known of in closed form."""

    size = 41

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def stamps(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([self._one(a, b) for a, b in zip(x, y, strict=True)]).astype(np.float32)

    def _one(self, x: float, y: float) -> np.ndarray:
        return np.outer(self._axis(y), self._axis(x))

    def _axis(self, place: float) -> np.ndarray:
        edges = np.arange(-20.5, 21) + np.floor(place + 0.5) - place
        return np.diff(erf(edges / (self.sigma * np.sqrt(2)))) / 2


def windowed_centre(stamp: np.ndarray, sigma: float = 1.0) -> tuple[float, float]:
    """Centre in a Gaussian window, from the middle of the stamp."""
    half = stamp.shape[0] // 2
    axis = np.arange(-half, half + 1.0)
    x = y = 0.0
    for _ in range(20):
        window = np.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2)) * stamp
        x += 2 * ((window.sum(0) * (axis - x)).sum() / window.sum())
        y += 2 * ((window.sum(1) * (axis - y)).sum() / window.sum())
    return x, y


def test_a_table_agrees_with_the_profile_between_its_nodes_and_phases() -> None:
    field = MoffatField(2.4, 3.0, e1=(0.1, 0, 0), growth=(0.06, 0, 0, 0, 0))
    table = TabulatedPsf.of_field(field, SHAPE, wings=False)
    x, y = 131.3, 77.85
    [stamp] = table.stamps(np.array([x]), np.array([y]))
    # the same star from a grid so fine that one of its samples is the star's own phase
    u, v = 2 * x / (SHAPE[1] - 1) - 1, 2 * y / (SHAPE[0] - 1) - 1
    side, over = stamp.shape[0], 20
    fine = field.sampled(u, v, side, over, unit=field.total(u, v, side))
    rows, columns = (round(over / 2 - over * (value - np.floor(value + 0.5))) for value in (y, x))
    truth = fine[rows::over, columns::over][:side, :side]
    assert np.abs(stamp - truth).max() < 3e-3 * truth.max()
    assert stamp.sum() == pytest.approx(1, abs=3e-4)


def test_positions_are_exact_at_every_phase(varying: TabulatedPsf) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(30, 370, 60), rng.uniform(30, 270, 60)
    offsets = [
        np.subtract(windowed_centre(stamp), (a - np.floor(a + 0.5), b - np.floor(b + 0.5)))
        for stamp, a, b in zip(varying.stamps(x, y), x, y, strict=True)
    ]
    assert np.abs(offsets).max() < 0.01


def test_faint_stamps_end_early_but_keep_their_flux(varying: TabulatedPsf) -> None:
    faint, whole = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    star = [np.array([200.2]), np.array([150.7]), np.array([500.0])]
    varying.add(faint, *star, faintest=0.5)
    varying.add(whole, *star)
    assert (faint > 0).sum() < 0.1 * (whole > 0).sum()
    assert faint.sum() == pytest.approx(500, rel=0.02)
    assert whole.sum() == pytest.approx(500, rel=1e-3)


def test_wings_continue_where_the_core_ends() -> None:
    table = TabulatedPsf.of_field(MoffatField(2.5, 2.6, aureole=0.02), SHAPE)
    image = np.zeros(SHAPE, np.float32)
    table.add(image, np.array([200.0]), np.array([150.0]), np.array([1e6]), faintest=0.1)
    profile = image[150, 200:300]
    step = profile[1:] / profile[:-1]
    edge = table.size // 2
    assert (step < 1).all()
    assert step[edge] == pytest.approx((step[edge - 1] + step[edge + 1]) / 2, rel=0.02)


def test_the_order_of_stars_does_not_matter_and_edges_cut(varying: TabulatedPsf) -> None:
    rng = np.random.default_rng(2)
    x, y, flux = rng.uniform(-10, 410, 500), rng.uniform(-10, 310, 500), rng.uniform(1, 100, 500)
    one, other = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    varying.add(one, x, y, flux)
    varying.add(other, x[::-1], y[::-1], flux[::-1])
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert one.sum() < flux.sum()


def test_a_measured_psf_becomes_the_same_table() -> None:
    model = PsfModel.moffat(2.3, 3.0, SHAPE, ellipticity=0.1, angle_deg=30)
    table = TabulatedPsf.of_measured(model, SHAPE, over=12, nodes=2)
    x, y = np.array([100.31, 250.5, 13.999]), np.array([100.78, 20.49, 250.02])
    given = model.stamps(x, y)
    assert np.abs(table.stamps(x, y) - given).max() < 4e-3 * given.max()


def test_a_trail_is_the_psf_convolved_with_a_line() -> None:
    """Veres et al. (2012): for a Gaussian PSF the trail is a difference of error functions."""
    sigma, length, angle = 1.1, 23.7, np.radians(33.0)
    dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
    x, y, weight = line_points(50.3 - dx, 60.9 - dy, 50.3 + dx, 60.9 + dy)
    patch = points_patch(GaussianPsf(sigma), x, y, 1000 * weight)
    assert patch.data.sum() == pytest.approx(1000, rel=1e-5)
    n_y, n_x = patch.data.shape
    over = 9  # the closed form is before the pixel: integrate it
    fine_x = patch.left - 0.5 + (np.arange(n_x * over) + 0.5) / over - 50.3
    fine_y = patch.bottom - 0.5 + (np.arange(n_y * over) + 0.5) / over - 60.9
    u = fine_x * np.cos(angle) + fine_y[:, None] * np.sin(angle)
    v = fine_y[:, None] * np.cos(angle) - fine_x * np.sin(angle)
    root = sigma * np.sqrt(2)
    light = np.exp(-(v**2) / (2 * sigma**2)) * (erf((u + length / 2) / root) - erf((u - length / 2) / root))
    light *= 1000 / (2 * length * np.sqrt(2 * np.pi) * sigma) / over**2
    truth = light.reshape(n_y, over, n_x, over).sum((1, 3))
    assert np.abs(patch.data - truth).max() < 2e-3 * truth.max()


def test_a_fine_psf_interleaves_the_stamps() -> None:
    psf = GaussianPsf(1.3)
    fine = fine_psf(psf, 10.2, 20.9, 5)
    assert fine.shape == (205, 205)
    assert fine.sum() == pytest.approx(25, rel=1e-5)
    assert np.unravel_index(fine.argmax(), fine.shape) == (102, 102)
    np.testing.assert_allclose(fine, fine[::-1, ::-1], atol=1e-6)


def test_extended_light_of_one_cell_is_a_star() -> None:
    psf, over = GaussianPsf(1.0), 5
    light = np.zeros((61 * over, 61 * over), np.float32)
    light[30 * over + 4, 30 * over + 1] = 7.0  # 0.4 above and 0.2 left of the middle of pixel (30, 30)
    patch = extended_patch(psf, 40.0, 40.0, 10, 10, light, over)
    star = star_patch(psf, 39.8, 40.4, 7.0)
    row, column = star.bottom - patch.bottom, star.left - patch.left
    part = patch.data[row : row + 41, column : column + 41]
    np.testing.assert_allclose(part, star.data, atol=1e-5)


def test_a_patch_beside_the_frame_is_nowhere() -> None:
    patch = Patch(-5, -5, np.ones((4, 4), np.float32))
    assert patch.on((10, 10)) is None
    covered = Patch(-2, 8, np.ones((4, 4), np.float32)).on((10, 10))
    assert covered is not None
    assert covered[0] == (slice(8, 10), slice(0, 2))


def test_charge_runs_along_columns_and_is_kept() -> None:
    data = np.full((100, 3), 10.0, np.float32)
    data[50, 1] = 1000.0
    before = data.sum()
    bleed(data, 100.0)
    assert data.sum() == pytest.approx(before, rel=1e-6)
    assert (data[:, [0, 2]] == 10).all()
    full = np.flatnonzero(data[:, 1] > 10)
    assert (full.min(), full.max()) == (45, 55)
    assert data.max() == 100.0


def test_pixels_that_were_over_the_level_stay_as_they_are() -> None:
    data = np.full((40, 2), 10.0, np.float32)
    data[10, 0] = 500.0
    bounds = np.maximum(data, np.float32(100))
    data[20, 0] = 300.0
    bleed(data, bounds)
    assert data[10, 0] == 500.0
    assert data[20, 0] == 100.0
