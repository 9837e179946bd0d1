"""Light curves of made-up variable stars, with their periods: what a network learns shapes and noise from.

They are no model of any class: shapes are drawn from wide families (Fourier series of falling amplitudes, saw teeth,
eclipses, cycles that differ, random walks, explosions), and so are cadence, errors and brightness, so that a network
that learned from them knows no survey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves.curves import LightCurves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

KINDS = ("series", "saw", "eclipse", "cycles", "walk", "explosion")
SHARES = (0.3, 0.2, 0.25, 0.1, 0.1, 0.05)


@dataclass(frozen=True)
class SimulatedCurves:
    """Curves and what they are.

    Attributes
    ----------
    curves : LightCurves
        Sorted by time; `lc_id` is ``sim-<seed>-<number>``.
    period : ndarray, shape (n_curves,)
        [d]; NaN where there is none.
    kind : tuple of str
        Of `KINDS`.
    """

    curves: LightCurves
    period: Values
    kind: tuple[str, ...]


def simulate_variables(count: int, seed: int, first: int = 0) -> SimulatedCurves:
    """Make light curves; the same number of the same seed is the same curve in every run.

    Parameters
    ----------
    count
        Curves.
    seed, first
        Curves are numbered from `first`.
    """
    rows = [_one(np.random.default_rng([seed, number])) for number in range(first, first + count)]
    curves = LightCurves.of_lists(
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        {"lc_id": [f"sim-{seed}-{number}" for number in range(first, first + count)]},
    )
    return SimulatedCurves(curves, np.array([row[3] for row in rows]), tuple(row[4] for row in rows))


def _one(rng: np.random.Generator) -> tuple[Values, Values, Values, float, str]:
    kind = str(rng.choice(KINDS, p=SHARES))
    time = observed_times(rng)
    span = float(time[-1] - time[0])
    longest = {"cycles": 1000.0, "series": 300.0, "saw": 80.0}.get(kind, 30.0)
    period = min(float(np.exp(rng.uniform(np.log(0.05), np.log(longest)))), span / 2)
    phase = time / period + rng.random()
    if kind == "eclipse":
        shape = eclipses(phase, rng)
    elif kind == "saw":
        shape = saw_tooth(phase, rng)
    elif kind == "series":
        shape = fourier_series(phase, rng)
    elif kind == "cycles":
        shape = unlike_cycles(phase, rng)
    else:
        shape = random_walk(time, rng) if kind == "walk" else explosion(time, rng)
    amplitude = float(np.exp(rng.uniform(np.log(0.02), np.log(2.0))))
    deviation = amplitude * shape / max(float(np.ptp(shape)), 1e-6)
    # from hardly seen to very clear
    error = np.full(time.size, amplitude * np.exp(rng.uniform(np.log(0.01), np.log(0.6))))
    error *= np.exp(rng.normal(0, 0.3, time.size))
    mag = 15.0 + deviation + rng.normal(0, 1, time.size) * error
    told = error * np.exp(rng.normal(0, 0.2))  # surveys know their errors as badly as that
    return time, mag, told, period if kind not in ("walk", "explosion") else float("nan"), kind


def observed_times(rng: np.random.Generator) -> Values:
    """Times [d] at which a survey looks: nights, seasons, a few hundred points."""
    count = int(np.exp(rng.uniform(np.log(30), np.log(600))))
    span = float(np.exp(rng.uniform(np.log(60), np.log(3500))))
    nights = np.sort(rng.integers(0, max(int(span), 20), count)).astype(np.float64)
    if rng.random() < 0.7:  # half of each year, shifted
        season = (nights + rng.uniform(0, 365)) % 365.25
        kept = nights[season < rng.uniform(150, 330)]
        nights = kept if kept.size >= 15 else nights
    hour = rng.normal(rng.uniform(0.3, 0.7), rng.uniform(0.02, 0.12), nights.size)
    return np.sort(nights + hour)


def fourier_series(phase: Values, rng: np.random.Generator) -> Values:
    """A few harmonics of falling amplitudes."""
    fall = rng.uniform(0.05, 0.6)
    out = np.zeros_like(phase)
    for k in range(1, int(rng.integers(1, 7)) + 1):
        out += fall ** (k - 1) * rng.uniform(0.5, 1.0) * np.cos(2 * np.pi * (k * phase + rng.random()))
    return out


def saw_tooth(phase: Values, rng: np.random.Generator) -> Values:
    """A steep rise and a slow fall, as of a star that pulsates."""
    turn = phase % 1
    rise = rng.uniform(0.05, 0.5)
    tooth = np.where(turn < rise, 1 - turn / rise, (turn - rise) / (1 - rise))
    return np.asarray(tooth ** rng.uniform(0.6, 1.6) + 0.05 * rng.random() * np.sin(4 * np.pi * turn))


def eclipses(phase: Values, rng: np.random.Generator) -> Values:
    """Two minima of any width and depth, and the waves of stars that are no spheres."""
    width = np.exp(rng.uniform(np.log(0.015), np.log(0.13)))
    second = rng.uniform(0.05, 1.0)
    apart = 0.5 if rng.random() < 0.8 else rng.uniform(0.3, 0.7)
    flat = rng.uniform(1.5, 6.0)

    def dip(centre: float) -> Values:
        away = np.abs((phase - centre + 0.5) % 1 - 0.5)
        return np.asarray(np.exp(-0.5 * (away / width) ** flat))

    wave = rng.uniform(0, 0.5) * min(width / 0.1, 1.0) * np.cos(4 * np.pi * phase)
    return np.asarray(dip(0.0) + second * dip(apart) + wave)


def unlike_cycles(phase: Values, rng: np.random.Generator) -> Values:
    """Waves whose height changes from one cycle to the next, as of a giant."""
    cycle = np.floor(phase).astype(np.int64)
    height = np.exp(rng.normal(0, rng.uniform(0.05, 0.5), int(cycle.max() - cycle.min()) + 2))
    own = height[cycle - cycle.min()]
    return np.asarray(
        own * np.cos(2 * np.pi * phase) + 0.3 * own * np.cos(4 * np.pi * phase + rng.uniform(0, 6))
    )


def random_walk(time: Values, rng: np.random.Generator) -> Values:
    """A damped random walk, as of a young star or a quasar."""
    tau = np.exp(rng.uniform(np.log(2), np.log(300)))
    out = np.empty(time.size)
    out[0] = rng.normal()
    for i, gap in enumerate(np.diff(time), 1):
        keep = np.exp(-gap / tau)
        out[i] = keep * out[i - 1] + np.sqrt(1 - keep**2) * rng.normal()
    return out


def explosion(time: Values, rng: np.random.Generator) -> Values:
    """A fast rise and a slow fall, once."""
    span = time[-1] - time[0]
    start = time[0] + span * rng.uniform(0.0, 0.6)
    fall = max(span * rng.uniform(0.05, 0.5), 1.0)
    rise = fall * rng.uniform(0.1, 0.5)
    since = time - start
    return np.asarray(-np.where(since < 0, np.exp(since / rise), np.exp(-since / fall)))
