"""Stars per second of our stamps against GalSim, at equal photometry, and the time of a whole scene.

The same stars - positions, fluxes, one Moffat PSF integrated over pixels - are drawn by both into 33 x 33 pixels,
one thread. GalSim draws each with `drawImage` as its users do, through Fourier space; that is the way the goal means.
The second figure is the fastest way that we could find in it: the PSF with its pixel drawn once, twice oversampled, and
then interpolated in real space, which is to GalSim what our table is to us. GalSim comes with the extra `rivals`.

    python -m benchmarks.simulation [--stars 200000] [--rival-stars 1000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import machine
from tapetum.simulate.scene import SceneSettings, simulate_scene
from tapetum.simulate.stamping import MoffatField, TabulatedPsf

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHAPE = (3080, 3072)
HALF = 16  # of a stamp [pixel]
FWHM, BETA = 2.2, 3.2
GOAL = 100.0
APERTURES = (2.0, 4.0, 8.0)  # radius [pixel]


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Shortest CPU time of a few runs of one thread; wall time means little on a shared machine."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def galsim_image(
    x: NDArray[np.float64], y: NDArray[np.float64], flux: NDArray[np.float64], profile: Any, method: str
) -> NDArray[np.float32]:
    """All stars by GalSim, each drawn into its part of the image."""
    import galsim

    image = galsim.ImageF(SHAPE[1], SHAPE[0], xmin=0, ymin=0, scale=1.0)
    for a, b, light in zip(x.tolist(), y.tolist(), flux.tolist(), strict=True):
        column, row = int(np.floor(a + 0.5)), int(np.floor(b + 0.5))
        part = image[galsim.BoundsI(column - HALF, column + HALF, row - HALF, row + HALF)]
        star = profile.withFlux(light)
        star.drawImage(part, center=galsim.PositionD(a, b), add_to_image=True, method=method)
    return np.asarray(image.array)


def aperture_sums(
    image: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> Any:
    """Light of the pixels whose centre is within a radius."""
    reach = int(radius) + 1
    offset = np.arange(-reach, reach + 1)
    column, row = (np.floor(value + 0.5).astype(int) for value in (x, y))
    cut = image[row[:, None, None] + offset[:, None], column[:, None, None] + offset]
    inside = np.hypot(
        column[:, None, None] + offset - x[:, None, None],
        row[:, None, None] + offset[:, None] - y[:, None, None],
    )
    return (cut * (inside <= radius)).sum((1, 2), dtype=np.float64)


def run(n_stars: int = 200_000, n_rival: int = 1000, repeats: int = 3) -> dict[str, float]:
    """Measure and print; stars per second of both, their ratio, and seconds per scene."""
    rng = np.random.default_rng(20260)
    x, y = rng.uniform(40, SHAPE[1] - 40, n_stars), rng.uniform(40, SHAPE[0] - 40, n_stars)
    flux = 10 ** rng.uniform(2, 5, n_stars)
    constant = TabulatedPsf.of_field(MoffatField(FWHM, BETA), SHAPE)
    varying = TabulatedPsf.of_field(
        MoffatField(FWHM, BETA, e1=(0.03, 0.02, 0), growth=(0, 0, 0.05, 0, 0.05)), SHAPE
    )
    image = np.zeros(SHAPE, np.float32)
    constant.add(image, x[:10], y[:10], flux[:10], reach=HALF)  # compiles
    result = {
        name: n_stars / seconds(lambda psf=psf: psf.add(image, x, y, flux, reach=HALF), repeats)
        for name, psf in (("stars_per_s", constant), ("varying_stars_per_s", varying))
    }
    print(
        f"simulation: stars of {2 * HALF + 1} x {2 * HALF + 1} pixels, one thread: tapetum "
        f"{result['stars_per_s']:.0f}/s, {result['varying_stars_per_s']:.0f}/s with a PSF that varies over the field"
    )
    result |= _rivals(x[:n_rival], y[:n_rival], flux[:n_rival], constant, result, repeats)
    simulate_scene(SceneSettings(shape=(256, 256)), np.random.default_rng(1))
    scenes = [
        seconds(lambda seed=seed: simulate_scene(SceneSettings(), np.random.default_rng(seed)), 1)
        for seed in range(3)
    ]
    result["scene_s"] = float(np.mean(scenes))
    print(
        f"            a scene of {SHAPE[0]} x {SHAPE[1]} pixels, science, reference, masks and truth: "
        f"{result['scene_s']:.1f} s"
    )
    return result


def _rivals(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flux: NDArray[np.float64],
    psf: TabulatedPsf,
    ours: dict[str, float],
    repeats: int,
) -> dict[str, float]:
    try:
        import galsim
    except ImportError:
        print("            GalSim is not installed (pip install 'tapetum[rivals]'): no ratio")
        return {}
    moffat = galsim.Moffat(beta=BETA, fwhm=FWHM)
    seen = galsim.Convolve(moffat, galsim.Pixel(1.0)).drawImage(nx=129, ny=129, scale=0.5, method="no_pixel")
    ways = {
        "galsim": (moffat, "auto"),
        "galsim tabulated": (galsim.InterpolatedImage(seen, flux=1.0), "no_pixel"),
    }
    image = np.zeros(SHAPE, np.float32)
    psf.add(image, x, y, flux, reach=HALF)
    alone = np.array([np.sum(np.hypot(x - a, y - b) < 50) == 1 for a, b in zip(x, y, strict=True)])
    print(f"            GalSim {galsim.__version__} on {len(x)} of them, {alone.sum()} of which stand alone:")
    result: dict[str, float] = {}
    for name, (profile, method) in ways.items():
        theirs = galsim_image(x, y, flux, profile, method)
        rate = len(x) / seconds(lambda p=profile, m=method: galsim_image(x, y, flux, p, m), repeats)
        worst = max(
            float(
                np.abs(
                    aperture_sums(image, x[alone], y[alone], r) / aperture_sums(theirs, x[alone], y[alone], r)
                    - 1
                ).max()
            )
            for r in APERTURES
        )
        result |= {
            f"{name} stars_per_s": rate,
            f"{name} photometry": worst,
            f"{name} ratio": ours["stars_per_s"] / rate,
        }
        goal = f", goal {GOAL:.0f}" if method == "auto" else ""
        print(
            f"            {name}: {rate:.0f}/s, we are {ours['stars_per_s'] / rate:.0f} times as fast "
            f"({ours['varying_stars_per_s'] / rate:.0f} with the varying PSF{goal}); largest difference within "
            f"{APERTURES[0]:.0f} to {APERTURES[-1]:.0f} pixels {worst:.2%} (must be below 1 %)"
        )
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=int, default=200_000)
    parser.add_argument("--rival-stars", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(machine())
    run(args.stars, args.rival_stars, args.repeats)


if __name__ == "__main__":
    main()
