"""Run every benchmark: ``make bench`` or ``python -m benchmarks``. Each prints its figures as lines; takes minutes."""

from __future__ import annotations

import argparse

from benchmarks import (
    alerts,
    detection,
    ingest,
    kill,
    lightcurve_scale,
    lightcurves,
    masks,
    precision,
    remap,
    search,
    simulation,
    slurm,
    subtraction,
    tracking,
    variables,
)
from benchmarks.common import machine


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(machine(), flush=True)
    alerts.run()
    ingest.run()
    kill.run()
    remap.run()
    subtraction.run()
    detection.run()
    search.run()
    simulation.run()
    slurm.run()
    masks.run()
    precision.run()
    tracking.run()
    lightcurves.run()
    lightcurve_scale.run()
    variables.run()


if __name__ == "__main__":
    main()
