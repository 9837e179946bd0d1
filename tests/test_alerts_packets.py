"""Packets out of every kind of source, and every kind of damage named without stopping the rest."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.alerts.batch import Rejection
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets, read_container
from tapetum.alerts.records import encode_long, to_body, to_record, write_container
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
    small = Limits(packet_bytes=100_000, block_bytes=100_000, archive_members=2)
    (tmp_path / "zeros.avro.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    [rejection] = iter_packets([tmp_path / "zeros.avro.gz"], limits=small)
    assert len(rejection.payload) < 1000
    bomb = raw_deflate(bytes(50_000_000))
    block = encode_long(1) + encode_long(len(bomb)) + bomb
    (tmp_path / "bomb.avro").write_bytes(header(json.dumps(SCHEMA).encode(), b"deflate") + block + SYNC)
    [rejection] = iter_packets([tmp_path / "bomb.avro"], limits=small)
    assert "or larger than 100000 bytes" in rejection.reason
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, size in (("big", 200_000), ("x", 10), ("y", 10)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    reasons = [e.reason for e in iter_packets([tmp_path / "t.tar"], limits=small)]
    assert "not an Avro container" in reasons[0]
    assert "more members or bytes" in reasons[-1]


SYNC = bytes(range(16))


def header(schema: bytes, codec: bytes = b"null") -> bytes:
    """The head of a container, whatever it says."""
    entries = (b"avro.schema", schema), (b"avro.codec", codec)
    content = b"".join(encode_long(len(k)) + k + encode_long(len(v)) + v for k, v in entries)
    return b"Obj\x01" + encode_long(2) + content + encode_long(0) + SYNC


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def test_large_containers_are_streamed_wherever_they_are(tmp_path: Path):
    records = [record(i) for i in range(40)]
    data = container(records, sync_interval=1)
    small = Limits(packet_bytes=len(data) // 10)
    (tmp_path / "plain.avro").write_bytes(data)
    (tmp_path / "packed.avro.gz").write_bytes(gzip.compress(data))
    with tarfile.open(tmp_path / "archive.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "plain.avro", "deep/plain.avro")
        tar.add(tmp_path / "packed.avro.gz", "deep/packed.avro.gz")
    found = list(iter_packets([tmp_path], limits=small))
    assert [e for e in found if isinstance(e, Rejection)] == []
    assert len(found) == 4 * len(records)


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path):
    with (tmp_path / "huge.avro").open("wb") as handle:
        handle.truncate(200 * 2**30)  # sparse: it takes no room
    (tmp_path / "huge_container.avro").write_bytes(container([record(1)]))
    with (tmp_path / "huge_container.avro").open("r+b") as handle:
        handle.truncate(200 * 2**30)
    (tmp_path / "z.avro").write_bytes(container([record(2)]))
    tracemalloc.start()
    found = list(iter_packets([tmp_path]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    assert [type(e) for e in found] == [Rejection, Packet, Rejection, Packet]
    assert all(len(e.payload) <= Limits().packet_bytes for e in found if isinstance(e, Rejection))


def test_a_bad_record_costs_its_block_not_the_next():
    data = container([record(i) for i in range(6)], sync_interval=10**9)
    several = container([record(7)])
    good = list(read_container(data, "x"))
    body = good[2].body
    damaged = body[:1] + b"\xff" * (len(body) - 1)
    sync = data[-16:]
    other = several[several.index(several[-16:]) + 16 :][:-16] + sync
    broken = list(read_container(data.replace(body, damaged) + other, "x"))
    assert [type(e) for e in broken] == [Packet, Packet, Rejection, Packet]
    assert "record 3 of 6" in broken[2].reason
    assert broken[2].payload.startswith(damaged)


def test_folders_that_cannot_be_read_links_and_pipes(tmp_path: Path):
    night = tmp_path / "night"
    night.mkdir()
    (night / "a.avro").write_bytes(container([record(1)]))
    (night / "up").symlink_to(tmp_path)  # a loop
    os.mkfifo(night / "pipe.avro")
    (night / "broken.avro").symlink_to("nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.avro").write_bytes(container([record(2)]))
    (night / "link").symlink_to(other)
    found = list(iter_packets([night]))
    assert sorted(p.source for p in found if isinstance(p, Packet))[0].endswith("night/a.avro")
    assert {Path(e.source).name: e.reason for e in found if isinstance(e, Rejection)} == {
        "pipe.avro": "not a file: a broken link, a pipe or a device",
        "broken.avro": "not a file: a broken link, a pipe or a device",
    }
    assert (
        len({p.body for p in found if isinstance(p, Packet)})
        == len([p for p in found if isinstance(p, Packet)])
        == 2
    )


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.avro").write_bytes(container([record(1)]))
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    packet, rejection = iter_packets([tmp_path])
    assert isinstance(packet, Packet)
    assert rejection.source.endswith("closed")
    assert "Permission denied" in rejection.reason


def test_own_output_is_not_input(tmp_path: Path):
    (tmp_path / "a.avro").write_bytes(container([record(1)]))
    pq.write_table(pa.table({"score": [0.5]}), tmp_path / "scores.parquet")
    with_it = list(iter_packets([tmp_path]))
    assert [type(e) for e in with_it] == [Packet, Rejection]
    assert "no survey profile knows its columns" in with_it[1].reason
    assert len(list(iter_packets([tmp_path], skip=[tmp_path / "scores.parquet"]))) == 1


def test_stdin(tmp_path: Path, monkeypatch):
    data = container([record(4)])
    for content in (data, gzip.compress(data)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert ids(list(iter_packets(["-"]))) == [1004]


def test_layers_of_archives_end(tmp_path: Path):
    data = container([record(1)])
    for _ in range(6):
        data = gzip.compress(data)
    (tmp_path / "x.gz").write_bytes(data)
    [rejection] = iter_packets([tmp_path / "x.gz"])
    assert "archives within archives" in rejection.reason


def test_parquet_rows_that_cannot_be_alerts(tmp_path: Path):
    rows = [record(i) for i in range(3)]
    table = pa.Table.from_pylist(rows)
    ids_column = pa.array([1000, 2**64 - 1, 1002], pa.uint64())
    table = table.set_column(table.column_names.index("candid"), "candid", ids_column)
    pq.write_table(table, tmp_path / "t.parquet")
    first, bad, last = iter_packets([tmp_path / "t.parquet"])
    assert ids([first]) == [1000]
    assert ids([last]) == [1002]
    assert (bad.record, "does not fit" in bad.reason) == (1, True)


def test_parquet_times_at_any_depth_are_integers(tmp_path: Path):
    rows = [
        {**record(1), "seen": {"at": datetime.datetime(2026, 1, 1), "all": [datetime.datetime(2026, 1, 2)]}}
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    [packet] = iter_packets([tmp_path / "t.parquet"])
    assert isinstance(to_record(packet)["seen"]["at"], int)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"type": "fixed", "name": "f", "size": 99999999999}, "fixed type of 99999999999 bytes"),
        ({"type": "fixed", "name": "f", "size": "abc"}, "fixed type of 'abc' bytes"),
        ("unheard_of", "unknown type 'unheard_of'"),
        ({"type": "array"}, "where a type is expected"),
    ],
)
def test_a_bad_schema_is_a_rejection_of_its_file_only(tmp_path: Path, fault, reason):
    tree = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "bad", "type": fault}]}
    good = container([record(1)])
    bad = json.dumps(tree).encode()
    (tmp_path / "a.avro").write_bytes(header(bad) + b"\x02\x02x" + SYNC)
    (tmp_path / "b.avro").write_bytes(good)
    rejection, packet = iter_packets([tmp_path])
    assert reason in rejection.reason
    assert rejection.source.endswith("a.avro")
    assert isinstance(packet, Packet)


def test_a_schema_that_is_not_utf8(tmp_path: Path):
    bad = json.dumps(SCHEMA).encode("utf-16")
    [rejection] = read_container(header(bad), "x")
    assert "not JSON" in rejection.reason


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


REASONS = {  # what is wrong with each of the packets found in the wild
    "jpeg_cutouts": "JPEG",
    "ztf_public_20180601": "union",
    "5164": "truncated",
}


def test_the_malformed_packets(real_data: Path):
    folder = real_data / "alerts" / "malformed"
    entries = list(iter_packets([folder]))
    packets = [e for e in entries if isinstance(e, Packet)]
    batches, faults = decode_packets(packets)
    assert not batches
    rejections = [e for e in entries if isinstance(e, Rejection)] + [r for _, r in faults]
    assert {Path(r.source).name for r in rejections} == {p.name for p in folder.glob("*.avro")}
    for rejection in rejections:
        assert rejection.payload
        for start, word in REASONS.items():
            if Path(rejection.source).name.startswith(start):
                assert word in rejection.reason, rejection


def test_folder_of_good_and_bad_real_packets(real_data: Path, tmp_path: Path):
    bad, good = ([*(real_data / "alerts" / name).glob("*.avro")] for name in ("malformed", "pgir"))
    for path in bad + good:
        shutil.copy(path, tmp_path)
    entries = list(iter_packets([tmp_path]))
    packets = [e for e in entries if isinstance(e, Packet)]
    [(batch, _)], faults = decode_packets(packets)
    assert len(batch) == len(good)
    assert len(entries) - len(packets) + len(faults) == len(bad)
