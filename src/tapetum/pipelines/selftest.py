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

SEED = 20260
SIZE = 15  # side of the stamps that test the network input [pixel]
TOLERANCE = 1e-4
SOFTENING = 3.0


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
}
"""Every compiled part of Tapetum by name; calling one compiles it, or loads it from numba's cache, and tests it."""


def _same(what: str, found: object, truth: object) -> None:
    if not np.allclose(found, truth, rtol=0, atol=TOLERANCE, equal_nan=True):  # type: ignore[arg-type]
        raise TapetumError(
            f"{what} comes out wrong: numba or the processor's instructions are not to be trusted here"
        )
