"""Missing features: each rule against a slow second way, frozen on the training part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.core.errors import FormatError, InputError
from tapetum.lightcurves.impute import DONORS, NEIGHBOURS, REGRESSED, Imputer, Strategy, described_strategies
from tapetum.pipelines.lightcurve_impute import Imputation, impute_parts

NAN = float("nan")
PARALLAX, ERROR = "Gaia_EDR3__parallax", "Gaia_EDR3__parallax_error"


def table_of(values: np.ndarray, names: list[str]) -> pa.Table:
    return pa.table({name: pa.array(values[:, i], from_pandas=True) for i, name in enumerate(names)})


def slow_neighbours(rows: np.ndarray, donors: np.ndarray) -> np.ndarray:
    """The five nearest by the mean squared difference of what both have; their plain mean."""
    out = rows.copy()
    for i, j in np.argwhere(np.isnan(rows)):
        apart = [
            (float(np.nanmean((rows[i] - donor) ** 2)), k)
            for k, donor in enumerate(donors)
            if np.isfinite(donor[j]) and np.isfinite(rows[i] - donor).any()
        ]
        out[i, j] = np.mean([donors[k, j] for _, k in sorted(apart)[:NEIGHBOURS]])
    return out


def test_regressed_values_come_from_the_five_nearest_rows(rng: np.random.Generator) -> None:
    names = [f"PS1_DR1__{band}MeanPSFMag" for band in "grizy"]
    colour = rng.normal(0, 1, (300, 1))
    train = rng.uniform(15, 20, (300, 1)) - colour * np.arange(5) + rng.normal(0, 0.05, (300, 5))
    train[rng.random(train.shape) < 0.2] = NAN
    rows = train[:60].copy() + 0.01
    rows[rng.random(rows.shape) < 0.3] = NAN
    rows = rows[np.isfinite(rows).any(axis=1)]
    imputer = Imputer.fit(table_of(train, names), described_strategies(names))
    done = imputer.apply(table_of(rows, names))
    expected = slow_neighbours(rows, train[np.isfinite(train).any(axis=1)])
    assert done.kept.all()
    np.testing.assert_allclose(
        np.column_stack([done.table[name].to_numpy() for name in names]), expected, rtol=1e-12
    )
    for i, name in enumerate(names):
        assert done.filled[name].tolist() == np.isnan(rows[:, i]).tolist()


def test_a_row_does_not_depend_on_its_company(rng: np.random.Generator) -> None:
    names = ["parallax", "w1mpro", "w2mpro"]
    train, rows = rng.normal(15, 2, (500, 3)), rng.normal(15, 2, (64, 3))
    rows[rng.random(rows.shape) < 0.4] = NAN
    imputer = Imputer.fit(table_of(train, names), described_strategies(names))
    together = imputer.apply(table_of(rows, names)).table.to_pylist()
    alone = [imputer.apply(table_of(rows[i : i + 1], names)).table.to_pylist()[0] for i in range(len(rows))]
    assert together == alone


def test_what_has_no_neighbour_gets_the_mean_as_scikit_learn_has_it() -> None:
    names = ["parallax", "w1mpro"]
    train = np.array([[1.0, NAN], [1.0, NAN], [4.0, NAN], [NAN, 10.0], [NAN, 14.0], [NAN, 15.0]])
    done = Imputer.fit(table_of(train, names), described_strategies(names)).apply(
        table_of(np.array([[NAN, NAN], [2.0, NAN]]), names)
    )
    assert done.table.to_pydict() == {"parallax": [2.0, 2.0], "w1mpro": [13.0, 13.0]}


def test_means_take_the_place_of_missing_values() -> None:
    train = pa.table({"e": [1.0, 2.0, 9.0, None]})
    done = Imputer.fit(train, {"e": "mean"}).apply(pa.table({"e": [None, 5.0, NAN]}))
    assert done.table.to_pydict() == {"e": [4.0, 5.0, 4.0]}
    assert done.filled["e"].tolist() == [True, False, True]


def test_medians_zeros_and_dropped_rows() -> None:
    train = pa.table(
        {"e": [1.0, 2.0, 9.0, None], "n_ztf_alerts": [5, 6, 7, None], "ad": [1.0, 2.0, 3.0, 4.0]}
    )
    rules = {"e": "median", "n_ztf_alerts": "zero", "ad": "drop"}
    imputer = Imputer.fit(train, rules)
    rows = pa.table(
        {
            "lc_id": ["a", "b", "c"],
            "e": [None, float("inf"), 4.0],
            "n_ztf_alerts": pa.array([None, 2, 3], pa.int64()),
            "ad": [1.0, NAN, 2.0],
        }
    )
    done = imputer.apply(rows)
    assert done.kept.tolist() == [True, False, True]
    assert done.table.to_pydict() == {
        "lc_id": ["a", "c"],
        "e": [2.0, 4.0],
        "n_ztf_alerts": [0, 3],
        "ad": [1.0, 2.0],
    }
    assert done.table.schema.field("n_ztf_alerts").type == pa.int64()
    assert {name: which.tolist() for name, which in done.filled.items()} == {
        "e": [True, False],
        "n_ztf_alerts": [True, False],
    }
    infinite = imputer.apply(rows.slice(1, 1).set_column(3, "ad", pa.array([5.0])))
    assert infinite.table["e"].to_pylist() == [2.0]


def test_the_median_of_whole_numbers_may_be_none() -> None:
    imputer = Imputer.fit(pa.table({"n": [1, 2]}), {"n": "median"})
    done = imputer.apply(pa.table({"n": pa.array([None, 4], pa.int64())}))
    assert done.table["n"].to_pylist() == [1.5, 4.0]


def test_kept_features_stay_missing() -> None:
    rows = pa.table({"x": [None, 1.0]})
    done = Imputer.fit(rows, {"x": Strategy.KEEP}).apply(rows)
    assert (done.table, done.filled) == (rows, {})


def test_rules_survive_as_text(rng: np.random.Generator) -> None:
    names = ["parallax", "w1mpro", "w1sigmpro", "n_ztf_alerts", "ad"]
    train = rng.normal(10, 3, (50, 5))
    train[rng.random(train.shape) < 0.2] = NAN
    imputer = Imputer.fit(table_of(train, names), described_strategies(names))
    text = imputer.to_json()
    assert "NaN" not in text
    assert json.loads(text)["strategies"] == {
        "parallax": "regress", "w1mpro": "regress", "w1sigmpro": "median", "n_ztf_alerts": "zero", "ad": "drop",
    }  # fmt: skip
    again = Imputer.from_json(text)
    assert again.to_json() == text
    rows = table_of(train, names)
    assert again.apply(rows).table.equals(imputer.apply(rows).table)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "no json",
        '{"strategies": {"x": "guess"}, "medians": {}, "means": {}, "donors": []}',
        '{"strategies": {"x": "median"}, "medians": {}, "means": {"x": 1}, "donors": []}',
        '{"strategies": {"x": "mean"}, "medians": {"x": 1}, "means": {}, "donors": []}',
        '{"strategies": {"x": "regress"}, "medians": {}, "means": {"x": 1}, "donors": [[1, 2]]}',
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="rules for missing features"):
        Imputer.from_json(text)


def test_many_rows_leave_as_many_donors_as_are_allowed(rng: np.random.Generator) -> None:
    names = ["parallax", "w1mpro"]
    train = table_of(rng.normal(10, 1, (DONORS + 500, 2)), names)
    rules = described_strategies(names)
    assert Imputer.fit(train, rules).donors.shape == (DONORS, 2)
    few = [Imputer.fit(train, rules, np.random.default_rng(seed), 20).donors for seed in (1, 1, 2)]
    assert (few[0] == few[1]).all()
    assert not (few[0] == few[2]).all()


def test_described_rules_are_those_of_the_described_features() -> None:
    names = [
        "ad", "period_ELS_ECE_EAOV", "n_ztf_alerts", "mean_ztf_alert_braai", "AllWISE__w1mpro", "AllWISE__w2sigmpro",
        "Gaia_EDR3__parallax", "Gaia_EDR3__parallax_error", "Gaia_EDR3__phot_bp_rp_excess_factor",
        "PS1_DR1__gMeanPSFMag", "PS1_DR1__gMeanPSFMagErr",
    ]  # fmt: skip
    rules = [
        "drop",
        "drop",
        "zero",
        "zero",
        "regress",
        "median",
        "regress",
        "median",
        "median",
        "regress",
        "median",
    ]
    assert list(described_strategies(names).values()) == rules
    assert described_strategies(["ad"], Strategy.KEEP) == {"ad": Strategy.KEEP}
    assert len(REGRESSED) == 13


def test_what_cannot_be_fitted_says_why() -> None:
    rows = pa.table({"x": [None, NAN], "word": ["a", "b"]})
    with pytest.raises(InputError, match="feature x: no row"):
        Imputer.fit(rows, {"x": "median"})
    with pytest.raises(InputError, match="no column y"):
        Imputer.fit(rows, {"y": "median"})
    with pytest.raises(InputError, match="column word is string"):
        Imputer.fit(rows, {"word": "regress"})
    with pytest.raises(InputError, match="unknown rule 'guess'"):
        Imputer.fit(rows, {"x": "guess"})


def test_nothing_in_nothing_out() -> None:
    names = ["parallax", "w1mpro", "ad"]
    imputer = Imputer.fit(table_of(np.ones((3, 3)), names), described_strategies(names))
    done = imputer.apply(table_of(np.empty((0, 3)), names))
    assert (done.table.num_rows, done.kept.size, done.filled) == (0, 0, {})


@pytest.mark.parametrize("nothing", [NAN, float("inf"), None])
def test_a_feature_that_nobody_has_stays_as_it_is(tmp_path: Path, nothing: float | None) -> None:
    for part in range(2):
        table = {
            "lc_id": [f"{part}a", f"{part}b"],
            PARALLAX: pa.array([nothing, nothing], pa.float64()),
            ERROR: [0.2 + part, NAN],
        }
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    paths = [tmp_path / f"{part}.parquet" for part in range(2)]
    done = impute_parts(paths, Imputation())
    assert set(done.strategies) == {ERROR}
    first, second = (pq.read_table(path) for path in done.paths)
    np.testing.assert_allclose([*first[ERROR].to_numpy(), *second[ERROR].to_numpy()], [0.2, 0.7, 1.2, 0.7])
    for value in first[PARALLAX].to_pylist():
        assert value == nothing or (value is not None and np.isnan(value))
    # with a rule by name there must be something to fit it to
    with pytest.raises(InputError, match=rf"{PARALLAX}: no row of the training part has it"):
        impute_parts(paths, Imputation(rules={PARALLAX: Strategy.MEAN}))
