"""Bad lines at the border are masked, good data are not."""

from __future__ import annotations

import numpy as np
import pytest

from tapetum.images.edges import bad_edges, without_bad_edges
from tapetum.images.fits import read_frame
from tapetum.images.frame import Bad, Frame, FrameInfo


def sky(rng: np.random.Generator, shape: tuple[int, int] = (300, 400)) -> tuple[np.ndarray, np.ndarray]:
    dy, dx = np.mgrid[: shape[0], : shape[1]]
    gradient = 200 + 0.1 * dx + 1e-4 * dy**2  # a bright night, and vignetting
    return (gradient + rng.normal(0, 5, shape)).astype(np.float32), np.zeros(shape, np.uint8)


def test_dim_and_bright_lines_are_found_on_every_side(rng: np.random.Generator) -> None:
    data, mask = sky(rng)
    data[:, -3:] -= (20, 60, 120)
    data[0] += 25
    data[:, 0] -= 1
    data[:, 1] += 40  # the outermost column is good, the second is not
    data[-5:] = 100
    assert bad_edges(data, mask) == {"left": 2, "right": 3, "bottom": 1, "top": 5}
    frame, words = without_bad_edges(Frame("a", "a.fits", data, mask, None, None, FrameInfo()))
    assert words.endswith("2 columns left, 3 columns right, 1 row bottom, 5 rows top")
    expected = np.zeros_like(mask, dtype=bool)
    expected[:, :2] = expected[:, -3:] = expected[0] = expected[-5:] = True
    assert ((frame.mask == Bad.DEFECT) == expected).all()
    assert not mask.any()


def test_sky_stars_and_missing_data_are_no_fault(rng: np.random.Generator) -> None:
    data, mask = sky(rng)
    y, x = np.mgrid[:300, :400]
    data += (3e4 * np.exp(-np.hypot(x - 3, y - 100) / 6)).astype(np.float32)  # a star on the edge
    assert bad_edges(data, mask) == {}
    data[:, :7] = np.nan  # not observed
    assert bad_edges(data, mask) == {}
    data[:, 7] += 50
    assert bad_edges(data, mask) == {"left": 8}
    mask[:, 7] = Bad.DEFECT  # somebody knew
    assert bad_edges(data, mask) == {}


def test_a_wide_glow_is_sky(rng: np.random.Generator) -> None:
    data, mask = sky(rng)
    data[:25] += 80
    assert "bottom" not in bad_edges(data, mask)
    assert bad_edges(data[:100, :100], mask[:100, :100]) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ztf_images/ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.fz", {"right": 3, "top": 1}),
        ("imagepairs/sim_dev0_sci.fits.fz", {}),
        ("imagepairs/nircam_sci.fits.fz", {}),
    ],
)
def test_edges_of_real_detectors(real_data, name: str, expected: dict[str, int]) -> None:
    frame = read_frame(real_data / name)
    assert bad_edges(frame.data, frame.mask) == expected
