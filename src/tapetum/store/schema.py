"""The tables of a store.

Two keys: (survey, alert_id) for alerts, (survey, object_id) for objects. An object also has a small integer,
`object_key`: its light curve then lies together on disk in the order of time, and new objects are appended at the end.

There are no foreign keys: one writer adds rows that belong together in one transaction, and `tapetum store check`
proves it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from tapetum.store.dialects import CLUSTERED, ROW_KEY

SCHEMA_VERSION = 1
MARK = "tapetum"
COMMITS = "commits"  # key in `meta`: number of transactions of writers so far

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    comment="application, schema_version, store_id, secret, segments, commits",
)

avro_schema = Table(
    "avro_schema",
    metadata,
    Column("schema_id", ROW_KEY, primary_key=True, autoincrement=False),
    Column("fingerprint", Text, nullable=False, unique=True, comment="hex SHA-256 of the text"),
    Column("text", Text, nullable=False),
)

segment = Table(
    "segment",
    metadata,
    Column("segment_id", ROW_KEY, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
    Column("bytes", BigInteger, nullable=False, comment="up to the end of the last body that a row names"),
)

object_ = Table(
    "object",
    metadata,
    Column("object_key", ROW_KEY, primary_key=True, autoincrement=False),
    Column("survey", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("ra", Double, nullable=False, comment="of the latest alert [deg]"),
    Column("dec", Double, nullable=False),
    Column("hpx29", BigInteger, nullable=False),
    Column("n_alerts", Integer, nullable=False),
    Column("first_mjd", Double, nullable=False, comment="of the alerts, not of their histories"),
    Column("last_mjd", Double, nullable=False),
    Column(
        "last_alert_id",
        BigInteger,
        nullable=False,
        comment="of alerts at last_mjd the one with the largest id",
    ),
    UniqueConstraint("survey", "object_id"),
    Index("object_hpx29", "hpx29"),
)

alert = Table(
    "alert",
    metadata,
    Column("survey", Text, primary_key=True),
    Column("alert_id", BigInteger, primary_key=True, autoincrement=False),
    Column("object_id", Text, nullable=False),
    Column("mjd", Double, nullable=False, comment="UTC, mid-exposure"),
    Column("ra", Double, nullable=False),
    Column("dec", Double, nullable=False),
    Column("hpx29", BigInteger, nullable=False),
    Column("band", Text, nullable=False),
    Column("mag", Double),
    Column("mag_err", Double),
    Column("flux", Double, comment="signed difference flux [nJy AB]"),
    Column("flux_err", Double),
    Column("candidate", JSON),
    Column("schema_id", Integer, nullable=False),
    Column("segment", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("crc32", BigInteger, nullable=False),
    Index("alert_object", "survey", "object_id"),
    Index("alert_hpx29", "hpx29"),
)

detection = Table(
    "detection",
    metadata,
    Column("object_key", BigInteger, primary_key=True, autoincrement=False),
    Column("mjd", Double, primary_key=True),
    Column("band", Text, primary_key=True),
    Column("forced", Boolean, primary_key=True),
    Column(
        "rank",
        BigInteger,
        nullable=False,
        comment="of two packets' versions of a row the one with the higher rank stays",
    ),
    Column("mag", Double),
    Column("mag_err", Double),
    Column("mag_limit", Double),
    Column("flux", Double),
    Column("flux_err", Double),
    Column("ra", Double),
    Column("dec", Double),
    **CLUSTERED,
)

score = Table(
    "score",
    metadata,
    Column("survey", Text, primary_key=True),
    Column("alert_id", BigInteger, primary_key=True, autoincrement=False),
    Column("model", Text, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("score", Double),
    Column("probability", Double),
    Column("flags", Integer, nullable=False),
    Column("error", Text),
    Index("score_rank", "model", "score"),
    **CLUSTERED,
)

model = Table(
    "model",
    metadata,
    Column("model", Text, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("identity", Text, nullable=False, comment="hash of network, input contract and calibration"),
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column(
        "sha256",
        Text,
        primary_key=True,
        comment="of the packet; of source and reason where no packet could be read",
    ),
    Column("source", Text, nullable=False),
    Column("record", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("schema_id", Integer, comment="when the packet is an Avro body"),
    Column("packet", LargeBinary, nullable=False),
)
