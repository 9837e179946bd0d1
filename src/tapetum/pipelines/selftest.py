"""Compiled parts against slow truths: what `tapetum doctor` runs, so that a broken compiler shows in time."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import TapetumError
from tapetum.core.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tapetum.images.frame import Frame

SEED = 20260
SIZE = 15  # side of the stamps that test the network input [pixel]
TOLERANCE = 1e-4
SOFTENING = 3.0
SCENE_SIDE = 320  # of the simulated pair [pixel]
SCENE_MAGS = (16.5, 18.5)  # of its new sources: bright enough to be found for certain
EDGE = 16  # no source is asked for this near to the edge [pixel]
CROPPED = (3, 5)  # rows and columns that the reference lacks, so that it has to be aligned
NEAR_PIX, NEAR_FLUX = 0.5, 0.1  # a source comes out this near to where it was put, and its flux to this part


def check_decoding() -> None:
    """Decode simulated packets and compare with what went into them.

    Raises
    ------
    TapetumError
        A number differs.
    """
    import fastavro

    from tapetum.alerts.batch import Rejection
    from tapetum.alerts.decode import decode_packets, warm_up
    from tapetum.alerts.packets import Packet, read_container
    from tapetum.alerts.stamps import BLOCK
    from tapetum.simulate.alerts import alert_schema, simulate_alerts

    warm_up()
    truth = [alert.record for alert in simulate_alerts(3, np.random.default_rng(SEED), at_edge=0)]
    container = io.BytesIO()
    fastavro.writer(container, fastavro.parse_schema(alert_schema()), truth)
    found = list(read_container(container.getvalue(), "self-test"))
    faults = [entry.reason for entry in found if isinstance(entry, Rejection)]
    batches, rejected = decode_packets([entry for entry in found if isinstance(entry, Packet)], history=True)
    faults += [entry.reason for _, entry in rejected]
    if faults or len(batches) != 1:
        raise TapetumError(f"good packets are rejected: {'; '.join(faults)}")
    batch = batches[0][0]
    for row, record in enumerate(truth):
        _same("alert_id", float(batch.alert_id[row] - record["candid"]), 0.0)
        _same("ra", batch.ra[row], record["candidate"]["ra"])
        _same("mag", batch.mag[row], np.float32(record["candidate"]["magpsf"]))
        raw = gzip.decompress(record["cutoutDifference"]["stampData"])
        pixels = np.frombuffer(raw, ">f4", batch.stamps[row, 2].size, BLOCK)
        _same("stamp", batch.stamps[row, 2].ravel(), pixels)


def check_network_input() -> None:
    """Prepare stamps by every normalisation and compare with plain NumPy.

    Raises
    ------
    TapetumError
        A number differs.
    """
    from tapetum.models.card import ImageContract, Normalisation, Padding
    from tapetum.models.inputs import prepare_images

    stamps = np.random.default_rng(SEED).normal(100, 5, (2, 3, SIZE, SIZE)).astype(np.float32)
    shapes = np.full((2, 3, 2), SIZE)
    for method, truth in NORMALISATIONS.items():
        contract = ImageContract(
            name="x",
            size=SIZE,
            channels=("science", "template", "difference"),
            masks="combined",
            normalisation=Normalisation.model_validate({"method": method, "softening": SOFTENING}),
            padding=Padding(side="bottom_right"),
        )
        got = prepare_images(stamps, shapes, contract)
        for number in range(2):
            for channel in range(3):
                _same(method, got[number, channel], truth(stamps[number, channel].astype(np.float64)))
        _same(f"mask of {method}", got[:, 3], np.ones((2, SIZE, SIZE)))


def check_images() -> None:
    """Search a simulated pair from end to end, and compare what is found with what was put in.

    Raises
    ------
    TapetumError
        A source is missing, or comes out wrong.
    """
    from tapetum.images.remap import align
    from tapetum.pipelines.candidates import VETOES, VetoLimits
    from tapetum.pipelines.search_steps import compare, find, prepare, surroundings_of
    from tapetum.simulate.scene import SceneSettings, simulate_scene

    settings = SceneSettings(
        shape=(SCENE_SIDE, SCENE_SIDE),
        stars=(3e4, 3e4),
        variable=0.0,
        registration=0.0,
        fwhm=(2.0, 2.0),
        fwhm_ratio=(0.8, 0.8),
        counts={"transient": (8, 8), "streak": (1, 1)},
        mag_range=SCENE_MAGS,
        on_galaxies=0.0,
    )
    pair = simulate_scene(settings, np.random.default_rng(SEED))
    science = prepare(pair.science)
    reference = prepare(align(_cropped(pair.reference), pair.science))
    compared = compare(science, reference)
    judged = find(compared, VetoLimits())
    surroundings_of(compared)
    good = judged.found[(judged.flags & int(VETOES)) == 0]
    for source in pair.truth:
        if min(source["x"], source["y"]) < EDGE or max(source["x"], source["y"]) > SCENE_SIDE - EDGE:
            continue
        away = np.hypot(good.x - source["x"], good.y - source["y"])
        nearest = int(away.argmin()) if len(good) else -1
        reach = NEAR_PIX + (0.5 * source["length_pix"] if source["kind"] == "streak" else 0.0)
        if nearest < 0 or away[nearest] > reach:
            raise TapetumError(f"a simulated {source['kind']} of magnitude {source['mag']:.1f} is not found")
        flux = good.flux[nearest] / source["flux"]
        if source["kind"] == "transient" and abs(flux - 1) > NEAR_FLUX:
            raise TapetumError(f"a simulated transient comes out with {flux:.2f} of its flux")


def _cropped(frame: Frame) -> Frame:
    """The frame without its first rows and columns."""
    from dataclasses import replace

    part = np.s_[CROPPED[0] :, CROPPED[1] :]
    data, mask = np.ascontiguousarray(frame.data[part]), np.ascontiguousarray(frame.mask[part])
    return replace(frame, data=data, mask=mask, wcs=frame.wcs[part])


def _row_l2(stamp: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(stamp / np.linalg.norm(stamp, axis=1, keepdims=True))


def _stamp_l2(stamp: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(stamp / np.linalg.norm(stamp))


def _stamp_l2_mean(stamp: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(_stamp_l2(stamp) - _stamp_l2(stamp).mean())


def _background_noise(stamp: NDArray[np.float64]) -> NDArray[np.float64]:
    residual = stamp - np.median(stamp)
    return np.asarray(np.arcsinh(residual / (MAD_TO_SIGMA * np.median(np.abs(residual))) / SOFTENING))


NORMALISATIONS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "row_l2": _row_l2,
    "stamp_l2": _stamp_l2,
    "stamp_l2_mean": _stamp_l2_mean,
    "background_noise": _background_noise,
}

SELF_TESTS: Mapping[str, Callable[[], None]] = {
    "alerts.decode": check_decoding,
    "models.inputs": check_network_input,
    "images.search": check_images,
}
"""Every compiled part of Tapetum by name; calling one compiles it, or loads it from numba's cache, and tests it."""


def _same(what: str, found: object, truth: object) -> None:
    if not np.allclose(found, truth, rtol=0, atol=TOLERANCE, equal_nan=True):  # type: ignore[arg-type]
        raise TapetumError(
            f"{what} comes out wrong: numba or the processor's instructions are not to be trusted here"
        )
