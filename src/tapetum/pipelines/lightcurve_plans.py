"""What can be fetched from a Kowalski server: ids of light curves, light curves, stored features; in batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from tapetum.core.errors import UsageError
from tapetum.lightcurves.around import (
    BRIGHT_RADIUS_ARCSEC,
    MATCH_RADIUS_ARCSEC,
    fetch_alert_statistics,
    fetch_bright_stars,
    fetch_matches,
)
from tapetum.lightcurves.formats.nested import nested_table
from tapetum.lightcurves.remote import (
    PAGE,
    PROGRAMS,
    ROW_UNITS,
    Quadrant,
    batches_of,
    count_ids,
    fetch_curves,
    fetch_features,
    fetch_ids,
)
from tapetum.pipelines.outputs import STDOUT, check_output, fingerprint
from tapetum.report.tables import table_format

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from tapetum.surveys.kowalski import Kowalski

BATCH = 1000  # light curves per question
Kind = Literal["ids", "counts", "curves", "features", "around"]
Position = tuple[float, float]


@dataclass(frozen=True)
class Batch:
    """What is asked for at a time.

    Attributes
    ----------
    name
        For messages.
    content
        The quadrant, the quadrants of a field, the ids, or the positions [deg].
    """

    name: str
    content: Quadrant | tuple[Quadrant, ...] | tuple[str, ...] | tuple[Position, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be fetched.

    Attributes
    ----------
    kind
        Of rows.
    catalogue
        Where they are.
    batches
        Asked for one by one.
    ask
        Asks for the content of a batch.
    options
        What else decides the answers, for the fingerprint and the metadata.
    """

    kind: Kind
    catalogue: str
    batches: tuple[Batch, ...]
    ask: Callable[[Kowalski, Any], pa.Table]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> Mapping[str, str]:
        """Of columns."""
        return ROW_UNITS

    def made_from(self, server: Kowalski) -> str:
        """Fingerprint of all that decides the answers."""
        asked = [[batch.name, str(batch.content)] for batch in self.batches]
        content = {"kind": self.kind, "server": server.url, "catalogue": self.catalogue, "asked": asked}
        return fingerprint([], {**content, **self.options})

    def check(self, output: str) -> None:
        """Raise UsageError when `output` cannot hold this; asked before the work, not after."""
        check_output(output)
        if self.kind != "curves":
            table_format(output)
        elif output == STDOUT:
            raise UsageError("light curves do not fit onto stdout; name a file")
        elif Path(output).suffix:  # without one it is a HATS catalogue
            table_format(output)


def plan_ids(
    catalogue: str,
    wheres: Sequence[Quadrant],
    *,
    min_epochs: int = 20,
    skip: int = 0,
    limit: int | None = None,
    page: int = PAGE,
    epochs: str | None = None,
) -> Plan:
    """Ids of the light curves of quadrants, one batch per quadrant; see `tapetum.lightcurves.remote.fetch_ids`.

    `skip` and `limit` are of each quadrant.

    Raises
    ------
    UsageError
        There is no quadrant, or a number is out of its range.
    """
    if not wheres:
        raise UsageError("no quadrant is named")
    if min(min_epochs, skip) < 0 or (limit is not None and limit < 1) or page < 1:
        raise UsageError(
            f"minimum epochs {min_epochs}, skip {skip}, limit {limit}, page {page}: the first two may be 0 and more,"
            " the others 1 and more"
        )

    def ask(server: Kowalski, where: Quadrant) -> pa.Table:
        return fetch_ids(
            server, catalogue, where, min_epochs=min_epochs, skip=skip, limit=limit, page=page, epochs=epochs
        )

    options = {"min_epochs": min_epochs, "skip": skip, "limit": limit, "epochs": epochs}
    return Plan("ids", catalogue, tuple(Batch(str(where), where) for where in wheres), ask, options)


def plan_counts(
    catalogue: str, wheres: Sequence[Quadrant], *, min_epochs: int = 20, epochs: str | None = None
) -> Plan:
    """How many light curves each quadrant has, one batch per field; see `tapetum.lightcurves.remote.count_ids`.

    Raises
    ------
    UsageError
        There is no quadrant, or a number is out of its range.
    """
    if not wheres or min_epochs < 0:
        raise UsageError(f"{len(wheres)} quadrants, minimum epochs {min_epochs}: there is nothing to count")
    fields: dict[int, list[Quadrant]] = {}
    for where in wheres:
        fields.setdefault(where.field, []).append(where)

    def ask(server: Kowalski, of_field: Sequence[Quadrant]) -> pa.Table:
        return count_ids(server, catalogue, of_field, min_epochs=min_epochs, epochs=epochs, threads=1)

    batches = tuple(Batch(f"field {field}", tuple(of_field)) for field, of_field in fields.items())
    return Plan("counts", catalogue, batches, ask, {"min_epochs": min_epochs, "epochs": epochs})


def plan_curves(
    catalogue: str,
    ids: Sequence[str],
    *,
    batch: int = BATCH,
    programs: Collection[int] = PROGRAMS,
    latest_hjd: float | None = None,
) -> Plan:
    """Light curves by id; see `tapetum.lightcurves.remote.fetch_curves`; of no ids an empty table.

    Raises
    ------
    UsageError
        `batch` is 0 or less.
    """

    def ask(server: Kowalski, wanted: Sequence[str]) -> pa.Table:
        curves = fetch_curves(server, catalogue, wanted, programs=programs, latest_hjd=latest_hjd)
        return nested_table(curves, "tapetum", {})

    options = {"programs": sorted(programs), "latest_hjd": latest_hjd}
    return Plan("curves", catalogue, _id_batches(ids, batch), ask, options)


def plan_features(
    catalogue: str, ids: Sequence[str], *, batch: int = BATCH, columns: Sequence[str] = ()
) -> Plan:
    """Stored features by id; see `tapetum.lightcurves.remote.fetch_features`; of no ids an empty table.

    Raises
    ------
    UsageError
        `batch` is 0 or less.
    """

    def ask(server: Kowalski, wanted: Sequence[str]) -> pa.Table:
        return fetch_features(server, catalogue, wanted, columns)

    return Plan("features", catalogue, _id_batches(ids, batch), ask, {"columns": list(columns)})


def plan_matches(
    catalogue: str,
    positions: Sequence[Position],
    columns: Sequence[str],
    radius_arcsec: float = MATCH_RADIUS_ARCSEC,
    *,
    batch: int = BATCH,
) -> Plan:
    """The nearest entry of a catalogue to each position; see `tapetum.lightcurves.around.fetch_matches`.

    Its table has `ra` and `dec` of the position that was asked for, and the columns of the entry.

    Raises
    ------
    UsageError
        There is no position.
    """

    def ask(server: Kowalski, wanted: Sequence[Position]) -> pa.Table:
        ra, dec = _columns(wanted)
        found = fetch_matches(server, catalogue, ra, dec, columns, radius_arcsec, threads=1, at_a_time=batch)
        return _of_positions(ra, dec, found)

    options = {"columns": list(columns), "radius_arcsec": radius_arcsec}
    return Plan("around", catalogue, _position_batches(positions, batch), ask, options)


def plan_alerts(
    catalogue: str,
    positions: Sequence[Position],
    radius_arcsec: float = MATCH_RADIUS_ARCSEC,
    *,
    batch: int = BATCH,
) -> Plan:
    """Number and mean score of the alerts around each position; as `plan_matches`.

    See `tapetum.lightcurves.around.fetch_alert_statistics`.
    """

    def ask(server: Kowalski, wanted: Sequence[Position]) -> pa.Table:
        ra, dec = _columns(wanted)
        found = fetch_alert_statistics(
            server, ra, dec, radius_arcsec, catalogue=catalogue, threads=1, at_a_time=batch
        )
        return _of_positions(ra, dec, found)

    options = {"radius_arcsec": radius_arcsec}
    return Plan("around", catalogue, _position_batches(positions, batch), ask, options)


def plan_bright_stars(
    catalogue: str,
    positions: Sequence[Position],
    radius_arcsec: float = BRIGHT_RADIUS_ARCSEC,
    *,
    batch: int = BATCH,
) -> Plan:
    """Bright stars near positions, some more than once; see `tapetum.lightcurves.around.fetch_bright_stars`."""

    def ask(server: Kowalski, wanted: Sequence[Position]) -> pa.Table:
        return fetch_bright_stars(server, *_columns(wanted), radius_arcsec, catalogue=catalogue, threads=1)

    options = {"radius_arcsec": radius_arcsec, "bright": True}
    return Plan("around", catalogue, _position_batches(positions, batch), ask, options)


def _columns(positions: Sequence[Position]) -> tuple[list[float], list[float]]:
    return [ra for ra, _ in positions], [dec for _, dec in positions]


def _of_positions(ra: Sequence[float], dec: Sequence[float], found: pa.Table) -> pa.Table:
    """What was found with the positions in front; a column without any value has no type, so that batches fit."""
    columns = {"ra": pa.array(ra, pa.float64()), "dec": pa.array(dec, pa.float64())}
    for name in found.column_names:
        column = found[name]
        columns[name] = pa.nulls(len(column)) if column.null_count == len(column) else column
    return pa.table(columns)


def _position_batches(positions: Sequence[Position], size: int) -> tuple[Batch, ...]:
    if not positions or size < 1:
        raise UsageError(f"{len(positions)} positions in batches of {size}: there is nothing to ask for")
    starts = range(0, len(positions), size)
    return tuple(
        Batch(
            f"positions {start + 1} to {min(start + size, len(positions))}",
            tuple(positions[start : start + size]),
        )
        for start in starts
    )


def _id_batches(ids: Sequence[str], size: int) -> tuple[Batch, ...]:
    """Ids in batches; of no ids one with none, since a quadrant without light curves has an output as well."""
    if size < 1:
        raise UsageError(f"batches of {size} light curves: give 1 or more")
    if not ids:
        return (Batch("no light curves", ()),)
    return tuple(
        Batch(f"batch {number} ({part[0]} to {part[-1]})", tuple(part))
        for number, part in enumerate(batches_of(list(dict.fromkeys(ids)), size), 1)
    )


def quadrant_path(folder: Path, where: Quadrant, suffix: str = ".h5") -> Path:
    """Where the ids of one quadrant lie, when each has its own file: ``field_301/data_ccd_02_quad_3.h5``."""
    return folder / f"field_{where.field}" / f"data_ccd_{where.ccd:02d}_quad_{where.quadrant}{suffix}"
