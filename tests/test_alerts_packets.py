"""Packets out of every kind of source, and every kind of damage named without stopping the rest."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.alerts.batch import Rejection
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets, read_container
from tapetum.alerts.records import to_body, to_record, write_container
from tapetum.alerts.schema import load_schema, load_schema_file
from tapetum.alerts.stamps import write_stamp
from tapetum.core.errors import FormatError, InputError
from tapetum.core.limits import Limits

STAMP = {
    "type": "record", "name": "cutout",
    "fields": [{"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}],
}  # fmt: skip
SCHEMA = {
    "type": "record", "name": "alert",
    "fields": [
        {"name": "objectId", "type": "string"}, {"name": "candid", "type": "long"},
        {"name": "candidate", "type": {"type": "record", "name": "candidate", "fields": [
            {"name": "jd", "type": "double"}, {"name": "fid", "type": "int"}, {"name": "programid", "type": "int"},
            {"name": "ra", "type": "double"}, {"name": "dec", "type": "double"},
            {"name": "magpsf", "type": "float"}, {"name": "sigmapsf", "type": "float"},
            {"name": "isdiffpos", "type": "string"}, {"name": "drb", "type": ["null", "float"], "default": None},
        ]}},
        {"name": "cutoutScience", "type": ["null", STAMP]}, {"name": "cutoutTemplate", "type": ["null", "cutout"]},
        {"name": "cutoutDifference", "type": ["null", "cutout"]},
    ],
}  # fmt: skip


def record(number: int, **candidate):
    image = np.full((63, 63), float(number), np.float32)
    image[0, 0] = 0
    stamp = {"fileName": f"{number}.fits.gz", "stampData": write_stamp(image)}
    fields = {
        "jd": 2460000.5 + number, "fid": 1 + number % 3, "programid": 1, "ra": 10.0 + number, "dec": -5.0,
        "magpsf": 18.0, "sigmapsf": 0.1, "isdiffpos": "t", "drb": None,
    }  # fmt: skip
    fields.update(candidate)
    names = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
    return {
        "objectId": f"ZTF{number}",
        "candid": 1000 + number,
        "candidate": fields,
        **dict.fromkeys(names, stamp),
    }


def container(records, codec: str = "null", **options) -> bytes:
    out = io.BytesIO()
    fastavro.writer(
        out, fastavro.parse_schema(json.loads(json.dumps(SCHEMA))), records, codec=codec, **options
    )
    return out.getvalue()


def ids(entries) -> list[int]:
    packets = [p for p in entries if isinstance(p, Packet)]
    assert len(packets) == len(entries), [e for e in entries if isinstance(e, Rejection)]
    [(batch, index)], rejections = decode_packets(packets)
    assert not rejections
    assert index == list(range(len(packets)))
    return batch.alert_id.tolist()


@pytest.mark.parametrize("codec", ["null", "deflate"])
@pytest.mark.parametrize("sync_interval", [1, 10**9])
def test_several_records_in_few_or_many_blocks(codec, sync_interval):
    data = container([record(i) for i in range(5)], codec, sync_interval=sync_interval)
    assert ids(list(read_container(data, "x"))) == [1000, 1001, 1002, 1003, 1004]


def test_unknown_codec_is_named():
    data = container([record(1)]).replace(b"\x08null", b"\x08brot", 1)
    [rejection] = read_container(data, "x")
    assert "'brot' is not supported" in rejection.reason


def test_archives_folders_and_compressed_files(tmp_path: Path):
    members = {f"night/{i}.avro": container([record(i)]) for i in range(4)}
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        with tarfile.open(tmp_path / f"a_{mode.replace(':', '.')}.tar", mode) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for archive in sorted(tmp_path.glob("a_*.tar")):
        assert ids(list(iter_packets([archive]))) == [1000, 1001, 1002, 1003]
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    (folder / "3.avro").write_bytes(members["night/3.avro"])
    (folder / "4.avro.gz").write_bytes(gzip.compress(members["night/1.avro"]))
    (folder / "5.avro.xz").write_bytes(lzma.compress(members["night/2.avro"]))
    (folder / "6.avro.bz2").write_bytes(bz2.compress(members["night/0.avro"]))
    (folder / "README.md").write_text("not a packet, and not taken for one")
    (folder / ".hidden.avro").write_text("neither")
    assert ids(list(iter_packets([tmp_path / "folder"]))) == [1003, 1001, 1002, 1000]


def test_content_decides_not_the_suffix(tmp_path: Path):
    (tmp_path / "packet.txt").write_bytes(container([record(7)]))
    assert ids(list(iter_packets([tmp_path / "packet.txt"]))) == [1007]
    assert ids(list(iter_packets([tmp_path]))) == [1007]


def test_bare_and_confluent_framed_records(tmp_path: Path):
    (tmp_path / "schema.avsc").write_text(json.dumps(SCHEMA))
    schema = load_schema_file(tmp_path / "schema.avsc")
    body = to_body(record(5), schema)
    (tmp_path / "bare").write_bytes(body)
    (tmp_path / "framed").write_bytes(b"\x00\x00\x00\x00\x2a" + body)
    (tmp_path / "other").write_bytes(body + b"more")
    found = list(iter_packets([tmp_path / "bare", tmp_path / "framed", tmp_path / "other"], schema))
    assert ids(found[:2]) == [1005, 1005]
    assert "4 bytes follow the record" in found[2].reason
    [without] = iter_packets([tmp_path / "bare"])
    assert "--schema" in without.reason
    with pytest.raises(InputError, match=r"nowhere\.avsc"):
        load_schema_file(tmp_path / "nowhere.avsc")


def test_parquet_rows_are_packets(tmp_path: Path):
    rows = [record(i) for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "broker.parquet")
    found = list(iter_packets([tmp_path / "broker.parquet"]))
    assert ids(found) == [1000, 1001, 1002]
    again = to_record(found[1])
    assert again["objectId"] == "ZTF1"
    assert again["cutoutScience"]["stampData"] == rows[1]["cutoutScience"]["stampData"]


def test_damaged_parquet_is_rejected(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist([record(1)]), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    [rejection] = iter_packets([tmp_path / "t.parquet"])
    assert "cannot be read" in rejection.reason


def test_containers_written_back_are_read_the_same(tmp_path: Path):
    packets = list(read_container(container([record(i) for i in range(3)]), "x"))
    assert write_container(tmp_path / "out.avro", packets) == 3
    again = list(iter_packets([tmp_path / "out.avro"]))
    assert [p.body for p in again] == [p.body for p in packets]
    with (tmp_path / "out.avro").open("rb") as handle:
        assert [r["candid"] for r in fastavro.reader(handle)] == [1000, 1001, 1002]
    with pytest.raises(FormatError, match="no packets"):
        write_container(tmp_path / "none.avro", [])
    assert not (tmp_path / "none.avro").exists()


def test_records_go_through_dictionaries_unchanged():
    [packet] = read_container(container([record(2)]), "x")
    assert to_body(to_record(packet), packet.schema) == packet.body
    with pytest.raises(FormatError, match="does not fit"):
        to_body({"objectId": 3}, packet.schema)


# --- damage
# ------------------------------------------------------------------------------------------------------------


def test_truncation_anywhere_is_a_rejection_not_a_crash():
    data = container([record(i) for i in range(2)])
    for cut in range(0, len(data) - 1, 97):
        entries = list(read_container(data[:cut], "cut.avro"))
        assert isinstance(entries[-1], Rejection), cut
        assert entries[-1].source == "cut.avro"


def test_wrong_sync_marker_and_trailing_bytes():
    data = container([record(1)])
    [rejection] = read_container(data[:-16] + bytes(16), "x")
    assert "sync marker" in rejection.reason
    entries = list(read_container(data + b"\x02\x02", "x"))
    assert isinstance(entries[0], Packet)
    assert isinstance(entries[1], Rejection)


def test_one_bad_source_does_not_stop_the_others(tmp_path: Path):
    (tmp_path / "a.avro").write_bytes(b"")
    (tmp_path / "b.avro").write_bytes(b"nonsense")
    (tmp_path / "c.avro").write_bytes(container([record(3)]))
    (tmp_path / "d.tar.xz").write_bytes(b"\xfd7zXZ\x00 not really")
    (tmp_path / "e.tar.gz").write_bytes(gzip.compress(b"x" * 2000)[:-20])
    entries = list(iter_packets([tmp_path, tmp_path / "missing.avro"]))
    reasons = {Path(e.source).name: e.reason for e in entries if isinstance(e, Rejection)}
    assert set(reasons) == {"a.avro", "b.avro", "d.tar.xz", "e.tar.gz", "missing.avro"}
    assert reasons["a.avro"] == "the file is empty"
    assert "no such file" in reasons["missing.avro"]
    assert [e.source for e in entries if isinstance(e, Packet)] == [str(tmp_path / "c.avro")]


def test_limits_on_archives_and_compressed_files(tmp_path: Path):
    small = Limits(packet_bytes=100_000, archive_members=2)
    (tmp_path / "bomb.avro.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    [rejection] = iter_packets([tmp_path / "bomb.avro.gz"], limits=small)
    assert "after decompression" in rejection.reason
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, size in (("big", 200_000), ("x", 10), ("y", 10)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    reasons = [e.reason for e in iter_packets([tmp_path / "t.tar"], limits=small)]
    assert "200000 bytes long" in reasons[0]
    assert "more than 2 members" in reasons[-1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ra": float("nan")}, "not on the sky"),
        ({"ra": 400.0}, "not on the sky"),
        ({"dec": -91.0}, "not on the sky"),
        ({"jd": float("nan")}, "no candidate.jd"),
    ],
)
def test_impossible_values_are_rejected(change, reason):
    packets = list(read_container(container([record(1), record(2, **change), record(3)]), "x"))
    [(batch, index)], [(at, rejection)] = decode_packets(packets)
    assert (batch.alert_id.tolist(), index, at) == ([1001, 1003], [0, 2], 1)
    assert reason in rejection.reason
    assert rejection.payload == packets[1].body


def test_unknown_survey_is_rejected_with_the_remedy():
    schema = load_schema(
        json.dumps({"type": "record", "name": "x", "fields": [{"name": "a", "type": "long"}]}).encode()
    )
    batches, [(_, rejection)] = decode_packets([Packet("x", 0, schema, b"\x02")])
    assert not batches
    assert "no survey profile" in rejection.reason


def test_missing_stamps_are_not_a_reason_to_reject():
    bare = record(1) | {"cutoutTemplate": None}
    [(batch, _)], rejections = decode_packets(list(read_container(container([bare]), "x")))
    assert not rejections
    assert batch.shapes[0].tolist() == [[63, 63], [0, 0], [63, 63]]
    assert np.isnan(batch.stamps[0, 1]).all()


def test_the_malformed_packets(real_data: Path):
    folder = real_data / "alerts" / "malformed"
    entries = list(iter_packets([folder]))
    packets = [e for e in entries if isinstance(e, Packet)]
    batches, faults = decode_packets(packets)
    assert not batches
    assert len(entries) == len(list(folder.glob("*.avro")))
    reasons = {Path(e.source).name: e.reason for e in entries if isinstance(e, Rejection)}
    reasons |= {Path(r.source).name: r.reason for _, r in faults}
    assert set(reasons) == {p.name for p in folder.glob("*.avro")}
    assert "JPEG" in next(reason for name, reason in reasons.items() if name.startswith("jpeg"))


def test_folder_of_good_and_bad_real_packets(real_data: Path, tmp_path: Path):
    for path in (real_data / "alerts" / "malformed").glob("*.avro"):
        shutil.copy(path, tmp_path)
    for path in (real_data / "alerts" / "pgir").glob("*.avro"):
        shutil.copy(path, tmp_path)
    packets = [e for e in iter_packets([tmp_path]) if isinstance(e, Packet)]
    [(batch, _)], _ = decode_packets(packets)
    assert len(batch) == len(list((real_data / "alerts" / "pgir").glob("*.avro")))
