"""Tracking errors: our network beside MaxiTrack through the whole finder, on simulated frames and on real ones.

Simulated frames of 400 x 400 pixels are drawn here from seeds that no training uses: trails of six lengths and all
seven kinds, and frames that were tracked: as they come, all with diffraction arms and very bright stars, all with
satellites, and noise without stars. A length is judged against the tracked frames (area under the ROC curve) and by the
share called trailed (probability of at least one half where both answers are equally frequent), with 95 % intervals
from resampling frames. Trails up to half the seeing are no errors, so the table says how many of a row are.
Then straight trails: their length and direction as measured on the sources, and as the network says. Last the real
frames of the developer data, where they are.

MaxiTrack takes part where it was imported:  tapetum models import maxitrack

    OMP_NUM_THREADS=1 python -m benchmarks.tracking [--data DIR] [--model NAME|PATH ...] [--frames 120]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import data_folder, machine
from tapetum.core.errors import InputError, ModelError
from tapetum.finders.tracking import Config, Tracking, load
from tapetum.pipelines.tracking import exposures_of, judge_exposure
from tapetum.simulate.tracking import (
    EXTRAS,
    PATHS,
    STILL,
    TrackingFrame,
    TrackingSettings,
    draw_path,
    tracking_frame,
)
from tapetum.training.evaluate import measure
from tapetum.training.macs import count_macs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.finders.tracking import TrackingVerdict
    from tapetum.training.evaluate import Figure

    Values = NDArray[np.float64]

MODELS = ("tracking", "maxitrack")
SEED = 20267
SHAPE = (400, 400)  # the one size that MaxiTrack takes
LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of trails [pixel]
TRACKED: Mapping[str, Mapping[str, float]] = {
    "tracked": EXTRAS,
    "spikes": {**EXTRAS, "arms": 1.0, "bright": 1.0},
    "satellites": {**EXTRAS, "satellite": 1.0},
    "noise": {**EXTRAS, "satellite": 0.0, "particles": 0.0, "defects": 0.0, "missing": 0.0},
}
"""Rows of tracked frames -> share of them with each extra."""

STEP = 0.5  # of a path [pixel]
GAIN, SKY = 7.0, 300.0  # what a frame in units of its noise is turned into: the finder has to find both again
REAL = {
    "images/nircam_f200w_a.fits": "NIRCam F200W, well tracked, strong spikes",
    "images/trail400_hsc.fits": "Subaru/HSC, satellite",
    "images/m51_kpno_1987.fits": "M51, KPNO",
    "images/clean400_sdss.fits": "SDSS",
    "images/galaxy_apogee.fits": "galaxy field, Apogee",
    "images/trail_ystar.fits": "YSTAR, stars long in one direction",
    "images/saao_ste3.fits": "SAAO, few stars",
    "ztf_images/ztf_20200723164595_000752_zg_c02_o_q3_sciimg.fits.fz": "ZTF quadrant",
    "ztf_images/ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.fz": "ZTF quadrant, crowded",
}


@dataclass(frozen=True)
class Row:
    """What one network says of the frames of a row, arrays of shape (n,).

    Attributes
    ----------
    probability
        At equal frequencies; NaN where the finder abstains.
    error
        The truth: 1, 0, or NaN where either answer is right.
    """

    probability: Values
    error: Values

    @property
    def judged(self) -> Values:
        """Probabilities of the frames that were judged."""
        return self.probability[np.isfinite(self.probability)]


def networks(names: Sequence[str]) -> dict[str, Tracking]:
    """Finders by name; a network that is not there is named and left out.

    Raises
    ------
    SystemExit
        None is there.
    """
    found = {}
    for name in names:
        try:
            found[name] = load(name, Config(prior=0.5))
        except ModelError as problem:
            print(f"tracking: {name} is left out: {problem}")
    if not found:
        raise SystemExit("tracking: no network to be judged")
    return found


def frames(
    number: int, count: int, extras: Mapping[str, float], length_pix: float = 0.0
) -> list[TrackingFrame]:
    """Frames of a row, which its number and `count` fix; those with stars show three of them at least."""
    with_stars = extras is not TRACKED["noise"]
    settings = TrackingSettings(
        shape=SHAPE, fwhm=(1.5, 6.0), density=(10, 600), empty=0.0 if with_stars else 1.0, extras=extras
    )
    made: list[TrackingFrame] = []
    attempt = 0
    while len(made) < count:
        rng = np.random.default_rng([SEED, number, attempt])
        path = draw_path(PATHS[attempt % len(PATHS)], length_pix, STEP, rng) if length_pix else STILL
        frame = tracking_frame(settings, rng, path=path)
        if frame.n_visible >= 3 or not with_stars:
            made.append(frame)
        attempt += 1
    return made


def verdict_of(finder: Tracking, frame: TrackingFrame) -> TrackingVerdict | None:
    """What a finder says of a simulated frame; None where it refuses it."""
    try:
        return finder.find(frame.data * GAIN + SKY)
    except InputError:
        return None


def judge(finders: Mapping[str, Tracking], made: Sequence[TrackingFrame]) -> dict[str, Row]:
    """All frames of a row by all networks."""
    error = np.array([frame.error for frame in made])
    rows = {}
    for name, finder in finders.items():
        verdicts = [verdict_of(finder, frame) for frame in made]
        rows[name] = Row(
            np.array([math.nan if verdict is None else verdict.frame_probability for verdict in verdicts]),
            error,
        )
    return rows


def area(trailed: Values, tracked: Values) -> Figure:
    """How often a trailed frame gets more than a tracked one."""
    score = np.concatenate([trailed, tracked])
    truth = np.repeat([1.0, 0.0], [len(trailed), len(tracked)])
    return measure(score, truth, [str(i) for i in range(len(score))], names=("auc",))["auc"]


def called(probability: Values) -> Figure:
    """Share called trailed."""
    objects = [str(i) for i in range(len(probability))]
    return measure(probability, np.zeros(len(probability)), objects, names=("accepted",))["accepted"]


def in_words(figure: Figure) -> str:
    """Value and interval."""
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})" if figure.n else "abstains"


def simulated(finders: Mapping[str, Tracking], count: int) -> dict[str, dict[str, float]]:
    """Print the table of simulated frames; AUC by length and calls by row, for each network."""
    print(f"tracking: {count} simulated frames of {SHAPE[1]} x {SHAPE[0]} pixels per row", flush=True)
    result: dict[str, dict[str, float]] = {name: {} for name in finders}
    still: dict[str, Row] = {}
    for number, (kind, extras) in enumerate(TRACKED.items()):
        rows = judge(finders, frames(number, count, extras))
        still = still or rows
        for name, row in rows.items():
            share = called(row.judged)
            result[name][kind] = share.value
            print(
                f"    {kind:12s} {name:10s} calls {in_words(share)}, abstains on {count - len(row.judged)}"
                f" of {count}",
                flush=True,
            )
    for number, length in enumerate(LENGTHS, len(TRACKED)):
        for name, row in judge(finders, frames(number, count, EXTRAS, length)).items():
            ranked, share = area(row.judged, still[name].judged), called(row.judged)
            result[name][f"auc_{length:g}"], result[name][f"called_{length:g}"] = ranked.value, share.value
            print(
                f"    {length:4g} pixel   {name:10s} AUC {in_words(ranked)}, calls {in_words(share)}; errors"
                f" {int((row.error == 1).sum())}, none {int((row.error == 0).sum())}, either"
                f" {int(np.isnan(row.error).sum())}, abstains on {count - len(row.judged)}",
                flush=True,
            )
    return result


def off_by(angle: Values, truth: Values) -> Values:
    """Angles between directions without sign [deg]."""
    return np.asarray(np.abs((angle - truth + 90) % 180 - 90), np.float64)


def trails(finder: Tracking, count: int) -> None:
    """Print lengths and directions of straight trails: of the sources, and of the network where it gives them."""
    print(
        f"tracking: {count} frames of {SHAPE[1]} x {SHAPE[0]} pixels with straight trails, medians",
        flush=True,
    )
    settings = TrackingSettings(shape=SHAPE, fwhm=(1.5, 6.0), density=(20, 600), empty=0.0)
    for number, length in enumerate((0.0, *LENGTHS[2:])):
        found = []
        for attempt in range(count):
            rng = np.random.default_rng([SEED, 100 + number, attempt])
            path = draw_path("straight", length, STEP, rng) if length else STILL
            verdict = verdict_of(finder, tracking_frame(settings, rng, path=path))
            if verdict is None or not verdict.judged.any():
                continue
            at = int(np.flatnonzero(verdict.judged)[0])  # a frame is one tile
            theirs = verdict.network_x[at], verdict.network_y[at]
            found.append(
                (
                    *verdict.frame_trail, math.hypot(*theirs), math.degrees(math.atan2(theirs[1], theirs[0])),
                    math.degrees(path.angle),
                )
            )  # fmt: skip
        print(_trail_line(length, np.array(found)), flush=True)


def _trail_line(length: float, found: Values) -> str:
    """Of rows with length and angle measured, length and angle of the network, and true angle."""
    parts = []
    for who, first in (("sources", 0), ("network", 2)):
        if np.isnan(found[:, first]).all():  # a network without trails
            continue
        quarter, middle, most = np.quantile(found[:, first], (0.25, 0.5, 0.75))
        text = f"{who} {middle:.1f} pixel (quartiles {quarter:.1f} and {most:.1f})"
        if length:
            text += f", off by {np.median(off_by(found[:, first + 1], found[:, 4])):.0f} deg"
        parts.append(text)
    return f"    {length:4g} pixel   {'; '.join(parts)}; {len(found)} frames"


def real(finders: Mapping[str, Tracking], folder: Path | None) -> None:
    """Print probabilities of the real frames."""
    if folder is None:
        print("tracking: no real frames: point --data or TAPETUM_TEST_DATA at a folder with images/")
        return
    print("tracking: real frames of the developer data, probability at equal frequencies", flush=True)
    for name, what in REAL.items():
        path = folder / name
        if not path.is_file():
            print(f"    {what}: skipped, {name} is not in the data")
            continue
        (exposure,) = exposures_of(str(path))
        parts = []
        for who, finder in finders.items():
            judged = judge_exposure(finder, exposure)
            parts.append(f"{who} {'; '.join(judged.failures) or judged.summary}")
        print(f"    {what} ({path.name}): {' | '.join(parts)}", flush=True)


def multiplications(finder: Tracking) -> float:
    """Of a network per pixel, counted on one tile of `SHAPE`."""
    import onnx

    graph = onnx.load(finder.model.origin)
    size = (1, 1, *SHAPE)
    for entry in graph.graph.input:
        for axis, n in zip(entry.type.tensor_type.shape.dim, size, strict=True):
            axis.dim_value = n
    del graph.graph.value_info[:]  # shapes of any size, which would stay
    for entry in graph.graph.output:
        entry.type.tensor_type.ClearField("shape")
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as folder:
        fixed = Path(folder) / "fixed.onnx"
        onnx.save(graph, str(fixed))
        return count_macs(fixed) / math.prod(size)


def run(
    names: Sequence[str] = MODELS, folder: Path | None = None, count: int = 120
) -> dict[str, dict[str, float]]:
    """Measure and print; AUC by length and share of calls by row, for each network."""
    finders = networks(names)
    for name, finder in finders.items():
        size = Path(finder.model.origin).stat().st_size / 1e6
        print(f"tracking: {name}: {multiplications(finder):.0f} multiplications per pixel, {size:.1f} MB")
    result = simulated(finders, count)
    trails(next(iter(finders.values())), count)
    real(finders, folder or data_folder())
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of real data; default: $TAPETUM_TEST_DATA")
    parser.add_argument(
        "--model", nargs="+", default=MODELS, metavar="NAME|PATH", help="networks, ours first"
    )
    parser.add_argument("--frames", type=int, default=120, help="per row")
    args = parser.parse_args()
    print(machine())
    run(args.model, args.data, args.frames)


if __name__ == "__main__":
    main()
