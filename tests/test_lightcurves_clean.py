"""Cleaning of light curves: every rule by itself, all of them against the goldens, and a slow truth."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tapetum.lightcurves.clean import RULES, CleaningRules, Reason, clean
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import open_curves

LOOSE = CleaningRules(min_points=1, cadence_minutes=0)


def of(time, mag=None, magerr=None, flags=None):
    """One curve."""
    n = len(time)
    mag, magerr = (np.full(n, 18.0) if mag is None else mag), (np.full(n, 0.1) if magerr is None else magerr)
    return LightCurves.of_lists([time], [mag], [magerr], {"lc_id": ["a"]}, None if flags is None else [flags])


def dropped(cleaned):
    return {name: int(count) for name, count in zip(RULES, cleaned.dropped.sum(0), strict=True) if count}


def test_curves_and_counts_are_those_of_the_goldens(real_data):
    curves = open_curves(real_data / "lightcurves" / "lightcurves.parquet").read()
    golden = pq.read_table(
        real_data / "lightcurves" / "golden_features.parquet",
        columns=["lc_id", "kept", "n_after", "n", "baseline"],
    )
    cleaned = clean(curves)
    kept = golden["kept"].to_numpy(zero_copy_only=False)
    assert curves.ids == golden["lc_id"].to_pylist()
    assert cleaned.kept.tolist() == kept.tolist()
    assert cleaned.n_after.tolist() == golden["n_after"].to_pylist()
    assert cleaned.curves.n_points.tolist() == golden["n"].to_numpy()[kept].tolist()
    spans = [time[-1] - time[0] for time, _, _ in cleaned.curves]
    np.testing.assert_array_equal(spans, golden["baseline"].to_numpy()[kept])


def test_a_rapid_sequence_is_thinned_from_the_last_point_that_stayed():
    minutes = np.array([0, 10, 29.99, 30.01, 45, 60.03, 95])
    cleaned = clean(of(minutes / 1440), CleaningRules(min_points=1))
    np.testing.assert_array_equal(cleaned.curves.time, np.array([0, 30.01, 60.03, 95]) / 1440)
    assert dropped(cleaned) == {"cadence": 3}
    assert len(clean(of(minutes / 1440), LOOSE).curves.time) == len(minutes)


def test_points_of_one_time_keep_their_order_and_the_first_of_them_stays():
    time, mag = np.array([3.0, 1, 3, 1, 2, 1]), np.arange(6.0)
    assert clean(of(time, mag), LOOSE).curves.mag.tolist() == [1, 3, 5, 4, 0, 2]
    assert clean(of(time, mag), CleaningRules(min_points=1)).curves.mag.tolist() == [1, 4, 0]


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ("not_finite", {"time": np.nan}),
        ("not_finite", {"time": -np.inf}),
        ("not_finite", {"mag": np.nan}),
        ("not_finite", {"magerr": np.inf}),
        ("bad_error", {"magerr": 0.0}),
        ("bad_error", {"magerr": -0.1}),
        ("flagged", {"flags": 1}),
        ("flagged", {"flags": 32768}),
        ("magnitude", {"mag": 12.0}),
        ("magnitude", {"mag": 22.0}),
        ("late", {"time": 101.0}),
    ],
)
def test_each_rule_takes_its_point(rule, bad):
    columns = {
        "time": np.arange(5.0),
        "mag": np.full(5, 18.0),
        "magerr": np.full(5, 0.1),
        "flags": np.zeros(5, int),
    }
    for name, value in bad.items():
        columns[name][2] = value
    rules = CleaningRules(min_points=1, brightest=14, faintest=20, max_time=100)
    cleaned = clean(of(**columns), rules)
    assert cleaned.curves.time.tolist() == [0, 1, 3, 4]
    assert dropped(cleaned) == {rule: 1}
    assert cleaned.n_before.tolist() == [5]
    assert cleaned.n_after.tolist() == [4]


def test_a_point_counts_for_the_first_rule_only():
    cleaned = clean(of([1.0, 2], [np.nan, 18], [0.0, 0.1], [1, 0]), LOOSE)
    assert dropped(cleaned) == {"not_finite": 1}


def test_rules_can_be_switched_off():
    curves = of([1.0, 2, 3, 4], [np.nan, 18, 18, 18], [0.1, 0.0, 0.1, 0.1], [0, 0, 4, 1])
    rules = CleaningRules(min_points=1, finite=False, positive_errors=False, bad_flags=0)
    assert len(clean(curves, rules).curves.time) == 4
    assert clean(curves, CleaningRules(min_points=1, bad_flags=4)).curves.time.tolist() == [4]


@pytest.mark.parametrize(
    ("curve", "reason", "words"),
    [
        ({"time": np.arange(9.0)}, Reason.SHORT, "came with too few"),
        ({"time": np.zeros(0)}, Reason.SHORT, "0 of 0 points left, 10 needed"),
        ({"time": np.zeros(1)}, Reason.SHORT, "1 of 1 points left"),
        ({"time": np.arange(12.0), "mag": [np.nan] * 3 + [18] * 9}, Reason.NOT_FINITE, "finite time"),
        ({"time": np.arange(12.0), "magerr": [0.0] * 12}, Reason.BAD_ERROR, "error above 0"),
        ({"time": np.arange(12.0), "flags": [1] * 3 + [0] * 9}, Reason.FLAGGED, "dropped: 3 flagged"),
        ({"time": np.arange(12.0), "mag": [10.0] * 3 + [18] * 9}, Reason.MAGNITUDE, "limits of magnitude"),
        ({"time": np.arange(200, 212.0)}, Reason.LATE, "12 late"),
        ({"time": np.full(12, 7.0)}, Reason.CADENCE, "far enough apart"),
        ({"time": np.arange(12) * 0.01}, Reason.CADENCE, "12 points left, 10 needed"),
    ],
)
def test_the_reason_is_the_rule_that_left_too_few_points(curve, reason, words):
    cleaned = clean(of(**curve), CleaningRules(min_points=10, brightest=14, max_time=100))
    assert cleaned.kept.tolist() == [False]
    assert Reason(cleaned.reason[0]) is reason
    assert words in cleaned.explain(0)
    assert len(cleaned.curves) == len(cleaned.curves.time) == 0


def test_bands_and_huge_gaps_are_nobody_s_business():
    """A gap of years is kept; bands are different curves before they come here."""
    time = np.concatenate([np.arange(30.0), np.arange(30.0) + 5000])
    assert clean(of(time, np.full(60, 15.0))).curves.time.tolist() == time.tolist()


def test_curves_near_a_bright_star_go_whatever_they_are():
    lists = [np.arange(60.0), np.arange(9.0), np.arange(70.0)]
    curves = LightCurves.of_lists(
        lists, lists, [np.full(len(times), 0.1) for times in lists], {"lc_id": ["a", "b", "c"]}
    )
    cleaned = clean(curves, near_bright_star=np.array([True, False, False]))
    assert cleaned.curves.ids == ["c"]
    assert cleaned.curves.n_points.tolist() == [70]
    assert [Reason(reason).name for reason in cleaned.reason] == ["BRIGHT_STAR", "SHORT", "KEPT"]
    assert cleaned.explain(0) == "a bright star is too close"
    assert cleaned.explain(2) == ""
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        clean(curves, near_bright_star=np.array([True]))


def test_the_account_adds_up():
    curves = LightCurves.of_lists(
        [np.arange(60.0), np.arange(9.0)], [np.full(60, 18.0), np.full(9, 18.0)], [np.full(60, 0.1), np.full(9, 0.1)],
        {"lc_id": ["a", "b"]}, [np.arange(60) == 3, np.zeros(9)],
    )  # fmt: skip
    cleaned = clean(curves)
    rows = cleaned.table(curves.table["lc_id"]).to_pylist()
    assert [(row["lc_id"], row["kept"], row["reason"], row["n_flagged"]) for row in rows] == [
        ("a", True, "kept", 1),
        ("b", False, "short", 0),
    ]
    assert cleaned.summary() == {"curves_kept": 1, "curves_short": 1, "points_flagged": 1}


def slowly(time, mag, magerr, flags, rules):
    """What cleaning means, a point at a time."""
    good = [
        i for i in range(len(time))
        if np.isfinite([time[i], mag[i], magerr[i]]).all() and magerr[i] > 0 and flags[i] == 0
    ]  # fmt: skip
    kept = []
    for i in sorted(good, key=lambda i: time[i]):
        if not kept or time[i] - time[kept[-1]] >= rules.cadence_minutes * 60 / 86400:
            kept.append(i)
    return kept if len(kept) >= rules.min_points else []


def test_random_curves_are_cleaned_as_slowly_by_hand(rng):
    rules = CleaningRules(min_points=5, cadence_minutes=45)
    sizes = rng.integers(0, 80, 200)
    time = [np.round(rng.uniform(0, 1.5, n), 2) for n in sizes]
    mag = [np.where(rng.random(n) < 0.05, np.nan, np.arange(n)) for n in sizes]
    magerr = [np.where(rng.random(n) < 0.05, 0.0, 0.1) for n in sizes]
    flags = [(rng.random(n) < 0.2) * 1 for n in sizes]
    curves = LightCurves.of_lists(time, mag, magerr, flags=flags)
    cleaned = clean(curves, rules)
    expected = [slowly(*curve, rules) for curve in zip(time, mag, magerr, flags, strict=True)]
    assert cleaned.kept.tolist() == [len(kept) > 0 for kept in expected]
    for (_, found, _), kept in zip(cleaned.curves, [kept for kept in expected if kept], strict=True):
        assert found.tolist() == kept  # mag is the number of the point
    assert cleaned.curves.ids == [str(i) for i, kept in enumerate(expected) if kept]


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValidationError, match="min_points"):
        CleaningRules(min_points=0)
    with pytest.raises(ValidationError, match="cadence"):
        CleaningRules.model_validate({"cadence": 3})
