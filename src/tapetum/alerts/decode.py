"""Many packets at once into columns, stamps and history: the hot path of everything that starts with an alert."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.alerts import _kernels as k
from tapetum.alerts.batch import STAMP_NAMES, AlertBatch, History, Rejection
from tapetum.alerts.history import REFERENCE_VALUES, PastRows, merge_history
from tapetum.alerts.rows import Rows
from tapetum.alerts.schema import HISTORY_COLUMNS, Program
from tapetum.alerts.stamps import read_stamp
from tapetum.core.errors import InputError
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.surveys.conventions import SECONDS_PER_DAY, to_flux, to_mag, to_utc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.alerts.packets import Packet
    from tapetum.surveys.profile import AlertProfile

HISTORY_ROWS_AT_FIRST = 4096
_TO_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False).encode


def decode_packets(
    packets: Sequence[Packet],
    *,
    stamps: bool = True,
    history: bool = False,
    reference: bool = False,
    candidate: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[list[tuple[AlertBatch, list[int]]], list[tuple[int, Rejection]]]:
    """Decode packets of any surveys.

    Parameters
    ----------
    packets
        In any order and of any schemas.
    stamps, history, candidate
        Whether to read the cutouts, the light curves, and the candidate records as JSON text.
    reference
        Whether the light curves also carry what the packets say of the source in the reference image.

    Returns
    -------
    batches : list of (AlertBatch, list of int)
        One per survey: the alerts, and the index in `packets` of each of them.
    rejections : list of (int, Rejection)
        The packets that cannot be used, by index.
    """
    by_survey: dict[str, list[int]] = {}
    rejections: list[tuple[int, Rejection]] = []
    for index, packet in enumerate(packets):
        if packet.schema.profile is None:
            reason = "no survey profile knows this schema (see `tapetum.surveys`; a profile is one TOML file)"
            rejections.append((index, _reject(packet, reason)))
        else:
            by_survey.setdefault(packet.schema.profile.name, []).append(index)
    batches = []
    for indices in by_survey.values():
        work = _SurveyDecoder([packets[i] for i in indices], limits, history=history)
        batch, kept = work.decode(stamps=stamps, history=history, reference=reference, candidate=candidate)
        rejections += [
            (indices[i], _reject(packets[indices[i]], reason)) for i, reason in sorted(work.faults.items())
        ]
        if len(batch):
            batches.append((batch, [indices[i] for i in kept]))
    return batches, sorted(rejections, key=lambda entry: entry[0])


def warm_up() -> None:
    """Compile (or load from the cache) the kernels of this room."""
    code = np.array([[k.END, -1, 0, 0]], np.int32)
    rows = Rows.empty(1, 1)
    none = Rows.empty(1, len(HISTORY_COLUMNS))
    body = np.frombuffer(b"\0", np.uint8)  # read-only as every packet is: else it is compiled for nothing
    k.walk(body, 0, 0, code, np.zeros(1, np.int32), 0, *rows.arrays(), 0, *none.arrays(), 1)


def _reject(packet: Packet, reason: str) -> Rejection:
    return Rejection(packet.source, packet.record, reason, packet.body)


class _SurveyDecoder:
    """Decodes the packets of one survey; faults collects what cannot be used, by row."""

    def __init__(self, packets: Sequence[Packet], limits: Limits, *, history: bool) -> None:
        assert packets[0].schema.profile is not None
        self.profile: AlertProfile = packets[0].schema.profile
        self.packets = packets
        self.bodies = [packet.body for packet in packets]
        self.limits = limits
        self.faults: dict[int, str] = {}
        schemas = [packet.schema for packet in packets]
        self.programs: list[Program] = [s.program if history else s.brief for s in schemas]
        width = max(len(program.slots) for program in self.programs)
        self.rows = Rows.empty(len(packets), width)
        self.history = Rows.empty(HISTORY_ROWS_AT_FIRST, len(HISTORY_COLUMNS))
        self.history_ends = np.zeros(len(packets) + 1, np.int64)

    def decode(
        self, *, stamps: bool, history: bool, reference: bool, candidate: bool
    ) -> tuple[AlertBatch, list[int]]:
        self._walk()
        mjd, mid = self._times()
        sign = self._signs()
        columns = self._identity(mjd)
        mag, mag_err, flux, flux_err = self._brightness(sign, columns["band"])
        pixels, shapes = (
            self._stamps() if stamps else (np.empty((len(self.packets), 3, 0, 0), np.float32), None)
        )
        kept = [row for row in range(len(self.packets)) if row not in self.faults]
        pick = np.array(kept, np.intp)
        photometry = {"mag": mag, "mag_err": mag_err, "flux": flux, "flux_err": flux_err}
        past = self._history(pick, columns, mid, photometry, reference=reference) if history else None
        batch = AlertBatch(
            survey=self.profile.name,
            alert_id=columns["alert_id"][pick],
            object_id=[columns["object_id"][row] for row in kept],
            mjd=mjd[pick],
            ra=columns["ra"][pick],
            dec=columns["dec"][pick],
            band=[columns["band"][row] for row in kept],
            mag=mag[pick],
            mag_err=mag_err[pick],
            flux=flux[pick],
            flux_err=flux_err[pick],
            stamps=pixels[pick],
            shapes=shapes[pick] if shapes is not None else np.zeros((len(kept), 3, 2), np.int16),
            source=[self.packets[row].source for row in kept],
            record=[self.packets[row].record for row in kept],
            history=past,
            candidate_json=[self._candidate_json(row) for row in kept] if candidate else None,
            _feature=_Features(self.rows.take(pick), [self.programs[row] for row in kept], self.profile),
        )
        return batch, kept

    def _walk(self) -> None:
        at = 0
        for row, (packet, program) in enumerate(zip(self.packets, self.programs, strict=True)):
            if len(packet.body) > self.limits.packet_bytes:
                outcome, end = -1, 0
                self.faults[row] = (
                    f"the packet is {len(packet.body)} bytes long, more than {self.limits.packet_bytes}"
                )
            else:
                outcome, end, at = self._walk_one(packet.body, program, row, at)
            if outcome > k.OK:
                self.faults[row] = k.REASONS[outcome]
            elif outcome == k.OK and end != len(packet.body):
                self.faults[row] = f"{len(packet.body) - end} bytes follow the record"
            self.history_ends[row + 1] = at

    def _walk_one(self, body: bytes, program: Program, row: int, at: int) -> tuple[int, int, int]:
        buffer = np.frombuffer(body, np.uint8)
        while True:
            outcome, end, after = k.walk(
                buffer, 0, buffer.size, program.code, program.jumps,
                row, *self.rows.arrays(), at, *self.history.arrays(), self.limits.array_items,
            )  # fmt: skip
            if outcome != k.ROWS_FULL:
                return outcome, end, after if outcome == k.OK else at
            self.history = self.history.doubled()

    def _slot(self, path: str | None) -> int | None:
        return (
            None if path is None else self.programs[0].slots.get(path)
        )  # the profile's own slots are the same in all

    def _number(self, path: str | None) -> NDArray[np.float64]:
        return self.rows.numbers(self._slot(path))

    def _bytes(self, row: int, slot: int) -> bytes | None:
        return self.rows.bytes_of(row, slot, self.bodies)

    def _text(self, row: int, path: str | None) -> str | None:
        """A field as text; integers in decimal, null and 0 as None."""
        slot = self._slot(path)
        if slot is None:
            return None
        kind = self.rows.kinds[row, slot]
        if kind == k.IS_BYTES:
            return (self._bytes(row, slot) or b"").decode("utf-8", "replace") or None
        if kind == k.IS_INT:
            return str(int(self.rows.ints[row, slot])) if self.rows.ints[row, slot] else None
        return None if kind == k.MISSING else f"{self.rows.floats[row, slot]:g}"

    def _identity(self, mjd: NDArray[np.float64]) -> dict[str, Any]:
        alert, n = self.profile.alert, len(self.packets)
        slot = self._slot(alert.alert_id)
        assert slot is not None
        has_id = self.rows.kinds[:, slot] == k.IS_INT
        ra, dec = self._number(alert.ra), self._number(alert.dec)
        on_sky = (ra >= 0) & (ra <= 360) & (np.abs(dec) <= 90)
        object_id: list[str] = [""] * n
        band = [""] * n
        for row in range(n):
            names = (self._text(row, path) for path in alert.object_id)
            object_id[row] = next((name for name in names if name), "")
            band[row] = self._band(row)
            if row in self.faults:
                continue
            if not has_id[row]:
                self.faults[row] = f"it has no {alert.alert_id}"
            elif not object_id[row]:
                self.faults[row] = f"it has no {' or '.join(alert.object_id)}"
            elif not on_sky[row]:
                self.faults[row] = f"its position ra {ra[row]}, dec {dec[row]} is not on the sky"
            elif not np.isfinite(mjd[row]):
                self.faults[row] = f"it has no {alert.time.field}"
        return {
            "alert_id": self.rows.ints[:, slot],
            "object_id": object_id,
            "band": band,
            "ra": ra,
            "dec": dec,
        }

    def _band(self, row: int) -> str:
        fields = self.profile.alert.band
        if fields.constant is not None:
            return fields.constant
        slot = self._slot(fields.field)
        if slot is not None and self.rows.kinds[row, slot] == k.IS_INT:
            value = str(int(self.rows.ints[row, slot]))
        else:
            value = self._text(row, fields.field) or ""
        return fields.names.get(value, value)

    def _times(self) -> tuple[NDArray[np.float64], float]:
        """Mid-exposure UTC of the alerts, and the correction of history rows, which carry no exposure time [day]."""
        time = self.profile.alert.time
        mjd = to_utc(self._number(time.field), time)
        if time.reference == "mid":
            return mjd, 0.0
        exposure = self._number(time.exposure)
        exposure = np.where(exposure > 0, exposure, time.exposure_default)
        return mjd + exposure / 2 / SECONDS_PER_DAY, time.exposure_default / 2 / SECONDS_PER_DAY

    def _signs(self) -> NDArray[np.float64]:
        """+1 where science minus reference is positive, else -1."""
        fields = self.profile.alert.brightness
        path = fields.positive or fields.negative
        slot = self._slot(path)
        if slot is None:
            return np.ones(len(self.packets))
        return np.where(self.rows.is_true(slot, self.bodies) == (fields.positive is not None), 1.0, -1.0)

    def _brightness(self, sign: NDArray[np.float64], bands: list[str]) -> tuple[NDArray[np.float64], ...]:
        fields = self.profile.alert.brightness
        if fields.flux is not None:
            flux, flux_err = self._number(fields.flux), self._number(fields.flux_err)
            return *to_mag(flux, flux_err), flux, flux_err
        mag, mag_err = self._number(fields.mag), self._number(fields.mag_err)
        offset = np.array([self.profile.alert.band.ab_offset.get(band, 0.0) for band in bands])
        return mag, mag_err, *to_flux(mag + offset, mag_err, sign)

    def _candidate_json(self, row: int) -> str:
        kinds, ints = self.rows.kinds[row].tolist(), self.rows.ints[row].tolist()
        floats, content = self.rows.floats[row].tolist(), {}
        for name, slot in self.programs[row].candidate:
            kind = kinds[slot]
            if kind == k.IS_FLOAT:
                content[name] = floats[slot] if math.isfinite(floats[slot]) else None
            elif kind == k.IS_INT:
                content[name] = ints[slot]
            elif kind == k.IS_BYTES:
                content[name] = (self._bytes(row, slot) or b"").decode("utf-8", "replace")
            else:
                content[name] = bool(ints[slot]) if kind == k.IS_BOOL else None
        return _TO_JSON(content)

    def _stamps(self) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        fields, n = self.profile.alert.stamps, len(self.packets)
        slots = [self._slot(path) for path in (fields.science, fields.template, fields.difference)]
        shapes = np.zeros((n, 3, 2), np.int16)
        side = fields.size
        pixels = np.full((n, 3, side, side), np.nan, np.float32)
        for row in range(n):
            if row in self.faults:
                continue
            for channel, slot in enumerate(slots):
                data = None if slot is None else self._bytes(row, slot)
                if not data:
                    continue
                try:
                    image = read_stamp(data, self.limits)
                except InputError as problem:
                    self.faults[row] = f"{STAMP_NAMES[channel]} cutout: {problem}"
                    break
                n_y, n_x = image.shape
                if max(n_y, n_x) > pixels.shape[2]:
                    pixels = _grown(pixels, max(n_y, n_x))
                pixels[row, channel, :n_y, :n_x] = image
                shapes[row, channel] = n_y, n_x
        return pixels, shapes

    def _history(
        self,
        pick: NDArray[np.intp],
        columns: dict[str, Any],
        half_exposure: float,
        photometry: dict[str, NDArray[np.float64]],
        *,
        reference: bool,
    ) -> History:
        alert = self.profile.alert
        owner = np.repeat(np.arange(len(self.packets)), np.diff(self.history_ends))
        past = PastRows(
            self.history.take(slice(0, owner.size)),
            [self.bodies[row] for row in owner],
            [columns["band"][row] for row in owner],
            self.profile,
            half_exposure,
        )
        own = {
            "mjd": to_utc(self._number(alert.time.field), alert.time) + half_exposure,
            "mag_limit": self._number(alert.brightness.mag_limit),
            "ra": columns["ra"],
            "dec": columns["dec"],
            **photometry,
        }
        own_reference = None
        if reference:
            fields = alert.reference
            paths = (fields.mag, fields.mag_err, fields.field, fields.quadrant) if fields else (None,) * 4
            own_reference = {n: self._number(p)[pick] for n, p in zip(REFERENCE_VALUES, paths, strict=True)}
        place = np.full(len(self.packets), -1)
        place[pick] = np.arange(pick.size)
        return merge_history(
            {name: values[pick] for name, values in own.items()},
            [columns["band"][row] for row in pick],
            own_reference,
            past,
            place[owner],
        )


class _Features:
    """Numeric fields of the candidate record by name, looked up per schema."""

    def __init__(self, rows: Rows, programs: list[Program], profile: AlertProfile) -> None:
        self.rows, self.programs, self.profile = rows, programs, profile

    def __call__(self, name: str) -> NDArray[np.float64]:
        field = self.profile.alert.synonyms.get(name, name)
        path = f"{self.profile.alert.candidate}.{field}"
        values = np.full(len(self.programs), np.nan)
        distinct = {id(program): program for program in self.programs}
        for key, program in distinct.items():
            slot = program.slots.get(path)
            if slot is None or slot >= self.rows.kinds.shape[1]:
                continue
            mine = np.array([id(p) == key for p in self.programs])
            kinds = self.rows.kinds[:, slot]
            usable = mine & (kinds != k.MISSING) & (kinds != k.IS_BYTES)
            values[usable] = self.rows.floats[usable, slot]
        return values


def _grown(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    larger = np.full((*pixels.shape[:2], side, side), np.nan, np.float32)
    larger[:, :, : pixels.shape[2], : pixels.shape[3]] = pixels
    return larger
