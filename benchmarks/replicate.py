"""Many alert packets out of few: the same bytes with new ids, so that every one is a new alert of a new object."""

from __future__ import annotations

import io
import string
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import real_packets
from tapetum.alerts.containers import SYNC_BYTES
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.records import container_header, encode_long
from tapetum.core.errors import TapetumError

MAX_SAMPLE = 1000
FIRST_ID = 10**18  # as many bytes in Avro as the ids of ZTF
DIGITS = string.digits + string.ascii_lowercase


def sample_packets(least_history: float = 0.0) -> tuple[str, list[Packet]]:
    """Real packets where there are any, else simulated ones; and where they come from.

    Parameters
    ----------
    least_history
        Packets with the shortest histories are left out until the mean number of rows is this.
    """
    try:
        packets, name = real_packets(MAX_SAMPLE)
    except TapetumError:  # neither data nor network
        packets, name = _simulated(), "simulated"
    batches, _ = decode_packets(packets, history=True)
    rows = {}
    for batch, index in batches:
        if batch.survey == "ztf" and batch.history is not None:
            rows.update(zip(index, np.diff(batch.history.offsets).tolist(), strict=True))
    chosen = sorted(rows, key=lambda number: rows[number])
    while len(chosen) > 50 and np.mean([rows[number] for number in chosen]) < least_history:
        chosen.pop(0)
    mean = np.mean([rows[number] for number in chosen])
    return f"{len(chosen)} from {name}, {mean:.1f} history rows each", [
        packets[number] for number in sorted(chosen)
    ]


def write_replicas(packets: list[Packet], n: int, path: Path) -> None:
    """Write `n` packets with ids of their own into a tar archive, one container each, as surveys' archives have them.

    Parameters
    ----------
    packets
        Of ZTF's schemas: ``candid`` and ``objectId`` are replaced within the bytes.
    n
        How many.
    path
        The archive.
    """
    headers = {p.schema.fingerprint: container_header(p.schema, bytes(SYNC_BYTES)) for p in packets}
    old = [_identity(packet) for packet in packets]
    with tarfile.open(path, "w") as tar:
        for number in range(n):
            packet, (candid, name) = packets[number % len(packets)], old[number % len(packets)]
            body = packet.body.replace(encode_long(candid), encode_long(FIRST_ID + number))
            body = body.replace(name.encode(), ("new" + _base36(number).zfill(len(name) - 3)).encode())
            head = headers[packet.schema.fingerprint] + encode_long(1) + encode_long(len(body))
            content = head + body + bytes(SYNC_BYTES)
            member = tarfile.TarInfo(f"{FIRST_ID + number}.avro")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _simulated() -> list[Packet]:
    from tapetum.simulate.alerts import simulate_alerts, write_alerts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.avro"
        write_alerts(path, simulate_alerts(300, np.random.default_rng(20260)))
        return [item for item in iter_packets([path]) if isinstance(item, Packet)]


def _identity(packet: Packet) -> tuple[int, str]:
    ((batch, _),), _ = decode_packets([packet], stamps=False)
    candid, name = int(batch.alert_id[0]), batch.object_id[0]
    if len(encode_long(candid)) != len(encode_long(FIRST_ID)) or len(name) < 8:
        raise ValueError(f"{packet.source}: ids {candid} and {name} cannot be replaced byte for byte")
    return candid, name


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return text
