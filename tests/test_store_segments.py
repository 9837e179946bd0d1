from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest

from tapetum.core.errors import StoreError, UsageError
from tapetum.store.segments import (
    MAGIC,
    SegmentReader,
    SegmentWriter,
    crc32,
    segment_name,
    segments_folder,
)

BODIES = [bytes([value]) * (value + 1) for value in range(40)]


def write(folder, bodies=BODIES, segment_bytes=2**20):
    with SegmentWriter(folder, segment_bytes) as writer:
        number, offsets = writer.append(bodies)
        writer.sync()
    return number, offsets


def test_bodies_come_back(tmp_path):
    number, offsets = write(tmp_path / "made" / "here")
    reader = SegmentReader(tmp_path / "made" / "here")
    assert offsets[0] == len(MAGIC)
    for body, offset in zip(BODIES, offsets, strict=True):
        assert reader.read(segment_name(number), offset, len(body), zlib.crc32(body)) == body
    reader.close()


def test_every_short_write_is_finished(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda file, parts: real(file, [b"".join(parts)[:7]]))
    number, offsets = write(tmp_path)
    content = (tmp_path / segment_name(number)).read_bytes()
    assert content == MAGIC + b"".join(BODIES)
    assert content[offsets[-1] :] == BODIES[-1]


def test_a_full_segment_is_followed_by_the_next(tmp_path):
    with SegmentWriter(tmp_path, 100) as writer:
        first, second, third = (writer.append([b"x" * 90])[0] for _ in range(3))
        again, (offset,) = writer.append([b"y"])
    assert (first, second, third, again) == (1, 1, 2, 2)
    assert offset == len(MAGIC) + 90


def test_resume_cuts_off_what_no_row_names(tmp_path):
    _, offsets = write(tmp_path)
    with SegmentWriter(tmp_path, 2**20) as writer:
        writer.resume(1, offsets[10])
        number, (offset,) = writer.append([b"new"])
    assert (number, offset) == (1, offsets[10])
    assert (tmp_path / segment_name(1)).read_bytes() == MAGIC + b"".join(BODIES[:10]) + b"new"


def test_a_leftover_that_no_row_names_is_written_over(tmp_path):
    (tmp_path / segment_name(1)).write_bytes(b"left by a process that died" * 100)
    write(tmp_path, [b"body"])
    assert (tmp_path / segment_name(1)).read_bytes() == MAGIC + b"body"


@pytest.mark.parametrize("end", [10_000, 8])
def test_resume_refuses_a_segment_that_lost_bytes(tmp_path, end):
    write(tmp_path)
    if end == 8:
        (tmp_path / segment_name(1)).unlink()
    with SegmentWriter(tmp_path, 2**20) as writer, pytest.raises(StoreError, match=segment_name(1)):
        writer.resume(1, end)


def test_one_writer_at_a_time_and_its_lock_dies_with_it(tmp_path):
    code = f"""
import pathlib, time
from tapetum.store.segments import SegmentWriter
writer = SegmentWriter(pathlib.Path({str(tmp_path)!r}), 100)
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match="another process"):
            SegmentWriter(tmp_path, 100)
        other.kill()
        other.wait()
        SegmentWriter(tmp_path, 100).close()


def test_damage_is_seen(tmp_path):
    number, offsets = write(tmp_path)
    path = tmp_path / segment_name(number)
    content = bytearray(path.read_bytes())
    content[offsets[20]] ^= 1
    path.write_bytes(content[:-1])
    reader = SegmentReader(tmp_path)
    with pytest.raises(StoreError, match="checksum"):
        reader.read(path.name, offsets[20], 21, crc32(BODIES[20]))
    with pytest.raises(StoreError, match="ends before"):
        reader.read(path.name, offsets[39], 40, crc32(BODIES[39]))
    with pytest.raises(StoreError, match="move along"):
        reader.read(segment_name(7), 8, 1, 0)
    assert reader.read(path.name, offsets[5], 6, crc32(BODIES[5])) == BODIES[5]
    reader.close()


def test_a_reader_keeps_few_files_open(tmp_path):
    with SegmentWriter(tmp_path, 1) as writer:
        places = [writer.append([body]) for body in BODIES]
    reader = SegmentReader(tmp_path)
    for body, (number, (offset,)) in zip(BODIES, places, strict=True):
        assert reader.read(segment_name(number), offset, len(body), crc32(body)) == body
    assert len(reader._open) <= SegmentReader.MAX_OPEN
    reader.close()


def test_a_disk_that_fails_is_a_store_error(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with SegmentWriter(tmp_path, 100) as writer:
        writer.append([b"one"])
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="No space left"):
            writer.sync()
        monkeypatch.setattr(os, "writev", fail)
        with pytest.raises(StoreError, match="No space left"):
            writer.append([b"two"])


def test_places(tmp_path):
    assert segments_folder(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert segments_folder("some/folder").as_posix() == "some/folder"
    with pytest.raises(UsageError, match="s3://bucket"):
        segments_folder("s3://bucket/x")
