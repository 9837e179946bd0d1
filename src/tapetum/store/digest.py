"""The content of a store as a few numbers: equal stores, however they came to be, have equal digests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, select

from tapetum.store import schema as t
from tapetum.store.dialects import database_errors, snapshot

if TYPE_CHECKING:
    from tapetum.store.store import Store

ROWS_AT_A_TIME = 10_000
DIGEST_BITS = 256


def digest(store: Store) -> dict[str, str]:
    """Digest of each table's content, without what depends on the order of arrival.

    Left out are keys that the store chose itself: object keys, numbers of schemas and segments, offsets. Two stores
    that got the same packets and scores, in whatever order and after whatever interruptions, have equal digests.

    Parameters
    ----------
    store
        Read as it is at one moment.

    Returns
    -------
    dict of str to str
        Table to hex number: the sum of the SHA-256 of its rows, modulo 2^256.
    """
    with database_errors(store.url), snapshot(store.engine) as connection:
        found = {}
        for name, query in _queries().items():
            total = 0
            for row in connection.execute(query.execution_options(yield_per=ROWS_AT_A_TIME)):
                total += int.from_bytes(hashlib.sha256(repr(tuple(row)).encode()).digest())
            found[name] = f"{total % 2**DIGEST_BITS:064x}"
        return found


def _queries() -> dict[str, Select[Any]]:
    own = {"alert": {"schema_id", "segment", "offset"}, "object": {"object_key"}, "detection": {"object_key"}}
    o, d = t.object_.c, t.detection.c
    tables = (t.alert, t.object_, t.detection, t.score, t.model)
    columns = {x.name: [c for c in x.columns if c.name not in own.get(x.name, ())] for x in tables}
    queries: dict[str, Select[Any]] = {name: select(*chosen) for name, chosen in columns.items()}
    queries["alert"] = (
        queries["alert"]
        .add_columns(t.avro_schema.c.fingerprint)
        .join_from(t.alert, t.avro_schema, t.alert.c.schema_id == t.avro_schema.c.schema_id)
    )
    queries["detection"] = (
        queries["detection"]
        .add_columns(o.survey, o.object_id)
        .join_from(t.detection, t.object_, d.object_key == o.object_key)
    )
    # the same packet may have come under two names; its own digest stands for its bytes
    queries["dead_letter"] = select(t.dead_letter.c.sha256, func.length(t.dead_letter.c.packet))
    return queries
