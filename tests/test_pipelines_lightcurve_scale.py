"""Features at scale: a run on Dask that lost its workers, resumed, and partitions of a catalogue as units of work."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from tapetum.core.settings import ClusterSettings, Settings
from tapetum.lightcurves.formats.hats import write_hats
from tapetum.lightcurves.formats.opening import open_each
from tapetum.pipelines.lightcurve_features import FeatureOptions, feature_recipe
from tapetum.pipelines.lightcurve_parts import MadeReport, make_once, parts_of
from tapetum.report.read_tables import read_table

ROOT = Path(__file__).resolve().parents[1]
# the command, in a hurry to notice that nobody works for it any more
HURRIED = """
import sys
from tapetum.cli import main
from tapetum.pipelines import _cluster
_cluster.LOOK_SECONDS = 0.2
sys.exit(main())
"""


def test_a_run_on_dask_that_lost_its_workers_gives_the_identical_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make bench` does the same with 100,000 light curves and two workers."""
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import lightcurve_scale

    monkeypatch.setattr(lightcurve_scale, "NO_WORKER_SECONDS", 2)
    monkeypatch.setattr(lightcurve_scale, "PROGRAM", ("-c", HURRIED))
    figures = lightcurve_scale.measure(tmp_path, 240, 6, workers=1, local=False, deaths=(3,))
    assert figures["reused"] == {"tcp": 2}  # those before the part at which its only worker was killed
    assert figures["parts"] >= 5
    assert figures["curves"] == 240


def test_what_the_benchmark_checks_it_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.lightcurve_scale import Run, check_rows, check_same, simulate

    curves = simulate(10, 6)
    table = curves.table
    check_rows(table, 6)
    for wrong in (table.slice(1), table.slice(0, 4), pa.concat_tables([table, table.slice(0, 1)])):
        with pytest.raises(RuntimeError, match="rows of 6 light curves"):
            check_rows(wrong, 6)
    with pytest.raises(RuntimeError, match="one row per light curve"):
        check_rows(table.set_column(2, "band", pa.array(["ztfg"] * 6)), 6)
    words = {"tapetum": "1", "made_by": "x", "options": "{}"}
    runs = []
    for number, period in enumerate([table["period"], table["period"], pa.array([0.5] * 6)]):
        run = Run(tmp_path, tmp_path / f"{number}.parquet")
        run.__dict__["table"] = table.set_column(5, "period", period).replace_schema_metadata(words)
        runs.append(run)
    check_same(runs[0], runs[1])
    with pytest.raises(RuntimeError, match=r"0\.parquet and 2\.parquet differ"):
        check_same(runs[0], runs[2])
    again = simulate(10, 6)
    assert (again.mag == curves.mag).all()
    assert again.table.equals(table)


def test_features_on_a_real_slurm_are_the_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against SLURM itself where one answers; `python -m benchmarks.slurm --tests` starts one for this."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        pytest.skip("no SLURM here: there is no sbatch on the PATH")
    found = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False, timeout=60)
    if found.returncode or not found.stdout.strip():
        pytest.skip(f"no SLURM here: {(found.stderr or 'sinfo names no partition').splitlines()[0]}")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    from benchmarks.lightcurve_scale import Simulated

    catalogue = tmp_path / "curves"
    write_hats(Simulated("simulated", 240), catalogue, most_rows=60)
    recipe = feature_recipe([str(catalogue)], FeatureOptions(given=("period",)))
    parts = parts_of(open_each([catalogue]))
    interface = os.environ.get("TAPETUM_CLUSTER__INTERFACE")
    cluster = ClusterSettings(memory="1GiB", interface=interface)
    far = Settings(scheduler="slurm", jobs=2, cluster=cluster)
    report = make_once(parts, recipe, str(tmp_path / "far.parquet"), far)
    assert report == MadeReport(n_rows=240, n_parts=len(parts))
    make_once(parts, recipe, str(tmp_path / "near.parquet"), Settings())
    assert read_table(tmp_path / "far.parquet").equals(read_table(tmp_path / "near.parquet"))
