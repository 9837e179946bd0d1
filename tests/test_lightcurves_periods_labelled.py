"""Periods of real RR Lyrae against the literature."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.search import PeriodRules, find_periods

TEST = (3, 4)  # tenths of the objects that nothing was developed on


def test_the_final_period_of_rr_lyrae_in_stripe_82(real_data: Path) -> None:
    """Sesar et al. (2010), bands g, r and i together, all periods down to 2.4 hours allowed."""
    path = real_data / "lightcurves" / "labelled" / "labelled_lightcurves.parquet"
    rows = [
        row
        for row in pq.read_table(path, filters=[("period_literature", ">", 0)]).to_pylist()
        if int(hashlib.sha1(row["object_id"].encode()).hexdigest()[:8], 16) % 10 in TEST
    ]
    columns = ([row[name] for row in rows] for name in ("time", "mag", "magerr"))
    names = {name: [row[name] for row in rows] for name in ("lc_id", "object_id", "band")}
    rules = PeriodRules(grid=GridRules(maximum=10, samples_per_peak=3), algorithms=("LS",))
    table = find_periods(LightCurves.of_lists(*columns, names), rules, by="object_id").table
    literature = {row["object_id"]: row["period_literature"] for row in rows}
    want = np.array([literature[name] for name in table["object_id"].to_pylist()])
    good = {
        name: np.mean(np.abs(table[name].to_numpy() / want - 1) < 0.01) for name in ("period_LS", "period")
    }
    assert want.size > 60
    assert good["period"] >= 0.9
    assert good["period"] > good["period_LS"] + 0.1
    listed = zip(table["top_period"].to_pylist(), want, strict=True)
    assert np.mean([any(abs(p / true - 1) < 0.01 for p in top) for top, true in listed]) > 0.97
