"""Light curves with something wrong, through the command line: each is handled as the documentation says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError, PartialFailureError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import write_curves
from tapetum.report.read_tables import read_table

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "bad-light-curves.md"
GRID = ("--samples-per-peak", 3, "--max-frequency", 4)
N = 80


def call(*words: object) -> Any:
    """Run a verb; what went wrong is raised."""
    result = CliRunner().invoke(app, ["lightcurves", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def cases() -> dict[str, tuple[Any, Any, Any]]:
    """Times, magnitudes and errors by the name of what is wrong with them."""
    rng = np.random.default_rng(3)
    time = np.sort(rng.uniform(0, 60, N))
    mag = 18 + 0.3 * np.sin(2 * np.pi * time / 0.7) + rng.normal(0, 0.02, N)
    error = np.full(N, 0.02)
    shuffled = rng.permutation(N)
    holes, lost = mag.copy(), time.copy()
    holes[::5], lost[3] = np.nan, np.inf
    some = error.copy()
    some[::7], some[1] = 0, -1
    late = np.where(np.arange(N) < N // 2, time, time + 4000)
    return {
        "nothing wrong": (time, mag, error),
        "unsorted": (time[shuffled], mag[shuffled], error[shuffled]),
        "NaN and infinity": (lost, holes, error),
        "nothing finite": (time, np.full(N, np.nan), error),
        "some zero errors": (time, mag, some),
        "zero errors": (time, mag, np.zeros(N)),
        "one point": (time[:1], mag[:1], error[:1]),
        "no point": (time[:0], mag[:0], error[:0]),
        "constant": (time, np.full(N, 18.0), error),
        "duplicated times": (np.repeat(time, 2), np.repeat(mag, 2), np.repeat(error, 2)),
        "one time": (np.full(N, 5.0), mag, error),
        "huge gap": (late, 18 + 0.3 * np.sin(2 * np.pi * late / 0.7), error),
    }


REASONS = {
    "nothing finite": "not_finite", "zero errors": "bad_error", "one point": "short", "no point": "short",
    "one time": "cadence",
}  # fmt: skip
NO_PERIOD = {*REASONS, "constant"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "bad.parquet"
    parts = cases()
    curves = zip(*parts.values(), strict=True)
    write_curves(LightCurves.of_lists(*map(list, curves), pa.table({"lc_id": list(parts)})), path)
    return path


@pytest.fixture(scope="module")
def features(file: Path) -> dict[str, dict[str, Any]]:
    out = file.with_name("features.parquet")
    sets = [word for name in ("scope", "tapetum", "cesium") for word in ("--set", name)]
    call("features", file, "-o", out, *sets, "--algorithms", "LS,CE,AOV", *GRID)
    return {row["lc_id"]: row for row in read_table(out).to_pylist()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = [name for name in one if name not in ("lc_id", "n_before")]
    return all(one[name] == other[name] for name in names)


def test_every_light_curve_has_its_row_and_reason(features: dict[str, dict[str, Any]]) -> None:
    assert list(features) == list(cases())
    assert {name: row["reason"] for name, row in features.items() if not row["kept"]} == REASONS
    for name, row in features.items():
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers)), name  # what is not known is null, never NaN or infinite
        if name in REASONS:
            assert row["median"] is None
            assert row["dmdt"] is None
        assert (row["period"] is None) == (name in NO_PERIOD), name


def test_order_and_doubles_change_nothing(features: dict[str, dict[str, Any]]) -> None:
    good = features["nothing wrong"]
    assert good["period"] == pytest.approx(0.7, rel=5e-3)
    assert same(features["unsorted"], good)
    assert same(features["duplicated times"], good)
    assert features["duplicated times"]["n_before"] == 2 * N


def test_bad_points_are_left_out_and_counted(features: dict[str, dict[str, Any]]) -> None:
    holes, errors = features["NaN and infinity"], features["some zero errors"]
    times, mags, magerrs = cases()["NaN and infinity"]
    assert holes["n_after"] <= np.isfinite(times + mags).sum() < N
    _, _, magerrs = cases()["some zero errors"]
    assert errors["n_after"] <= (magerrs > 0).sum() < N
    for row in (holes, errors):
        assert row["period"] == pytest.approx(0.7, rel=5e-3)


def test_a_constant_star_and_long_times(features: dict[str, dict[str, Any]]) -> None:
    constant = features["constant"]
    assert (constant["median"], constant["iqr"], constant["median_abs_dev"]) == (18.0, 0.0, 0.0)
    assert constant["f1_power_LS"] is None
    assert features["huge gap"]["period"] == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("verb", ["features", "periods"])
def test_two_kinds_of_days_spoil_no_other(tmp_path: Path, verb: str) -> None:
    """One Julian date among modified ones: millions of days need more frequencies than anybody has."""
    time, mag, error = cases()["nothing wrong"]
    mixed = np.where(np.arange(N) < N - 1, time + 59000, time + 2459000.5)
    curves = LightCurves.of_lists(
        [time, mixed, time], [mag] * 3, [error] * 3, pa.table({"lc_id": ["a", "two kinds of days", "b"]})
    )
    write_curves(curves, tmp_path / "c.parquet")
    call(verb, tmp_path / "c.parquet", "-o", tmp_path / "f.parquet", "--algorithms", "LS")
    rows = read_table(tmp_path / "f.parquet").to_pylist()
    assert [row["kept"] for row in rows] == [True] * 3
    assert rows[0]["period_LS"] == rows[2]["period_LS"] == pytest.approx(0.7, rel=5e-3)
    assert rows[1]["period_LS"] is None
    if verb == "features":
        assert rows[1]["median"] == pytest.approx(rows[0]["median"], abs=0.05)


def test_periods_treat_them_alike(file: Path, features: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    call("periods", file, "-o", tmp_path / "p.parquet", "--algorithms", "LS,CE,AOV", *GRID)
    for row in read_table(tmp_path / "p.parquet").to_pylist():
        name = row["lc_id"]
        assert (row["kept"], row["reason"]) == (features[name]["kept"], features[name]["reason"])
        assert row["period_LS"] == features[name]["period_LS"], name
        assert (row["period"] is None) == (name in NO_PERIOD), name


def test_bands_under_one_id_become_light_curves_of_their_own(tmp_path: Path) -> None:
    time, mag, error = cases()["nothing wrong"]
    table = {"lc_id": ["x"] * N, "band": ["g", "r"] * (N // 2), "time": time, "mag": mag, "magerr": error}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    call("features", tmp_path / "c.parquet", "-o", tmp_path / "f.parquet", "--min-points", 20)
    rows = read_table(tmp_path / "f.parquet").to_pylist()
    assert [(row["lc_id"], row["band"], row["n_before"]) for row in rows] == [
        ("x-g", "g", N // 2), ("x-r", "r", N // 2),
    ]  # fmt: skip


def test_an_empty_table_has_all_columns_and_no_row(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("lc_id,time,mag,magerr\n")
    call("features", tmp_path / "c.csv", "-o", tmp_path / "f.parquet", "--algorithms", "LS", *GRID)
    table = read_table(tmp_path / "f.parquet")
    assert table.num_rows == 0
    assert {"lc_id", "kept", "reason", "median", "period_LS", "f1_power_LS", "dmdt"} <= set(
        table.column_names
    )


@pytest.mark.parametrize(
    "name", ["empty.csv", "empty.parquet", "damaged.parquet", "other.csv", "unequal.parquet"]
)
def test_files_that_cannot_be_used_stop_no_other(file: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = {"damaged.parquet": file.read_bytes()[:500], "other.csv": b"a,b\n1,2\n"}
    path.write_bytes(content.get(name, b""))
    if name == "unequal.parquet":
        lists = {"lc_id": ["x"], "time": [[1.0, 2.0]], "mag": [[1.0]], "magerr": [[1.0, 1.0]]}
        pq.write_table(pa.table(lists), path)
    with pytest.raises(InputError, match="none of 1 parts could be used"):
        call("features", path, "-o", tmp_path / "f.parquet")
    with pytest.raises(PartialFailureError, match="1 of 2 parts rejected"):
        call("features", path, file, "-o", tmp_path / "f.parquet")
    assert read_table(tmp_path / "f.parquet").num_rows == len(cases())


def test_the_page_tells_of_every_case() -> None:
    told = set(re.findall(r"^\| ([^|]+?) +\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(cases()) - {"nothing wrong"} <= told
    assert {"mixed bands", "empty table", "two kinds of days", "file that cannot be read"} <= told
