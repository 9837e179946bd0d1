"""Tracking errors of exposures: the images of a file are judged and averaged, each file becomes a line of text."""

from __future__ import annotations

import fcntl
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.tracking import FEWEST_STARS, PRIOR, Config, Tracking, load
from tapetum.images.fits import list_images, path_of, read_frame
from tapetum.images.frame import Bad
from tapetum.pipelines.runner import run_over
from tapetum.pipelines.steps import TROUBLE, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa

    from tapetum.core.settings import ClusterSettings
    from tapetum.finders.tracking import Tiling, TrackingVerdict
    from tapetum.surveys.profile import SurveyProfile

OUTPUT = "maxitrack.out"  # the name that MaxiTrack's users know
UNUSABLE = Bad.NO_DATA | Bad.DEFECT
COLUMNS = (
    "file", "image", "hdu", "plane", "x", "y", "n_x", "n_y", "n_stars", "score", "probability", "trail_x_pix",
    "trail_y_pix", "trail_length_pix", "trail_angle_deg", "network_trail_length_pix", "network_trail_angle_deg",
)  # fmt: skip
UNITS = {
    "x": "pix", "y": "pix", "n_x": "pix", "n_y": "pix", "trail_x_pix": "pix", "trail_y_pix": "pix",
    "trail_length_pix": "pix", "trail_angle_deg": "deg", "network_trail_length_pix": "pix",
    "network_trail_angle_deg": "deg",
}  # fmt: skip
DESCRIPTIONS = {
    "file": "as it was given",
    "image": "how to name this image again",
    "hdu": "number or name of the extension; empty: the only image of its file",
    "plane": "0-based plane of a cube",
    "x": "first column of the tile, 0-based",
    "y": "first row of the tile, 0-based",
    "n_stars": "sources in the tile",
    "score": "of the network; none where the tile was not judged",
    "probability": "of a tracking error, at the prior that was asked for",
    "trail_x_pix": "trail vector, of two opposite ones that with trail_angle_deg in [0, 180)",
    "trail_angle_deg": "from +x to +y",
    "trail_length_pix": "of the straight trail that would make the sources as long as most of them are",
    "network_trail_length_pix": "the same as the network sees it",
}


@dataclass(frozen=True)
class TrackingOptions:
    """How exposures are judged.

    Attributes
    ----------
    model
        Name, ``name@version`` or path; None: our own.
    prior, fewest_stars, tiling, normalisation, batch_size
        As in `tapetum.finders.tracking.Config`.
    frac
        How many of the images of a file are judged: below 1 a share, from 1 on a number; None: all.
    seed
        Of the choice among them, which is the same for files with equally many images.
    """

    model: str | None = None
    prior: float = PRIOR
    fewest_stars: int = FEWEST_STARS
    tiling: Tiling = "covering"
    normalisation: Literal["tapetum", "original"] = "tapetum"
    batch_size: int = 4
    frac: float | None = None
    seed: int = 0

    def config(self) -> Config:
        """Settings of the finder."""
        return Config(
            prior=self.prior, fewest_stars=self.fewest_stars, tiling=self.tiling,
            normalisation=self.normalisation, batch_size=self.batch_size,
        )  # fmt: skip


@dataclass(frozen=True)
class Exposure:
    """Images that were taken at once.

    Attributes
    ----------
    name
        In the output: the file's name, with the extension where one was named, and the plane of a cube.
    source
        As it was given.
    images
        As `tapetum.images.fits.read_frame` takes them.
    n_images
        Of how many they were chosen.
    """

    name: str
    source: str
    images: tuple[str, ...]
    n_images: int


@dataclass(frozen=True)
class JudgedExposure:
    """What became of an exposure.

    Attributes
    ----------
    exposure
        Which.
    verdicts
        Image and what was found on it.
    failures
        Why images could not be judged, with their names.
    """

    exposure: Exposure
    verdicts: tuple[tuple[str, TrackingVerdict], ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def probability(self) -> float:
        """Mean over the images, each the mean over its tiles; NaN where none has stars enough."""
        known = [v.frame_probability for _, v in self.verdicts if math.isfinite(v.frame_probability)]
        return float(np.mean(known)) if known else math.nan

    @property
    def trail(self) -> tuple[float, float]:
        """Length [pixel] and angle [deg] of the trail, mean over the images; NaN where it is not known."""
        found = [verdict.frame_trail for _, verdict in self.verdicts]
        kept = np.array([pair for pair in found if math.isfinite(pair[0])])
        if not len(kept):
            return math.nan, math.nan
        twice = np.radians(2 * kept[:, 1])
        cos, sin = (float((kept[:, 0] * part).mean()) for part in (np.cos(twice), np.sin(twice)))
        return math.hypot(cos, sin), math.degrees(math.atan2(sin, cos)) / 2 % 180.0

    @property
    def line(self) -> str:
        """File name and probability with four decimals, ``nan`` where nothing could be told."""
        return f"{self.exposure.name} {self.probability:.4f}\n"

    @property
    def summary(self) -> str:
        """In words."""
        tiles = sum(len(verdict) for _, verdict in self.verdicts)
        judged = sum(int(verdict.judged.sum()) for _, verdict in self.verdicts)
        stars = sum(int(verdict.n_stars.sum()) for _, verdict in self.verdicts)
        text = f"{self.probability:.4f} ({judged} of {tiles} tiles judged, {stars} stars)"
        if not judged:
            return f"cannot be told: no tile has enough stars ({stars} in {tiles} tiles)"
        length, angle = self.trail
        return text + (f", trail {length:.1f} pix at {angle:.0f} deg" if math.isfinite(length) else "")


def judge_exposures(
    sources: Iterable[str],
    options: TrackingOptions,
    *,
    telescope: SurveyProfile | None = None,
    jobs: int = 1,
    scheduler: str = "local",
    cluster: ClusterSettings | None = None,
) -> Iterator[tuple[str, list[JudgedExposure], str | None]]:
    """Judge files one after the other.

    Parameters
    ----------
    sources
        See `tapetum.images.fits.expand_sources`.
    options
        How.
    telescope
        Where they come from; None: each says so itself.
    jobs, scheduler, cluster
        As in `tapetum.pipelines.runner.run_over`; a single file gets the jobs as threads.

    Yields
    ------
    (source, judged, problem)
        In order: what became of the exposures of a file, of which a cube has one for each plane, or why there is none.

    Raises
    ------
    TapetumError
        The model cannot be loaded, or a worker died.
    """
    files = list(sources)
    alone = len(files) == 1 and scheduler == "local"
    setup = partial(_judge, options, telescope, jobs if alone else 1)
    n_workers = 1 if alone else max(min(jobs, len(files)), 1)
    for source, (judged, problem) in run_over(files, setup, n_workers, scheduler=scheduler, cluster=cluster):
        yield source, judged, problem


def _judge(
    options: TrackingOptions, telescope: SurveyProfile | None, threads: int
) -> Callable[[str], tuple[list[JudgedExposure], str | None]]:
    return partial(_judge_file, load(options.model, options.config(), threads=threads), options, telescope)


def _judge_file(
    finder: Tracking, options: TrackingOptions, telescope: SurveyProfile | None, source: str
) -> tuple[list[JudgedExposure], str | None]:
    try:
        exposures = exposures_of(source, options.frac, options.seed)
    except TROUBLE as problem:
        return [], reason(source, problem)
    return [judge_exposure(finder, exposure, telescope) for exposure in exposures], None


def judge_exposure(
    finder: Tracking, exposure: Exposure, telescope: SurveyProfile | None = None
) -> JudgedExposure:
    """Judge all images of an exposure; one that cannot be judged does not stop the others."""
    verdicts, failures = [], []
    for image in exposure.images:
        try:
            frame = read_frame(image, telescope)
            bad = None if finder.config.normalisation == "original" else frame.mask & np.uint8(UNUSABLE)
            verdicts.append((image, finder.find(frame.data, bad, saturation=frame.info.saturation)))
        except TROUBLE as problem:
            failures.append(reason(image, problem))
    return JudgedExposure(exposure, tuple(verdicts), tuple(failures))


def exposures_of(source: str, frac: float | None = None, seed: int = 0) -> list[Exposure]:
    """What a file holds: one exposure of all its two-dimensional images, and one for each plane of its cubes.

    Raises
    ------
    InputError
        As `tapetum.images.fits.list_images`.
    """
    images = list_images(source)
    planes = [image for image in images if _plane_of(image) is not None]
    flat = [image for image in images if _plane_of(image) is None]
    found = []
    if flat:
        chosen = choose(flat, frac, seed)
        found.append(Exposure(Path(source).name, source, tuple(chosen), len(flat)))
    return found + [Exposure(Path(plane).name, source, (plane,), 1) for plane in planes]


def choose(images: Sequence[str], frac: float | None, seed: int) -> list[str]:
    """Some of the images, in their order: below 1 `frac` is a share of them, from 1 on a number; None: all.

    Raises
    ------
    UsageError
        A share of nothing, or a number that is not whole.
    """
    n = n_chosen(len(images), frac)
    picked = np.random.default_rng(seed).permutation(len(images))[:n]
    return [images[index] for index in sorted(picked)]


def n_chosen(n: int, frac: float | None) -> int:
    """How many of n images `frac` means, at least one.

    Raises
    ------
    UsageError
        As `choose`.
    """
    if frac is None:
        return n
    if not 0 < frac < math.inf or (frac >= 1 and frac != int(frac)):
        raise UsageError(
            f"--frac {frac:g}: below 1 it is a share of the HDUs, from 1 on a whole number of them"
        )
    return min(n, int(frac)) if frac >= 1 else max(1, round(frac * n))


def _places(image: str) -> list[str]:
    """What stands in brackets behind the file's name."""
    return str(image)[len(str(path_of(image))) :].strip("[]").split("][") if "[" in str(image) else []


def _plane_of(image: str) -> int | None:
    places = _places(image)
    return int(places[1]) if len(places) == 2 else None


def append_lines(path: Path, text: str) -> None:
    """Add whole lines to the end of a file that others may be adding to as well.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = handle.seek(0, os.SEEK_END)
            if size:
                handle.seek(size - 1)
                if handle.read(1) != b"\n":  # somebody's last line has no end
                    text = "\n" + text
            handle.write(text.encode())
            handle.flush()
    except OSError as problem:
        raise InputError(f"{path}: cannot be written: {problem.strerror}") from None


def tile_table(judged: Iterable[JudgedExposure]) -> pa.Table:
    """One row per tile, with the columns `COLUMNS`; null where there is no number."""
    import pyarrow as pa

    parts: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for one in judged:
        for image, verdict in one.verdicts:
            places, n = _places(image), len(verdict)
            columns: dict[str, Any] = {
                "file": [one.exposure.source] * n, "image": [image] * n, "hdu": [places[0] if places else ""] * n,
                "plane": [_plane_of(image)] * n, "x": verdict.x, "y": verdict.y, "n_x": verdict.n_x,
                "n_y": verdict.n_y, "n_stars": verdict.n_stars, "score": verdict.score,
                "probability": verdict.probability, "trail_x_pix": verdict.trail_x, "trail_y_pix": verdict.trail_y,
                "trail_length_pix": verdict.trail_length, "trail_angle_deg": verdict.trail_angle_deg,
                "network_trail_length_pix": np.hypot(verdict.network_x, verdict.network_y),
                "network_trail_angle_deg": np.degrees(np.arctan2(verdict.network_y, verdict.network_x)) % 180,
            }  # fmt: skip
            for name, values in columns.items():
                parts[name] += list(values)
    return pa.table({name: _array(name, values) for name, values in parts.items()})


def _array(name: str, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    if name in ("file", "image", "hdu"):
        return pa.array(values, pa.string())
    if name in ("plane", "x", "y", "n_x", "n_y", "n_stars"):
        return pa.array(values, pa.int64())
    numbers = np.asarray(values, np.float64)
    return pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
