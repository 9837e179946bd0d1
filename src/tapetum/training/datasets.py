"""Data sets: labelled triplets of any origin in one form, from the sources that a recipe names.

A source gives `Examples` for one role of the split and never hands out an object of another role. A new kind
of data is one more entry in `SOURCES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from tapetum.alerts.batch import STAMP_NAMES, AlertBatch, Rejection
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.core.errors import InputError
from tapetum.simulate.injections import SCENARIOS, STAMP, simulate_alert
from tapetum.training.recipe import Recipe
from tapetum.training.split import Role, role_of, select
from tapetum.training.truth import TruthRules, packet_truth, truth_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from tapetum.training.recipe import PacketData, SampleData, SimulatedData

log = logging.getLogger(__name__)
PACKETS_AT_ONCE = 256
CUBE_SURVEY = "ztf"
TABLE_COLUMNS = ("candid", "objectId", "ra", "dec", "magpsf", "sigmapsf")  # and those of the rule of truth


@dataclass(frozen=True)
class Examples:
    """Labelled triplets.

    Attributes
    ----------
    stamps : ndarray of float32, shape (n, 3, STAMP, STAMP)
        Science, template, difference, each at the array origin; NaN outside the stamp and where there is no
        value.
    shapes : ndarray of int16, shape (n, 3, 2)
        (n_y, n_x) of each stamp.
    target : ndarray of float32, shape (n,)
        Probability that the alert is real; NaN where it is not known.
    object_id : list of str, length n
        What the split goes by.
    alert_id : ndarray of int64, shape (n,)
        0 for simulated alerts.
    origin : list of str, length n
        Survey, or ``simulated``.
    kind : list of str, length n
        Scenario of a simulated alert, else empty.
    mag, snr : ndarray of float32, shape (n,)
        Brightness in the difference [mag] of packets, signal-to-noise of simulated alerts; NaN where not
        available.
    """

    stamps: NDArray[np.float32]
    shapes: NDArray[np.int16]
    target: NDArray[np.float32]
    object_id: list[str]
    alert_id: NDArray[np.int64]
    origin: list[str]
    kind: list[str]
    mag: NDArray[np.float32]
    snr: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.object_id)

    def take(self, rows: NDArray[Any]) -> Examples:
        """The rows of a boolean mask or of indices."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Examples(
            self.stamps[index],
            self.shapes[index],
            self.target[index],
            [self.object_id[i] for i in index],
            self.alert_id[index],
            [self.origin[i] for i in index],
            [self.kind[i] for i in index],
            self.mag[index],
            self.snr[index],
        )


def empty_examples() -> Examples:
    """No example at all."""
    none = np.zeros(0, np.float32)
    stamps, shapes = np.zeros((0, 3, STAMP, STAMP), np.float32), np.zeros((0, 3, 2), np.int16)
    return Examples(stamps, shapes, none, [], np.zeros(0, np.int64), [], [], none, none)


def join(parts: Sequence[Examples]) -> Examples:
    """All parts as one set, in order."""
    parts = [empty_examples(), *parts]
    return Examples(
        np.concatenate([part.stamps for part in parts]),
        np.concatenate([part.shapes for part in parts]),
        np.concatenate([part.target for part in parts]),
        [name for part in parts for name in part.object_id],
        np.concatenate([part.alert_id for part in parts]),
        [name for part in parts for name in part.origin],
        [name for part in parts for name in part.kind],
        np.concatenate([part.mag for part in parts]),
        np.concatenate([part.snr for part in parts]),
    )


def on_canvas(
    stamps: NDArray[np.float32], shapes: NDArray[np.int16], side: int = STAMP
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Copy stamps into arrays of one side: larger ones cut about their centre, smaller ones at the origin.

    Returns
    -------
    ndarray of float32, shape (n, 3, side, side), and ndarray of int16, shape (n, 3, 2)
    """
    n = len(stamps)
    canvas = np.full((n, 3, side, side), np.nan, np.float32)
    new = np.minimum(shapes, side).astype(np.int16)
    for i in range(n):
        for c in range(3):
            (ny, nx), (oy, ox) = new[i, c], (shapes[i, c] - new[i, c]) // 2
            canvas[i, c, :ny, :nx] = stamps[i, c, oy : oy + ny, ox : ox + nx]
    return canvas, new


def iter_batches(paths: Sequence[Path]) -> Iterator[AlertBatch]:
    """Decoded alerts of files, folders, archives, tables and cubes, a few hundred at a time.

    What cannot be read is left out with a warning.

    A ``.npz`` cube holds `candid`, `science`, `template`, `difference` and
    `shape`; object names and candidate fields come from the Parquet tables beside it that have `candid` and
    `objectId`. Of these only place, brightness and the fields of the rule of truth are read, never a label.
    """
    cubes = [path for path in paths if path.suffix == ".npz"]
    others = [path for path in paths if path.suffix != ".npz"]
    chunk: list[Packet] = []
    for item in iter_packets(others):
        if isinstance(item, Packet):
            chunk.append(item)
        else:
            _warn(item)
        if len(chunk) == PACKETS_AT_ONCE:
            yield from _decoded(chunk)
            chunk = []
    yield from _decoded(chunk)
    for path in cubes:
        yield read_cube(path)


def _decoded(packets: list[Packet]) -> list[AlertBatch]:
    batches, rejections = decode_packets(packets)
    for _, rejection in rejections:
        _warn(rejection)
    return [batch for batch, _ in batches]


def _warn(rejection: Rejection) -> None:
    log.warning("%s, record %d, is left out: %s", rejection.source, rejection.record, rejection.reason)


def read_cube(path: Path) -> AlertBatch:
    """A cube of ZTF triplets as a batch of alerts.

    Raises
    ------
    InputError
        Arrays are missing, or no table beside the cube names its alerts.
    """
    with np.load(path, allow_pickle=False) as cube:
        if missing := {"candid", "shape", *STAMP_NAMES} - set(cube.files):
            raise InputError(f"{path}: not a cube of triplets, it lacks {', '.join(sorted(missing))}")
        candid, shapes = cube["candid"].astype(np.int64), cube["shape"].astype(np.int16)
        stamps = np.stack([cube[name] for name in STAMP_NAMES], axis=1).astype(np.float32)
    rows = _rows_beside(path, set(candid.tolist()))
    if unknown := [number for number in candid if int(number) not in rows]:
        raise InputError(f"{path}: no table beside it (columns candid, objectId) names alert {unknown[0]}")
    mine = [rows[int(number)] for number in candid]

    def feature(name: str) -> NDArray[np.float64]:
        values = [row.get(name) for row in mine]
        return np.array([v if isinstance(v, (int, float)) else np.nan for v in values], np.float64)

    mag, missing_column = feature("magpsf"), np.full(len(mine), np.nan)
    return AlertBatch(
        survey=CUBE_SURVEY,
        alert_id=candid,
        object_id=[row["objectId"] for row in mine],
        mjd=missing_column,
        ra=feature("ra"),
        dec=feature("dec"),
        band=[""] * len(mine),
        mag=mag,
        mag_err=feature("sigmapsf"),
        flux=missing_column,
        flux_err=missing_column,
        stamps=stamps,
        shapes=shapes,
        source=[str(path)] * len(mine),
        record=list(range(len(mine))),
        _feature=feature,
    )


def _rows_beside(cube: Path, wanted: set[int]) -> dict[int, dict[str, Any]]:
    # what several tables say of an alert is put together; of two values the first table's stays
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[int, dict[str, Any]] = {}
    columns = {*TABLE_COLUMNS, *truth_fields(CUBE_SURVEY)}
    for table in sorted(cube.parent.glob("*.parquet")):
        try:
            there = set(pq.read_schema(table).names)
            if not {"candid", "objectId"} <= there:
                continue
            content = pq.read_table(table, columns=sorted(columns & there)).to_pylist()
        except (OSError, pa.ArrowException) as problem:
            raise InputError(f"{table}: the table beside {cube} cannot be read: {problem}") from None
        for row in content:
            if row["candid"] is not None and int(row["candid"]) in wanted:
                mine = rows.setdefault(int(row["candid"]), {})
                for name, value in row.items():
                    if value is not None:
                        mine.setdefault(name, value)
    return {number: row for number, row in rows.items() if "objectId" in row}


class Key(NamedTuple):
    """What tells an example from all others."""

    origin: str
    alert_id: int
    object_id: str


class Source(Protocol):
    """Where examples come from."""

    def examples(self, role: Role, epoch: int = 0) -> Examples:
        """The examples of one role; a simulation may give others in another epoch of role `fit`."""
        ...

    def keys(self, role: Role, epochs: int = 1) -> list[Key]:
        """Every example of known truth that a run of so many epochs sees in one role, each once."""
        ...


class PacketSource:
    """Real alerts, each once, labelled by `packet_truth`; their targets may be NaN."""

    def __init__(
        self, paths: Sequence[Path], rules: TruthRules, earlier: Sequence[PacketSource] = ()
    ) -> None:
        self.paths = list(paths)
        self.rules = rules
        self.earlier = list(earlier)  # what these have is not given again
        self._by_role: dict[Role, Examples] = {}

    def examples(self, role: Role, epoch: int = 0) -> Examples:
        """The alerts of one role."""
        del epoch
        if role == "held":
            return empty_examples()
        if not self._by_role:
            self._by_role = self._read()
        return self._by_role[role]

    def keys(self, role: Role, epochs: int = 1) -> list[Key]:
        """The alerts of one role with a target: the same in every epoch."""
        del epochs
        examples = self.examples(role)
        names = zip(examples.origin, examples.alert_id.tolist(), examples.object_id, strict=True)
        return [Key(*name) for name, there in zip(names, np.isfinite(examples.target), strict=True) if there]

    def _read(self) -> dict[Role, Examples]:
        roles: tuple[Role, ...] = ("fit", "validation", "test")
        parts: dict[Role, list[Examples]] = {role: [] for role in roles}
        seen = {
            int(number)
            for source in self.earlier
            for role in roles
            for number in source.examples(role).alert_id
        }
        for batch in iter_batches(self.paths):
            usable = (batch.shapes > 0).all(axis=(1, 2)) & ~select(batch.object_id, "held")
            for row in np.flatnonzero(usable):
                usable[row] = int(batch.alert_id[row]) not in seen
                seen.add(int(batch.alert_id[row]))
            examples = self._labelled(_rows_of(batch, np.flatnonzero(usable)))  # held objects are gone by now
            for role in roles:
                parts[role].append(examples.take(select(examples.object_id, role)))
        return {role: join(some) for role, some in parts.items()}

    def _labelled(self, batch: AlertBatch) -> Examples:
        n = len(batch)
        stamps, shapes = on_canvas(batch.stamps, batch.shapes)
        return Examples(
            stamps,
            shapes,
            packet_truth(batch, self.rules),
            list(batch.object_id),
            batch.alert_id,
            [batch.survey] * n,
            [""] * n,
            batch.mag.astype(np.float32),
            np.full(n, np.nan, np.float32),
        )


def _rows_of(batch: AlertBatch, rows: NDArray[np.intp]) -> AlertBatch:
    # what labels need: no history and no text
    columns = ("alert_id", "mjd", "ra", "dec", "mag", "mag_err", "flux", "flux_err", "stamps", "shapes")
    lists = ("object_id", "band", "source", "record")
    chosen: dict[str, Any] = {name: getattr(batch, name)[rows] for name in columns}
    chosen |= {name: [getattr(batch, name)[row] for row in rows] for name in lists}
    chosen["_feature"] = lambda name: batch.feature(name)[rows]
    return replace(batch, **chosen, history=None, candidate_json=None)


class SimulationSource:
    """Simulated alerts; the pool of role `fit` slides along an endless list, `renew` alerts an epoch."""

    def __init__(self, data: SimulatedData) -> None:
        if unknown := sorted(set(data.mix) - set(SCENARIOS)):
            raise InputError(f"cannot simulate {unknown[0]!r}; known: {', '.join(SCENARIOS)}")
        self.data = data
        self._made: dict[tuple[Role, int], Examples] = {}

    def examples(self, role: Role, epoch: int = 0) -> Examples:
        """The pool of an epoch, or the fixed set of another role."""
        start, count = (epoch * self.data.renew if role == "fit" else 0), self._count(role)
        made = {
            key: value
            for key, value in self._made.items()
            if key[0] != role or start <= key[1] < start + count
        }
        missing = [number for number in range(start, start + count) if (role, number) not in made]
        made |= zip([(role, number) for number in missing], self._draw(role, missing), strict=True)
        self._made = made
        return join([made[role, number] for number in range(start, start + count)])

    def keys(self, role: Role, epochs: int = 1) -> list[Key]:
        """Names of the simulated alerts of one role; those of role `fit` of all epochs."""
        count = self._count(role)
        if role == "fit":
            # pools that slide by more than their length leave names out between them
            starts = [epoch * self.data.renew for epoch in range(epochs)]
            count = max(starts, default=0) + count
            shown = np.zeros(count, bool)
            for start in starts:
                shown[start : start + self.data.pool] = True
        else:
            shown = np.ones(count, bool)
        names = islice(simulated_ids(self.data.seed, role), count)
        return [Key("simulated", 0, name) for name, there in zip(names, shown, strict=True) if there]

    def _count(self, role: Role) -> int:
        counts = {"fit": self.data.pool, "validation": self.data.validation, "test": self.data.test}
        return counts.get(role, 0)

    def _draw(self, role: Role, numbers: Sequence[int]) -> Iterator[Examples]:
        wanted = set(numbers)
        last = max(wanted, default=-1)
        for number, name in enumerate(simulated_ids(self.data.seed, role)):
            if number > last:
                return
            if number in wanted:
                yield simulated_example(name, self.data)


def simulated_ids(seed: int, role: Role) -> Iterator[str]:
    """Names of the simulated objects of one role, without end: the split holds for them too."""
    number = 0
    while True:
        name = f"sim-{seed}-{number}"
        if role_of(name) == role:
            yield name
        number += 1


def seeds_of(name: str) -> list[int]:
    """The numbers in the name of a simulated object, which seed every draw."""
    return [int(part) for part in name.split("-")[1:]]


def simulated_example(name: str, data: SimulatedData) -> Examples:
    """The simulated alert of this name: the name seeds its scenario and every draw."""
    rng = np.random.default_rng(seeds_of(name))
    kinds = list(data.mix)
    share = np.array([data.mix[kind] for kind in kinds], float)
    truth = simulate_alert(str(rng.choice(kinds, p=share / share.sum())), rng, flip=data.flip)
    one = np.array([truth.target], np.float32)
    shapes = np.full((1, 3, 2), STAMP, np.int16)
    snr = np.array([truth.snr], np.float32)
    return Examples(
        truth.stamps[None],
        shapes,
        one,
        [name],
        np.zeros(1, np.int64),
        ["simulated"],
        [truth.kind],
        one * np.nan,
        snr,
    )


def _packets(data: PacketData, recipe: Recipe, paths: Sequence[Path], earlier: Sequence[Source]) -> Source:
    del data
    return PacketSource(paths, recipe.truth, _of_packets(earlier))


def _sample(data: SampleData, recipe: Recipe, paths: Sequence[Path], earlier: Sequence[Source]) -> Source:
    from tapetum.core.samples import fetch_sample

    del paths
    return PacketSource(fetch_sample(data.sample), recipe.truth, _of_packets(earlier))


def _simulation(
    data: SimulatedData, recipe: Recipe, paths: Sequence[Path], earlier: Sequence[Source]
) -> Source:
    del recipe, paths, earlier
    return SimulationSource(data)


def _of_packets(sources: Sequence[Source]) -> list[PacketSource]:
    return [source for source in sources if isinstance(source, PacketSource)]


Maker = Callable[[Any, Recipe, Sequence[Path], Sequence[Source]], Source]
SOURCES: Mapping[str, Maker] = {"packets": _packets, "sample": _sample, "simulation": _simulation}
"""Makers of sources by the name that a recipe gives them.

Each gets its part of the recipe, the recipe, the user's files, and the sources that come before it.
"""


def open_sources(recipe: Recipe, paths: Sequence[Path]) -> list[tuple[Source, int]]:
    """The sources of a recipe and how often each goes through the network in an epoch."""
    sources: list[Source] = []
    for data in recipe.data:
        sources.append(SOURCES[data.source](data, recipe, paths, sources))
    return [(source, data.repeat) for source, data in zip(sources, recipe.data, strict=True)]
