"""Whole alert packets made on the spot, with truth: simulated stamps in ZTF-like records, with a history.

They stand in for real alerts where no network is there, and feed tests. The survey's own scores (``rb``,
``drb``) are null, because no survey scored them. Ids follow from the pixels: the same alert has the same ids in
every run, and alerts of another seed, number or version of the simulation never share them.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.alerts.stamps import write_stamp
from tapetum.core.files import whole_file
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.simulate.injections import SCENARIOS, simulate_alert

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

JD_MINUS_MJD = 2_400_000.5
EXPOSURE_S = 30.0
FIRST_MJD, NIGHTS = 60_000.0, 30
FIRST_CANDID = 2_000_000_000_000_000_000  # far from those of ZTF; history rows use the numbers just below
SERIAL_BYTES = 6  # among 100,000 alerts two share a number with a chance of 2e-5
APERTURE_PIX = 3.0
LEAST_SNR = 3.0

TRANSIENT = ("new_source", "on_galaxy", "near_star")
VARIABLE = ("variable", "ringing_variable")
MOVING = ("moving",)
BOGUS = tuple(kind for kind in SCENARIOS if kind not in (*TRANSIENT, *VARIABLE, *MOVING))
SHARES: Mapping[str, float] = {
    **dict.fromkeys(TRANSIENT, 0.08),
    **dict.fromkeys(VARIABLE, 0.10),
    **dict.fromkeys(MOVING, 0.10),
    **dict.fromkeys(BOGUS, 0.46 / len(BOGUS)),
}
"""How often each scenario is drawn: about what a stream without any cut looks like."""


@dataclass(frozen=True)
class SimulatedAlert:
    """One packet and what is true about it.

    Attributes
    ----------
    record
        Fits the schema of `alert_schema`.
    truth
        Scenario, a key of `tapetum.simulate.injections.SCENARIOS`.
    target
        Probability that the alert is real, from the energies of change and artefact.
    """

    record: dict[str, Any]
    truth: str
    target: float


@cache
def _schema_text() -> str:
    return (files(__package__) / "ztf_alert.avsc").read_text()


def alert_schema() -> dict[str, Any]:
    """Avro schema of the simulated packets, ready for fastavro."""
    schema: dict[str, Any] = json.loads(_schema_text())
    return schema


def simulate_alerts(
    n: int,
    rng: np.random.Generator,
    *,
    shares: Mapping[str, float] = SHARES,
    at_edge: float = 0.03,
    with_missing: float = 0.10,
) -> list[SimulatedAlert]:
    """Draw alerts of one survey, each of its own object.

    Parameters
    ----------
    n
        How many.
    rng
        Source of every random choice.
    shares
        Weight of each scenario; they need not sum to 1.
    at_edge
        Share of alerts whose stamps a detector edge cuts short.
    with_missing
        Share of alerts with NaN pixels.

    Returns
    -------
    list of SimulatedAlert
    """
    kinds = list(shares)
    weights = np.array([shares[kind] for kind in kinds])
    drawn = rng.choice(len(kinds), n, p=weights / weights.sum())
    return [_simulate_one(kinds[which], rng, at_edge, with_missing) for which in drawn.tolist()]


def write_alerts(path: Path, alerts: Sequence[SimulatedAlert]) -> None:
    """Write the packets into one Avro container, which appears whole."""
    import fastavro

    with whole_file(path) as part, part.open("wb") as handle:
        fastavro.writer(handle, fastavro.parse_schema(alert_schema()), [alert.record for alert in alerts])


def cut_at_edge(stamps: NDArray[np.float32], n_lost: int, side: int) -> NDArray[np.float32]:
    """Stamps that lose pixels at one detector edge, as a survey delivers them: smaller, not padded.

    Parameters
    ----------
    stamps : ndarray of float32, shape (3, n_y, n_x)
    n_lost
        Rows or columns that lie off the detector.
    side
        0 bottom, 1 top, 2 left, 3 right.
    """
    keep = slice(n_lost, None) if side % 2 == 0 else slice(None, -n_lost)
    return stamps[:, keep] if side < 2 else stamps[:, :, keep]


def lose_pixels(stamps: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Stamps with NaN pixels: a masked column, the rim of a saturated star, or a strip without reference.

    Parameters
    ----------
    stamps : ndarray of float32, shape (3, n_y, n_x)
    rng
        Draws what is missing and where.
    """
    lost = stamps.copy()
    n_y, n_x = stamps.shape[1:]
    kind = rng.integers(3)
    if kind == 0:
        column = int(rng.integers(n_x))
        lost[:, :, column : column + int(rng.integers(1, 4))] = np.nan
    elif kind == 1:
        y, x = np.ogrid[:n_y, :n_x]
        hole = np.hypot(y - rng.uniform(0, n_y), x - rng.uniform(0, n_x)) < rng.uniform(2, 8)
        lost[:, hole] = np.nan
    else:
        lost[1:, : int(rng.integers(3, 20))] = np.nan  # template and difference
    return lost


def _simulate_one(kind: str, rng: np.random.Generator, at_edge: float, with_missing: float) -> SimulatedAlert:
    drawn = simulate_alert(kind, rng, flip=0.0)
    stamps, snr = drawn.stamps, aperture_snr(drawn.stamps[2])
    if snr < 0:  # the survey stores a negative difference with its sign flipped
        stamps[2] = -stamps[2]
    if rng.random() < at_edge:
        stamps = cut_at_edge(stamps, int(rng.integers(1, 30)), int(rng.integers(4)))
    if rng.random() < with_missing:
        stamps = lose_pixels(stamps, rng)
    record = _record(_serial(stamps), kind, snr, stamps, rng)
    return SimulatedAlert(record, kind, drawn.target)


def _serial(stamps: NDArray[np.float32]) -> int:
    """A number that tells these stamps from all others: their noise never comes twice."""
    return int.from_bytes(hashlib.sha256(stamps.astype(">f4").tobytes()).digest()[:SERIAL_BYTES])


def aperture_snr(difference: NDArray[np.float32]) -> float:
    """Signal to noise of what lies at the centre of a difference stamp, with its sign.

    Parameters
    ----------
    difference : ndarray of float32, shape (n_y, n_x)
        Finite everywhere.
    """
    n_y, n_x = difference.shape
    y, x = np.ogrid[:n_y, :n_x]
    inside = np.hypot(y - n_y // 2, x - n_x // 2) <= APERTURE_PIX
    sky = float(np.median(difference))
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(difference - sky)))
    signal = float((difference[inside] - sky).sum()) / (sigma * math.sqrt(inside.sum()))
    return signal if abs(signal) > LEAST_SNR else math.copysign(LEAST_SNR, signal)


def _record(
    serial: int, kind: str, snr: float, stamps: NDArray[np.float32], rng: np.random.Generator
) -> dict[str, Any]:
    object_id = f"SIM{serial:0{2 * SERIAL_BYTES}x}"
    mjd = FIRST_MJD + NIGHTS + rng.uniform(0.1, 0.45)
    fid = int(rng.integers(1, 4))
    limit = float(rng.normal(20.5, 0.4))
    ra, dec = float(rng.uniform(0, 360)), math.degrees(math.asin(rng.uniform(-0.48, 0.99)))
    candid = FIRST_CANDID + 2 * NIGHTS * serial
    own = _photometry(mjd, fid, limit, snr, ra, dec, candid)
    past = _history(kind, own, rng)
    candidate = {**own, **_context(kind, own, past, rng), "scorr": abs(snr), "candid": candid}
    cutouts = {
        f"cutout{name}": {
            "fileName": f"{candid}_{name.lower()}.fits.gz",
            "stampData": write_stamp(stamp),
        }
        for name, stamp in zip(("Science", "Template", "Difference"), stamps, strict=True)
    }
    return {
        "schemavsn": "4.02",
        "publisher": "tapetum.simulate",
        "objectId": object_id,
        "candid": candid,
        "candidate": candidate,
        "prv_candidates": past or None,
        **cutouts,
    }


def _photometry(
    mjd: float, fid: int, limit: float, snr: float | None, ra: float, dec: float, candid: int | None
) -> dict[str, Any]:
    """The fields that an alert and a row of its history share; `snr` None is a non-detection."""
    row: dict[str, Any] = {
        "jd": mjd + JD_MINUS_MJD,
        "fid": fid,
        "pid": int((mjd - FIRST_MJD) * 1e9),
        "programid": 1,
        "diffmaglim": limit,
        "candid": candid,
        **dict.fromkeys(("isdiffpos", "ra", "dec", "magpsf", "sigmapsf")),
    }
    if snr is not None:
        row |= {"isdiffpos": "t" if snr > 0 else "f", "ra": ra, "dec": dec}
        row |= {"magpsf": limit - 2.5 * math.log10(abs(snr) / 5), "sigmapsf": min(1.0857 / abs(snr), 0.35)}
    return row


def _history(kind: str, own: Mapping[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Visits of the 30 nights before: a rise from nothing, a life of ups and downs, or nothing but limits."""
    rows = []
    rise_days, since_days = rng.uniform(3, 15), rng.uniform(0, 20)
    for night in np.sort(rng.choice(NIGHTS, int(rng.integers(5, 20)), replace=False)).tolist():
        mjd = FIRST_MJD + night + float(rng.uniform(0.1, 0.45))
        limit = float(rng.normal(20.5, 0.4))
        snr = 5 * 10 ** (0.4 * (limit - own["magpsf"]))
        age = since_days + mjd - (own["jd"] - JD_MINUS_MJD)
        if kind in TRANSIENT:
            snr *= max(0.0, min(1.0, age / rise_days))
        elif kind in VARIABLE:
            snr *= float(rng.normal(0, 1))
        else:
            snr *= float(rng.random() < 0.05 and kind in BOGUS)
        seen = abs(snr) >= 5
        scatter = rng.normal(0, 0.2 / 3600, 2)
        candid = own["candid"] - 1 - night if seen else None
        position = own["ra"] + float(scatter[0]), own["dec"] + float(scatter[1])
        rows.append(
            _photometry(mjd, int(rng.integers(1, 4)), limit, snr if seen else None, *position, candid)
        )
    return rows


def _context(
    kind: str, own: Mapping[str, Any], past: Sequence[Mapping[str, Any]], rng: np.random.Generator
) -> dict[str, Any]:
    """What the survey's pipeline says around the photometry; neighbours by scenario."""
    on_star = kind in (*VARIABLE, "dipole", "ring", "saturated")
    distances = np.sort(rng.uniform(1, 30, 3))
    if on_star:
        distances[0] = rng.uniform(0.05, 0.8)
    known = kind in MOVING and rng.random() < 0.7
    detected = [row["jd"] for row in past if row["magpsf"] is not None]
    context = {
        "field": int(rng.integers(200, 880)),
        "rcid": int(rng.integers(64)),
        "xpos": float(rng.uniform(1, 3072)),
        "ypos": float(rng.uniform(1, 3080)),
        "mindtoedge": float(rng.uniform(32, 1500)),
        "chipsf": float(rng.lognormal(0.2, 0.4)),
        "distnr": float(distances[0]) / 1.01,
        "magnr": float(rng.uniform(15, 21.5)),
        "chinr": float(rng.lognormal(0, 0.4)),
        "sharpnr": float(rng.normal(0, 0.15)),
        "sky": float(rng.normal(0, 0.5)),
        "fwhm": float(rng.uniform(1.7, 3.5)),
        "ssdistnr": float(rng.uniform(0, 2)) if known else -999.0,
        "ssmagnr": float(own["magpsf"] + rng.normal(0, 0.2)) if known else -999.0,
        "ssnamenr": str(int(rng.integers(1000, 600_000))) if known else "null",
        "nmtchps": int(rng.integers(1, 20)),
        "ndethist": 1 + len(detected),
        "ncovhist": 1 + len(past),
        "jdstarthist": min([own["jd"], *detected]),
        "jdendhist": own["jd"],
        "magzpsci": float(rng.normal(26.2, 0.1)),
        "clrcoeff": float(rng.normal(0, 0.08)),
        "clrcounc": 1e-5,
        "neargaia": float(distances[0]),
        "neargaiabright": -999.0,
        "exptime": EXPOSURE_S,
    }
    for rank, distance in enumerate(distances.tolist(), 1):
        context |= {f"sgscore{rank}": float(rng.beta(0.5, 0.5)), f"distpsnr{rank}": distance}
    return {**context, **dict.fromkeys(("rb", "rbversion", "drb", "drbversion"))}
