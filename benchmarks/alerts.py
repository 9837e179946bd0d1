"""Alerts per second of one core: decode, stamps and network, against the way this is usually done.

The reference path is what a broker written with general libraries does per alert: open the Avro container with
fastavro, gunzip each stamp, read it with astropy.io.fits, normalise with numpy, run the network on a batch of
one. The network, its weights and the runtime are the same on both sides. The floor is what no decoder can
avoid: inflating the stamps, and the network.

    python -m benchmarks.alerts [--alerts 499] [--repeats 5]
"""

from __future__ import annotations

import argparse
import gzip
import io
import statistics
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import machine, original_network, real_packets
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.records import to_record, write_container
from tapetum.alerts.stamps import inflate
from tapetum.finders import realbogus
from tapetum.models.registry import find_model
from tapetum.models.runtime import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

STAMPS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
BATCH = 128
NETWORK = "braai-d6-m9"


def reference_path(files: Sequence[Path], session: Any) -> list[float]:
    """fastavro, gzip, astropy and numpy, one alert at a time."""
    import fastavro
    from astropy.io import fits

    [image] = session.get_inputs()
    channels_first = image.shape[1] == 3
    scores = []
    for file in files:
        with file.open("rb") as handle:
            record = next(fastavro.reader(handle))
        triplet = np.full((63, 63, 3), 1e-9, np.float32)
        for channel, key in enumerate(STAMPS):
            raw = gzip.decompress(record[key]["stampData"])
            with fits.open(io.BytesIO(raw), ignore_missing_simple=True) as hdus:
                stamp = np.nan_to_num(hdus[0].data)
            triplet[: stamp.shape[0], : stamp.shape[1], channel] = stamp / np.linalg.norm(stamp)
        batch = np.ascontiguousarray(triplet.transpose(2, 0, 1) if channels_first else triplet)[None]
        scores.append(float(np.asarray(session.run(None, {image.name: batch})[0]).ravel()[0]))
    return scores


def our_path(files: Sequence[Path], finder: Any) -> list[float]:
    """Reading, decoding and scoring as `tapetum alerts score` does them, without its table."""
    scores: list[float] = []
    found = (entry for entry in iter_packets(files) if isinstance(entry, Packet))
    while packets := list(islice(found, BATCH)):
        for batch, _ in decode_packets(packets)[0]:
            scores += finder.find(batch).score.tolist()
    return scores


def floor(stamps: Sequence[bytes], images: NDArray[np.float32], session: Any) -> None:
    """Inflate every stamp and run the network, nothing else."""
    for data in stamps:
        inflate(data)
    name = session.get_inputs()[0].name
    for start in range(0, len(images), 16):
        session.run(None, {name: images[start : start + 16]})


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one run; wall time means little on a shared machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run(n_alerts: int = 499, repeats: int = 5) -> dict[str, float]:
    """Measure and print; per-alert CPU time of each path and the ratios."""
    packets, origin = real_packets(n_alerts)
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as folder:
        original = original_network(NETWORK, Path(folder) / "models")
        braai, own = realbogus.load(original), realbogus.load("realbogus")
        session = open_session(find_model(original).onnx.read_bytes(), original)
        files = []
        for number, packet in enumerate(packets):
            files.append(Path(folder) / f"{number:05d}.avro")
            write_container(files[-1], [packet])
        stamps = [to_record(packet)[key]["stampData"] for packet in packets for key in STAMPS]
        shape = [len(packets), *session.get_inputs()[0].shape[1:]]
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        paths: dict[str, Callable[[], Any]] = {
            "reference": lambda: reference_path(files, session),
            "tapetum": lambda: our_path(files, braai),
            "floor": lambda: floor(stamps, images, session),
            "realbogus": lambda: our_path(files, own),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, ours = reference_path(files, session), our_path(files, braai)
            our_path(files, own)
            times: dict[str, list[float]] = {key: [] for key in paths}
            for _ in range(repeats):
                for key, path in paths.items():  # in turn, so that a drifting machine meets all alike
                    times[key].append(cpu_seconds(path))
    result = {key: statistics.median(values) / len(packets) * 1e6 for key, values in times.items()}
    result["speedup"] = result["reference"] / result["tapetum"]
    result["over_floor"] = result["tapetum"] / result["floor"]
    print(
        f"alerts: {NETWORK} on {len(packets)} packets of {origin}, one core: reference {result['reference']:.0f} us, "
        f"tapetum {result['tapetum']:.0f} us = {result['speedup']:.2f} x faster (goal 3.5); "
        f"floor {result['floor']:.0f} us, ratio to it {result['over_floor']:.2f} (aim 1.15)"
    )
    ratio = result["realbogus"] / result["tapetum"]
    print(
        f"        realbogus on the same packets: {result['realbogus']:.0f} us, {ratio:.2f} of {NETWORK} (goal 1)"
    )
    worst = np.nanmax(np.abs(np.subtract(theirs, ours)))
    print(f"        largest difference between the scores of the two paths: {worst:.1e}")
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alerts", type=int, default=499)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    run(args.alerts, args.repeats)


if __name__ == "__main__":
    main()
