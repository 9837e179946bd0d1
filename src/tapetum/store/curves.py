"""The objects of a store as light curves, one per object and band: what every verb of light curves can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from sqlalchemy import func, select

from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.assemble import cut
from tapetum.lightcurves.formats.sources import CURVES_AT_A_TIME, Source
from tapetum.store import schema as t
from tapetum.store.dialects import database_errors, snapshot
from tapetum.store.store import Store, open_store
from tapetum.store.writer import committed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Connection

URLS = ("sqlite:", "postgresql:", "postgresql+")
OBJECTS_AT_A_TIME = 500
OBJECTS_OF_A_PART = 5_000
FADED = 1  # bit of the flags: fainter than in the reference, so the magnitude is that of what is missing
ABOUT = ("object_id", "survey", "ra", "dec", "n_alerts", "first_mjd", "last_mjd")


def is_store(path: str) -> bool:
    """Whether it is the URL of a store, not the name of a file."""
    return path.startswith(URLS)


@dataclass(frozen=True)
class StoreCurves(Source):
    """Light curves of the objects of a store, or of some of them.

    A light curve has the points of one object in one band that have a magnitude, by time; where a forced and an
    unforced one have the same time, the unforced comes first. Times are mid-exposure MJD, UTC. Magnitudes are those of
    the packets: of the difference between image and reference where these tell that. Where the source was fainter than
    in the reference the point has the flag `FADED`, which the default cleaning drops.

    Attributes
    ----------
    url
        Of the database; with its password, if it has one, so that workers can open it.
    state
        Changes whenever the store does.
    first, last
        Keys of objects, ends included; None: all.
    """

    name: str
    url: str = field(repr=False)
    state: str = ""
    first: int | None = None
    last: int | None = None

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """As `Source.batches`.

        Raises
        ------
        InputError, StoreError
            The store is not there, or cannot be read.
        """
        with open_store(self.url) as store:
            first, last = (self.first, self.last) if self.first is not None else _range(store)
            if first is None or last is None:
                return
            for start in range(first, last + 1, OBJECTS_AT_A_TIME):
                curves = _curves(store, start, min(start + OBJECTS_AT_A_TIME - 1, last))
                if len(curves):
                    yield from cut(curves, n)

    def parts(self) -> list[Source]:
        """As `Source.parts`."""
        if self.first is not None:
            return [self]
        with open_store(self.url) as store:
            first, last = _range(store)
        if first is None or last is None:
            return [self]
        return [
            StoreCurves(f"{self.name}, objects {start} to {end}", self.url, self.state, first=start, last=end)
            for start in range(first, last + 1, OBJECTS_OF_A_PART)
            for end in [min(start + OBJECTS_OF_A_PART - 1, last)]
        ]


def open_store_curves(url: str) -> StoreCurves:
    """The light curves of all objects of a store.

    Parameters
    ----------
    url
        ``sqlite:///FILE`` or ``postgresql://HOST/NAME``.

    Raises
    ------
    UsageError, InputError, StoreError
        As `tapetum.store.store.open_store`.
    """
    with open_store(url) as store, database_errors(store.url), store.engine.connect() as connection:
        # who it is and how often it was written to: sizes and times of its files would not tell
        state = f"{store.meta['store_id']}-{committed(connection)}"
        return StoreCurves(store.name, url, state)


def _range(store: Store) -> tuple[int | None, int | None]:
    key = t.object_.c.object_key
    with database_errors(store.url), store.engine.connect() as connection:
        first, last = connection.execute(select(func.min(key), func.max(key))).one()
    return first, last


def _curves(store: Store, first: int, last: int) -> LightCurves:
    """Light curves of a range of objects, by object and band."""
    with database_errors(store.url), snapshot(store.engine) as connection:
        objects = {row.object_key: row for row in _objects(connection, first, last)}
        rows = _points(connection, first, last)
    keys = np.array([row[0] for row in rows], np.int64)
    bands = [str(row[1]) for row in rows]
    _, band = np.unique(np.array(bands, dtype=str), return_inverse=True)
    begins = np.flatnonzero(_changes(keys) | _changes(band))
    offsets = np.append(begins, len(rows)).astype(np.int64)
    values = np.array([row[2:] for row in rows], np.float64).reshape(-1, 4)
    owners = [objects[int(keys[at])] for at in begins]
    return LightCurves(
        values[:, 0].copy(),
        values[:, 1].copy(),
        values[:, 2].copy(),
        offsets,
        _table(owners, [bands[at] for at in begins.tolist()]),
        np.where(values[:, 3] < 0, FADED, 0).astype(np.int32),
    )


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows that differ from the one before; the first does."""
    changed = np.ones(len(values), np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _objects(connection: Connection, first: int, last: int) -> Sequence[Any]:
    key = t.object_.c.object_key
    columns = [t.object_.c[name] for name in ABOUT]
    return connection.execute(select(key, *columns).where(key.between(first, last))).all()


def _points(connection: Connection, first: int, last: int) -> Sequence[Any]:
    """object_key, band, mjd, mag, mag_err, flux of all points with a magnitude."""
    c = t.detection.c
    query = (
        select(c.object_key, c.band, c.mjd, c.mag, c.mag_err, c.flux)
        .where(c.object_key.between(first, last), c.mag.is_not(None))
        .order_by(c.object_key, c.band, c.mjd, c.forced)
    )
    return connection.execute(query).all()


def _table(owners: Sequence[Any], bands: Sequence[str]) -> pa.Table:
    kinds = {"object_id": pa.string(), "survey": pa.string(), "n_alerts": pa.int64()}
    ids = [f"{owner.survey}/{owner.object_id}/{band}" for owner, band in zip(owners, bands, strict=True)]
    columns = {"lc_id": pa.array(ids, pa.string()), "band": pa.array(bands, pa.string())}
    for name in ABOUT:
        values = [getattr(owner, name) for owner in owners]
        columns[name] = pa.array(values, kinds.get(name, pa.float64()))
    columns["time_system"] = pa.array(["mjd"] * len(owners), pa.string())
    return pa.table(columns)
