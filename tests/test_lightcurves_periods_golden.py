"""Periods of the described system: its periodograms and choices on real curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.search import Found, PeriodRules, find_periods

GRID = GridRules(maximum=10.0, samples_per_peak=3, remove_terrestrial=True)
CADENCE = 30 / 1440
NAMES = ("LS", "CE", "AOV")


def _selected(row: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Good points in order of time, at least 30 minutes apart."""
    good = np.array(row["catflags"]) == 0
    columns = [np.array(row[name], np.float64)[good] for name in ("time", "mag", "magerr")]
    order = np.argsort(columns[0], kind="stable")
    kept: list[int] = []
    for i in order:
        if not kept or columns[0][i] - columns[0][kept[-1]] >= CADENCE:
            kept.append(i)
    return columns[0][kept], columns[1][kept], columns[2][kept]


@pytest.fixture(scope="module")
def golden(real_data: Path) -> dict[str, np.ndarray]:
    with np.load(real_data / "lightcurves" / "golden_periodograms.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def features(real_data: Path, golden: dict[str, np.ndarray]) -> pa.Table:
    ids = sorted({key.split("__")[0] for key in golden})
    table = pq.read_table(real_data / "lightcurves" / "golden_features.parquet")
    rows = {row["lc_id"]: row for row in table.to_pylist()}
    return pa.Table.from_pylist([rows[name] for name in ids])


@pytest.fixture(scope="module")
def curves(real_data: Path, features: pa.Table) -> LightCurves:
    table = pq.read_table(real_data / "lightcurves" / "lightcurves.parquet")
    rows = {row["lc_id"]: row for row in table.to_pylist()}
    parts = [_selected(rows[name]) for name in features["lc_id"].to_pylist()]
    return LightCurves.of_lists(*zip(*parts, strict=True), {"lc_id": features["lc_id"]})


def _found(curves: LightCurves, nested: str) -> Found:
    rules = PeriodRules(grid=GRID, nested=nested, keep=True, ranking=None)
    return find_periods(curves, rules)


@pytest.fixture(scope="module")
def found(curves: LightCurves) -> Found:
    return _found(curves, "fixed")


@pytest.fixture(scope="module")
def scaled(found: Found) -> list[dict[str, np.ndarray]]:
    """Periodograms as the described system holds them: distance from the mean in units of the scatter."""
    assert found.periodograms is not None
    return [
        {name: np.abs(kept[name].mean() - kept[name]) / kept[name].std() for name in ("CE", "AOV")}
        for kept in found.periodograms
    ]


def test_the_grid_is_the_same(found: Found, features: pa.Table, golden: dict[str, np.ndarray]) -> None:
    assert found.periodograms is not None
    for name, kept in zip(features["lc_id"].to_pylist(), found.periodograms, strict=True):
        assert np.allclose(kept["frequency"], golden[f"{name}__freq"], rtol=1e-13)


def test_conditional_entropy(
    features: pa.Table, scaled: list[dict[str, np.ndarray]], golden: dict[str, np.ndarray]
) -> None:
    for name, kept in zip(features["lc_id"].to_pylist(), scaled, strict=True):
        off = np.abs(kept["CE"] - golden[f"{name}__CE"])
        # a point within 4e-9 turns of the edge of a bin may count on the other side of it
        assert np.median(off) < 1e-6
        assert (off > 1e-4).mean() < 1e-3, name


def test_analysis_of_variance(
    features: pa.Table, scaled: list[dict[str, np.ndarray]], golden: dict[str, np.ndarray]
) -> None:
    for name, kept in zip(features["lc_id"].to_pylist(), scaled, strict=True):
        assert np.allclose(kept["AOV"], golden[f"{name}__AOV"], rtol=1e-5, atol=1e-6)


def test_lomb_scargle_at_the_best_frequencies(
    found: Found, features: pa.Table, golden: dict[str, np.ndarray]
) -> None:
    assert found.periodograms is not None
    for name, kept in zip(features["lc_id"].to_pylist(), found.periodograms, strict=True):
        want = golden[f"{name}__LS"]
        assert want[kept["LS"].argmax()] == want.max()
    want = np.array([golden[f"{name}__LS"].max() for name in features["lc_id"].to_pylist()])
    assert np.allclose(found.table["significance_LS"].to_numpy(), want, rtol=1e-5)
    assert np.allclose(-found.table["log10_fap_LS"].to_numpy(), np.log10(want), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_periods(name: str, found: Found, features: pa.Table, golden: dict[str, np.ndarray]) -> None:
    ours, theirs = (table[f"period_{name}"].to_numpy() for table in (found.table, features))
    assert found.periodograms is not None
    for i, kept in enumerate(found.periodograms):
        mine, wanted = (np.abs(kept["frequency"] - 1 / period).argmin() for period in (ours[i], theirs[i]))
        assert mine == wanted or kept[name][mine] == pytest.approx(kept[name][wanted], rel=1e-6)
    assert np.allclose(
        found.table[f"significance_{name}"].to_numpy(),
        features[f"significance_{name}"].to_numpy() if name != "CE" else _lowest(features, golden),
        rtol=1e-5 if name != "CE" else 1e-4,
    )


def _lowest(features: pa.Table, golden: dict[str, np.ndarray]) -> list[float]:
    """Significance at the period of entropy, which is no column of the table."""
    names, periods = features["lc_id"].to_pylist(), features["period_CE"].to_numpy()
    at = [
        np.abs(golden[f"{name}__freq"] - 1 / period).argmin()
        for name, period in zip(names, periods, strict=True)
    ]
    return [golden[f"{name}__CE"][i] for name, i in zip(names, at, strict=True)]


@pytest.mark.parametrize(("nested", "suffix"), [("fixed", "_fixed"), ("shipped", "")])
def test_nested_choice(nested: str, suffix: str, curves: LightCurves, features: pa.Table) -> None:
    table = _found(curves, nested).table
    assert np.allclose(
        table["period_LS_CE_AOV"].to_numpy(), features[f"period_LS_CE_AOV{suffix}"].to_numpy(), rtol=1e-12
    )
    assert np.allclose(
        table["significance_LS_CE_AOV"].to_numpy(),
        features[f"significance_LS_CE_AOV{suffix}"].to_numpy(),
        rtol=1e-5,
    )
