from __future__ import annotations

import json
import os
import pickle
import random
import sqlite3
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tapetum.alerts.batch import Rejection
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.records import to_record, write_container
from tapetum.core.errors import InputError, StoreError, TapetumError, UsageError
from tapetum.core.limits import Limits
from tapetum.pipelines.score import PacketBatch, in_batches
from tapetum.simulate.alerts import SimulatedAlert, simulate_alerts, write_alerts
from tapetum.store import worker, writer
from tapetum.store.check import check
from tapetum.store.columns import DETECTION_VALUES, ScoreColumns, detection_rank
from tapetum.store.digest import digest
from tapetum.store.ingest import ingest
from tapetum.store.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

N_OBJECTS, N_VISITS = 12, 3
SHARED = (
    "jd",
    "fid",
    "pid",
    "programid",
    "diffmaglim",
    "candid",
    "isdiffpos",
    "ra",
    "dec",
    "magpsf",
    "sigmapsf",
)


def visits(rng):
    """Alerts of few objects seen several times; each visit's packet tells of the visits before it."""
    alerts = []
    for number, first in enumerate(simulate_alerts(N_OBJECTS, rng, at_edge=0, with_missing=0)):
        past = list(first.record["prv_candidates"] or [])
        for visit in range(N_VISITS):
            candid = first.record["candid"] + 10 * visit
            own = {**first.record["candidate"], "candid": candid, "magpsf": 18.0 + 0.1 * visit}
            own |= {"jd": own["jd"] + 3 * visit, "ra": own["ra"] + 1e-5 * visit}
            name = f"SIM{number:09d}"
            record = {**first.record, "objectId": name, "candid": candid, "candidate": own}
            alerts.append(SimulatedAlert({**record, "prv_candidates": list(past)}, first.truth, first.target))
            past.append({name: own[name] for name in SHARED})
    return alerts


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("night") / "night.avro"
    write_alerts(path, visits(np.random.default_rng(20260)))
    return path


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'night.db'}"


def bad_container(path: Path, night: Path) -> Path:
    path.write_bytes(night.read_bytes()[:-1000])
    return path


def scored_by(monkeypatch, version: str, identity: str = "one") -> None:
    """A finder whose score is the last digit of the alert, and null for every fifth alert."""

    def scorer(model):
        def score(batch):
            value = (batch.alert_id // 10 % 10) / 10
            null = batch.alert_id // 10 % 5 == 0
            error = ["made up" if missing else None for missing in null]
            value = np.where(null, np.nan, value)
            return ScoreColumns(model, version, identity, value, value / 2, null.astype(np.int32), error)

        return score

    monkeypatch.setattr(worker, "_scorer", scorer)


def test_everything_that_was_ingested_is_there(night, url, tmp_path):
    packets = list(iter_packets([night]))
    acknowledged = []
    with open_store(url, create=True) as store:
        report = ingest(store, [night], model=None, acknowledge=acknowledged.extend)
        assert (report.stored, report.known, report.rejected) == (len(packets), 0, 0)
        info = store.info()
        assert (info["alerts"], info["objects"]) == (N_OBJECTS * N_VISITS, N_OBJECTS)
        assert check(store).problems == []
        back = store.packets(acknowledged)
        assert [packet.body for packet in back] == [packet.body for packet in packets]
        assert to_record(back[5]) == to_record(packets[5])
        assert store.settings_path == tmp_path / "night.db.settings.toml"


def test_the_same_again_changes_nothing(night, url, tmp_path):
    bad = bad_container(tmp_path / "bad.avro", night)
    with open_store(url, create=True) as store:
        first = ingest(store, [night, bad], model=None)
        before, sizes = digest(store), store.info()
        again = ingest(store, [night, bad], model=None, batch=5, commit_alerts=7)
        assert digest(store) == before
        assert store.info() == sizes
    assert again.stored == 0
    assert again.known == first.stored + first.known
    assert again.rejected == first.rejected == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_order_batches_and_workers_do_not_matter(night, tmp_path, jobs):
    packets = [packet for packet in iter_packets([night]) if isinstance(packet, Packet)]
    random.Random(jobs).shuffle(packets)
    parts = [tmp_path / f"{name}.avro" for name in "abc"]
    for number, part in enumerate(parts):
        # with overlaps: some alerts come twice
        write_container(part, packets[12 * number : 12 * number + 15])
    digests = []
    for name, sources, batch in (("one", [night], 128), ("two", parts, 4)):
        with open_store(f"sqlite:///{tmp_path / name}.db", create=True) as store:
            report = ingest(store, sources, model=None, jobs=jobs, batch=batch, commit_alerts=10)
            digests.append(digest(store))
            assert report.stored == len(packets)
    assert digests[0] == digests[1]


def test_an_alert_twice_in_one_batch_is_stored_once(night, url, tmp_path):
    packets = list(iter_packets([night]))
    twice = tmp_path / "twice.avro"
    write_container(twice, [*packets[:3], *packets[:3]])
    with open_store(url, create=True) as store:
        report = ingest(store, [twice], model=None)
        assert (report.stored, report.known) == (3, 3)
        assert check(store).problems == []


def test_another_alert_with_a_known_id_is_a_dead_letter_not_a_duplicate(tmp_path, url, rng):
    one, other, third = (alert.record for alert in simulate_alerts(3, rng, at_edge=0, with_missing=0))
    stolen = {**other, "candid": one["candid"], "objectId": "SOMETHINGELSE"}
    renamed = {**one, "objectId": "RENAMED"}
    for name, records in (("a", [one, stolen]), ("b", [third, stolen, renamed])):
        write_alerts(tmp_path / f"{name}.avro", [SimulatedAlert(r, "x", "x") for r in records])
    with open_store(url, create=True) as store:
        report = ingest(store, [tmp_path / "a.avro"], model=None)
        assert (report.stored, report.known, report.rejected) == (1, 0, 1)
        report = ingest(store, [tmp_path / "b.avro"], model=None)
        assert (report.stored, report.known, report.rejected) == (1, 1, 1)
        letters = store.dead_letters()
        assert len(letters) == 1
        assert "belongs to another alert" in letters[0].reason
        assert check(store).problems == []


def test_objects_follow_their_latest_alert(night, url):
    ((batch, _),), _ = decode_packets(list(iter_packets([night])))
    with open_store(url, create=True) as store:
        ingest(store, [night], model=None)
    rows = sqlite3.connect(url.removeprefix("sqlite:///")).execute(
        "SELECT object_id, ra, dec, n_alerts, first_mjd, last_mjd FROM object ORDER BY object_id"
    )
    for number, row in enumerate(rows):
        first, last = number * N_VISITS, number * N_VISITS + N_VISITS - 1
        position = batch.ra[last], batch.dec[last]
        assert row == (batch.object_id[first], *position, N_VISITS, batch.mjd[first], batch.mjd[last])


def test_the_light_curve_is_what_all_packets_told(night, url):
    packets = list(iter_packets([night]))[:N_VISITS]
    records = [to_record(packet) for packet in packets]
    jd = {row["jd"] for record in records for row in [record["candidate"], *(record["prv_candidates"] or [])]}
    with open_store(url, create=True) as store:
        ingest(store, [night], model=None)
        curve = store.lightcurve(records[0]["objectId"])
    half_exposure = 15 / 86400
    assert curve["mjd"].to_pylist() == pytest.approx(
        [t - 2400000.5 + half_exposure for t in sorted(jd)], abs=1e-7
    )
    assert not any(curve["forced"].to_pylist())
    seen = [mag for mag in curve["mag"].to_pylist() if mag is not None]
    assert seen[-N_VISITS:] == pytest.approx([18.0, 18.1, 18.2], abs=1e-6)
    limits = [row for row in curve.to_pylist() if row["mag"] is None]
    assert all(row["flux"] is None and row["flux_err"] > 0 for row in limits)


def test_of_two_versions_of_a_row_the_better_stays_in_any_order(night, tmp_path):
    packet = next(iter(iter_packets([night])))
    curves = []
    worse = {
        "mag": 19.0,
        "mag_err": 0.3,
        "mag_limit": 20.0,
        "flux": 5.0,
        "flux_err": 2.0,
        "ra": 1.0,
        "dec": 2.0,
    }
    better = {**worse, "mag": 19.1, "flux_err": 1.0}
    limit = {**dict.fromkeys(worse, np.nan), "mag_limit": 21.0, "flux_err": 0.1}
    for name, versions in (("ab", (worse, better, limit)), ("ba", (limit, better, worse))):
        with (
            open_store(f"sqlite:///{tmp_path / name}.db", create=True) as store,
            store.writer(2**20) as writer,
        ):
            for number, version in enumerate(versions):
                columns = worker.make_work(None)(PacketBatch.of([packet])).columns[0]
                values = np.array([[version[key]] for key in DETECTION_VALUES])
                own = columns.detections
                detections = type(own)(
                    np.array([0, 1]), own.mjd[:1], own.band[:1], own.band_names, own.forced[:1],
                    detection_rank(values), values,
                )  # fmt: skip
                changed = type(columns)(
                    **{**vars(columns), "detections": detections, "alert_id": columns.alert_id + number}
                )
                writer.add(changed, [packet])
                writer.commit()
        with open_store(f"sqlite:///{tmp_path / name}.db") as store:
            curves.append(store.lightcurve(columns.object_id[0]).to_pylist())
    assert curves[0] == curves[1]
    assert curves[0][0]["mag"] == 19.1


def test_rank_orders_versions():
    limit = [np.nan, np.nan, 20.5, np.nan, 1.0, np.nan, np.nan]
    short = [19.0, 0.1, np.nan, 5.0, 0.5, np.nan, np.nan]
    full = [19.0, 0.1, 20.5, 5.0, 0.6, 10.0, 20.0]
    precise = [19.0, 0.1, 20.5, 5.0, 0.5, 10.0, 20.0]
    other = [19.2, 0.1, 20.5, 5.0, 0.5, 10.0, 20.0]
    huge = [19.0, 0.1, 20.5, 5.0, 1e300, 10.0, 20.0]
    rank = detection_rank(np.array([limit, short, huge, full, precise, other, precise]).T)
    assert (rank > 0).all()
    assert (np.diff(rank[:5]) > 0).all()
    assert rank[4] != rank[5]
    assert rank[4] == rank[6]


def test_scores_are_kept_per_model_and_version(night, url, monkeypatch):
    n = N_OBJECTS * N_VISITS
    with open_store(url, create=True) as store:
        unscored = ingest(store, [night], model=None)
        scored_by(monkeypatch, "1.0.0")
        first = ingest(store, [night], model="made-up", batch=7)
        again = ingest(store, [night], model="made-up")
        scored_by(monkeypatch, "1.1.0")
        newer = ingest(store, [night], model="made-up")
        assert [r.scored for r in (unscored, first, again, newer)] == [0, n, 0, n]
        assert store.models() == [("made-up", "1.0.0", n), ("made-up", "1.1.0", n)]
        assert check(store).problems == []
        ranked = store.ranked("made-up", version="1.1.0")
        assert len(ranked) == n
        values = [entry.score for entry in ranked]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=True)
        assert values[: len(known)] == known
        assert all(entry.error == "made up" and entry.flags == 1 for entry in ranked[len(known) :])
        assert store.ranked("made-up", limit=3, version="1.1.0") == ranked[:3]
        assert ranked[0].probability == pytest.approx(ranked[0].score / 2)


def test_another_network_of_the_same_name_and_version_is_refused(night, url, monkeypatch):
    with open_store(url, create=True) as store:
        scored_by(monkeypatch, "1.0.0")
        ingest(store, [night], model="made-up")
        before = digest(store)
        scored_by(monkeypatch, "1.0.0", identity="another")
        with pytest.raises(StoreError, match="another network that is called made-up"):
            ingest(store, [night], model="made-up")
        assert digest(store) == before
        scored_by(monkeypatch, "1.0.1", identity="another")
        assert ingest(store, [night], model="made-up").scored == N_OBJECTS * N_VISITS


def test_what_cannot_be_used_is_kept_with_its_reason(real_data, url):
    named = []
    with open_store(url, create=True) as store:
        report = ingest(store, [real_data / "alerts" / "malformed"], model=None, rejected=named.append)
        assert (report.stored, report.rejected) == (0, 7)
        letters = store.dead_letters(payloads=True)
        again = ingest(store, [real_data / "alerts" / "malformed"], model=None)
        assert (again.rejected, len(store.dead_letters())) == (7, 7)
        assert check(store).problems == []
    assert sorted(letter.reason for letter in letters) == sorted(entry.reason for entry in named)
    by_file = {letter.source.rpartition("/")[2]: letter for letter in letters}
    truncated = real_data / "alerts" / "malformed" / "516401801315010009.avro"
    assert by_file[truncated.name].payload == truncated.read_bytes()
    assert "JPEG" in next(letter.reason for name, letter in by_file.items() if name.startswith("jpeg"))


def test_real_alerts_of_every_survey(real_data, url):
    alerts = real_data / "alerts"
    sources = [
        alerts / name for name in ("ztf_packets.tar.xz", "rubin_alerts.parquet", "pgir", "wntr", "turbo")
    ]
    with open_store(url, create=True) as store:
        report = ingest(store, sources, model=None)
        assert report.rejected == 0
        assert check(store).problems == []
    rows = (
        sqlite3.connect(url.removeprefix("sqlite:///"))
        .execute("SELECT survey, candidate FROM alert")
        .fetchall()
    )
    assert {row[0] for row in rows} == {"ztf", "lsst", "pgir", "winter", "turbo"}
    assert len(rows) == report.stored >= 499 * 0.5
    for row in rows:
        json.loads(row[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_file_name_that_is_no_text(tmp_path, url):
    path = tmp_path / os.fsdecode(b"night\xff.avro")
    path.write_bytes(b"no packet")
    with open_store(url, create=True) as store:
        assert ingest(store, [path], model=None).rejected == 1
        (letter,) = store.dead_letters(payloads=True)
    assert letter.source.endswith("night\\udcff.avro")
    assert letter.payload == b"no packet"


def test_alerts_without_position_or_name_are_rejected(tmp_path, url, rng):
    alerts = visits(rng)[:6]
    alerts[4].record["objectId"] = "SIM\0"
    alerts[5].record["candidate"]["ra"] = 361.0
    alerts[1].record["candidate"]["ra"] = float("nan")
    alerts[2].record["candidate"]["dec"] = 91.0
    path = tmp_path / "lost.avro"
    write_alerts(path, alerts)
    reasons = []
    with open_store(url, create=True) as store:
        report = ingest(
            store, [path], model=None, rejected=lambda rejection: reasons.append(rejection.reason)
        )
        assert check(store).problems == []
        assert all(letter.payload for letter in store.dead_letters(payloads=True))
        assert not any(letter.payload for letter in store.dead_letters())
    assert (report.stored, report.rejected) == (2, 4)
    assert len(reasons) == 4


def test_a_packet_too_large_to_keep_is_kept_in_part(monkeypatch, url):
    monkeypatch.setattr(writer, "DEFAULT_LIMITS", Limits(packet_bytes=100))
    with open_store(url, create=True) as store:
        with store.writer(2**20) as opened:
            opened.reject(Rejection("a", 3, "no packet", bytes(range(101))))
            opened.reject(Rejection("b", 3, "no packet", bytes(100)))
            opened.commit()
        large, fits = store.dead_letters(payloads=True)
        assert check(store).problems == []
    assert large.payload == bytes(range(100))
    assert large.reason == "no packet (kept are the first 100 of its 101 bytes)"
    assert fits.reason == "no packet"


def test_batches_hold_what_was_found_in_order(night):
    packets = [packet for packet in iter_packets([night]) if isinstance(packet, Packet)][:5]
    bad = [Rejection(name, 0, "made up", b"payload") for name in "ab"]
    batches = list(in_batches([bad[0], *packets, bad[1]], 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [packet.body for batch in batches for packet in batch.packets()] == [p.body for p in packets]
    assert [entry for batch in batches for entry in batch.rejections] == bad
    # a worker has no use for what could not be read
    assert pickle.loads(pickle.dumps(batches[0])) == PacketBatch.of(packets[:2])


def test_a_source_that_is_no_file(url):
    with open_store(url, create=True) as store:
        with pytest.raises(UsageError, match=r"kafka://.*only files"):
            ingest(store, ["kafka://host:9092/topic?group=g"], model=None)
        report = ingest(store, ["no/such/file.avro"], model=None)
        assert (report.stored, report.rejected) == (0, 1)


def test_one_ingest_at_a_time(night, url):
    with open_store(url, create=True) as store, store.writer(2**20), open_store(url) as other:
        with pytest.raises(StoreError, match="another process"):
            ingest(other, [night], model=None)
        assert other.info()["alerts"] == 0


def test_segments_roll_over(night, url, tmp_path):
    with open_store(url, create=True) as store:
        ingest(store, [night], model=None, segment_bytes=100_000, commit_alerts=5)
        assert store.info()["segments"] >= 3
        report = check(store)
    assert report.problems == []
    assert len(list((tmp_path / "night.db.segments").glob("*.seg"))) == report.checked["segments"]


def test_an_unknown_model_is_said_before_anything_is_stored(night, url):
    for jobs in (1, 2):
        with open_store(url, create=True) as store:
            with pytest.raises(TapetumError, match="no-such-model"):
                ingest(store, [night], model="no-such-model", jobs=jobs)
            assert store.info()["alerts"] == 0


def test_questions_without_answer(night, url):
    with open_store(url, create=True) as store:
        ingest(store, [night], model=None)
        with pytest.raises(InputError, match="no such object"):
            store.lightcurve("ZTF00nothing")
        with pytest.raises(InputError, match="no such alert"):
            store.packets([("ztf", 7)])
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        columns = "ra, dec, hpx29, n_alerts, first_mjd, last_mjd, last_alert_id"
        connection.execute(
            f"INSERT INTO object SELECT object_key + 1000, 'lsst', object_id, {columns} FROM object LIMIT 1"
        )
        connection.commit()
        connection.close()
        with pytest.raises(UsageError, match="lsst, ztf"):
            store.lightcurve("SIM000000000")
        assert len(store.lightcurve("SIM000000000", "ztf")) > 0
