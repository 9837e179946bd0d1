"""From light curves to a table of periods: choices, aliases, errors, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tapetum.core.errors import InputError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.periods.aliases import SIDEREAL, family, relation
from tapetum.lightcurves.periods.grid import Grid, GridRules
from tapetum.lightcurves.periods.periodograms import StatisticRules
from tapetum.lightcurves.periods.points import Points
from tapetum.lightcurves.periods.ranking import RankRules, rank
from tapetum.lightcurves.periods.search import PeriodRules, find_periods

SMALL = GridRules(maximum=8.0, samples_per_peak=5)
ALL = ("LS", "CE", "AOV", "ELS", "ECE", "EAOV", "BLS")


def _nights(rng: np.random.Generator, count: int, days: float = 300) -> np.ndarray:
    """Times within three hours of local midnight."""
    return np.sort(rng.choice(np.arange(int(days)), count, replace=False) + rng.normal(0, 0.06, count))


def _saw(time: np.ndarray, period: float) -> np.ndarray:
    phase = time / period % 1
    return np.where(phase < 0.15, 1 - phase / 0.15, (phase - 0.15) / 0.85)


def _curves(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], **columns: list[str]) -> LightCurves:
    names = {"lc_id": [str(i) for i in range(len(parts))], **columns}
    return LightCurves.of_lists(*zip(*parts, strict=True), names)


@pytest.fixture
def pulsators(rng: np.random.Generator) -> tuple[LightCurves, np.ndarray]:
    periods = np.array([0.5713, 0.3391, 1.2734, 2.9])
    parts = []
    for period in periods:
        time = _nights(rng, 120) + 58000
        parts.append((time, 17 + 0.8 * _saw(time, period) + rng.normal(0, 0.03, 120), np.full(120, 0.03)))
    return _curves(parts), periods


@pytest.fixture(scope="module")
def everything() -> tuple[PeriodRules, PeriodRules]:
    return (
        PeriodRules(grid=SMALL, algorithms=ALL),
        PeriodRules(grid=SMALL, algorithms=("ELS", "ECE", "EAOV")),
    )


def test_all_algorithms_find_a_pulsator(
    pulsators: tuple[LightCurves, np.ndarray], everything: tuple[PeriodRules, PeriodRules]
) -> None:
    curves, periods = pulsators
    table = find_periods(curves, everything[0]).table
    assert table["lc_id"].to_pylist() == curves.ids
    assert np.allclose(table["period"].to_numpy(), periods, rtol=2e-4)
    assert np.allclose(table["period_LS_CE_AOV"].to_numpy(), periods, rtol=2e-3)
    for name in ALL:
        assert table[f"period_{name}"].null_count == 0
        assert (table[f"significance_{name}"].to_numpy() > 0).all()
    assert table["period_note"].null_count == len(curves)
    assert (table["log10_fap_LS"].to_numpy() < -6).all()
    assert table["log10_fap_CE"].null_count == len(curves)
    assert (table["period_log10_fap"].to_numpy() < -20).all()


def test_names_of_gpus(
    pulsators: tuple[LightCurves, np.ndarray], everything: tuple[PeriodRules, PeriodRules]
) -> None:
    curves, periods = pulsators
    table = find_periods(curves, everything[1]).table
    assert everything[1].nested_suffix == "ELS_ECE_EAOV"
    assert np.allclose(table["period_ELS_ECE_EAOV"].to_numpy(), periods, rtol=2e-3)
    assert "period_LS" not in table.column_names


def test_a_period_does_not_depend_on_the_company(pulsators: tuple[LightCurves, np.ndarray]) -> None:
    curves, _ = pulsators
    rules = PeriodRules(grid=SMALL)
    together = find_periods(curves, rules).table.to_pylist()
    alone = find_periods(curves.take(np.array([2])), rules).table.to_pylist()
    assert alone[0] == together[2]


def test_order_and_origin_of_times_do_not_matter(
    pulsators: tuple[LightCurves, np.ndarray], rng: np.random.Generator
) -> None:
    time, mag, error = next(iter(pulsators[0]))
    turn = rng.permutation(time.size)
    both = _curves([(time, mag, error), (time[turn] - 58000, mag[turn], error[turn])])
    first, second = find_periods(both, PeriodRules(grid=SMALL)).table.to_pylist()
    assert second["period"] == pytest.approx(first["period"], rel=1e-9)
    assert second["period_LS"] == pytest.approx(first["period_LS"], rel=1e-9)


def test_the_ranking_undoes_an_alias() -> None:
    """Of 40 noisy pulsators seen at night only: the highest peak is often an alias, the final period seldom."""
    rng = np.random.default_rng(7)
    periods, parts = rng.uniform(0.35, 0.9, 40), []
    for period in periods:
        time = _nights(rng, 36)
        parts.append((time, _saw(time, period) + rng.normal(0, 0.08, 36), np.full(36, 0.08)))
    table = find_periods(_curves(parts), PeriodRules(grid=SMALL, algorithms=("LS",))).table
    first, final = (np.abs(table[name].to_numpy() / periods - 1) < 0.01 for name in ("period_LS", "period"))
    assert final.sum() >= 37
    assert final.sum() > first.sum() + 3
    missed = [row for row, hit in zip(table.to_pylist(), final, strict=True) if not hit]
    assert all(len(set(row["top_relation"])) > 1 for row in missed)


def test_sources_of_several_bands(rng: np.random.Generator) -> None:
    """24 points in each of three bands: no band alone has enough."""
    parts = []
    for amplitude in (0.5, 0.35, 0.25):
        time = _nights(rng, 24)
        parts.append((time, 15 + amplitude * _saw(time, 0.6123) + rng.normal(0, 0.02, 24), np.full(24, 0.02)))
    curves = _curves(parts, object_id=["s", "s", "s"], band=["g", "r", "i"])
    rules = PeriodRules(grid=SMALL, algorithms=("LS", "ECE", "EAOV"))
    row = find_periods(curves, rules, by="object_id").table.to_pylist()[0]
    assert row["object_id"] == "s"
    assert row["period"] == pytest.approx(0.6123, rel=1e-3)
    alone = find_periods(curves, rules).table["period"].to_numpy()
    assert (np.abs(alone / 0.6123 - 1) > 0.01).any()
    with pytest.raises(InputError, match="no column star"):
        find_periods(curves, rules, by="star")


def test_the_error_of_a_period_is_the_scatter_of_periods() -> None:
    """Of a sinusoid: that of Montgomery & O'Donoghue, and what 60 noisy curves show."""
    rng = np.random.default_rng(11)
    parts = []
    for _ in range(60):
        time = np.sort(rng.uniform(0, 100, 200))
        parts.append(
            (time, 0.2 * np.sin(2 * np.pi * 1.3 * time) + rng.normal(0, 0.1, 200), np.full(200, 0.1))
        )
    rules = PeriodRules(
        grid=GridRules(maximum=2, samples_per_peak=3),
        algorithms=("LS",),
        ranking=RankRules(orders=1, softening=0),
    )
    table = find_periods(_curves(parts), rules).table
    period, error = table["period"].to_numpy(), table["period_err"].to_numpy()
    assert np.median(error) == pytest.approx(np.sqrt(6 / 200) * 0.1 / (np.pi * 100 * 0.2) / 1.3**2, rel=0.1)
    assert 0.8 < ((period - 1 / 1.3) / error).std() < 1.25


def test_terrestrial_frequencies_are_no_periods(rng: np.random.Generator) -> None:
    time = _nights(rng, 200)
    mag = 15 + 0.3 * np.sin(2 * np.pi * time) + rng.normal(0, 0.02, 200)
    curves = _curves([(time, mag, np.full(200, 0.02))])
    masked = PeriodRules(grid=SMALL.model_copy(update={"remove_terrestrial": True}))
    grid = masked.grid.grid(float(np.ptp(time)))
    row = find_periods(curves, masked).table.to_pylist()[0]
    for name in ("period", "period_LS", "period_CE", "period_AOV", "period_LS_CE_AOV"):
        assert not grid.masked(np.array(1 / row[name] - (0.006 if name == "period" else 0)))


def test_other_significance(pulsators: tuple[LightCurves, np.ndarray]) -> None:
    curves = pulsators[0].take(np.array([0]))
    rules = PeriodRules(grid=SMALL, keep=True, ranking=None)
    found = find_periods(curves, rules)
    assert found.periodograms is not None
    values = found.periodograms[0]["AOV"]
    mad = find_periods(curves, rules.model_copy(update={"significance": "madmedian"})).table
    middle = np.median(values)
    want = (values.max() - middle) / np.median(np.abs(values - middle))
    assert mad["significance_AOV"][0].as_py() == pytest.approx(want)
    plain = found.table["significance_AOV"][0].as_py()
    assert plain == pytest.approx((values.max() - values.mean()) / values.std())


def test_bad_curves_have_no_period_and_harm_no_other(
    pulsators: tuple[LightCurves, np.ndarray], everything: tuple[PeriodRules, PeriodRules]
) -> None:
    time, mag, error = next(iter(pulsators[0]))
    one = time[:1], mag[:1], error[:1]
    none = time[:0], mag[:0], error[:0]
    constant = time, np.full_like(mag, 17.0), error
    tied = np.full_like(time, 5.0), mag, error
    unknown = time, np.full_like(mag, np.nan), error
    no_error = time, mag, np.zeros_like(error)
    eternal = np.where(np.arange(time.size) < 60, time, time + 1e9), mag, error
    parts = [one, none, constant, tied, unknown, no_error, eternal, (time, mag, error)]
    table = find_periods(_curves(parts), everything[0]).table.to_pylist()
    for row in table[:-1]:
        assert row["period"] is None
        assert row["period_LS_CE_AOV"] is None
        assert row["period_note"]
    assert "most_frequencies" in table[6]["period_note"]
    assert table[-1]["period"] == pytest.approx(0.5713, rel=2e-4)


def test_odd_curves_are_searched(
    pulsators: tuple[LightCurves, np.ndarray], everything: tuple[PeriodRules, PeriodRules]
) -> None:
    time, mag, error = (np.array(column) for column in next(iter(pulsators[0])))
    doubled = np.repeat(time, 2), np.repeat(mag, 2), np.repeat(error, 2)
    holes = mag.copy()
    holes[::7] = np.nan
    gap = np.where(np.arange(time.size) < 60, time, time + 2000), mag, error
    few = time[:5], mag[:5], error[:5]
    two_values = time, np.where(np.arange(time.size) % 2, 17.0, 18.0), error
    perfect = time, 17 + 0.3 * np.sin(2 * np.pi * time / 0.71), error
    parts = [doubled, (time, holes, error), few, two_values, perfect, gap]
    table = find_periods(_curves(parts), everything[0]).table.to_pylist()
    assert table[0]["period"] == pytest.approx(0.5713, rel=2e-4)
    assert table[1]["period"] == pytest.approx(0.5713, rel=2e-4)
    assert all(row["period_LS"] > 0 and row["period_note"] is None for row in table)
    assert table[4]["period"] == pytest.approx(0.71, rel=1e-6)
    assert table[4]["log10_fap_LS"] < -50


def test_trials_tell_the_probabilities_that_theory_does_not(
    pulsators: tuple[LightCurves, np.ndarray], rng: np.random.Generator
) -> None:
    time, mag, error = next(iter(pulsators[0]))
    few = slice(0, 6)
    parts = [(time, mag, error), (time, rng.permutation(mag), error), (time[few], mag[few], error[few])]
    rules = PeriodRules(
        grid=GridRules(maximum=3, samples_per_peak=3),
        algorithms=ALL,
        statistics=StatisticRules(harmonics=3, aov_harmonics=2),
        trials=20,
    )
    first, again = (find_periods(_curves(parts), rules).table.to_pylist() for _ in range(2))
    assert first == again
    star, noise, short = first
    for name in ALL:
        assert star[f"log10_fap_{name}"] < -3
        assert noise[f"log10_fap_{name}"] > -2.5
        assert short[f"period_{name}"] > 0


def test_rules_are_checked() -> None:
    with pytest.raises(ValidationError):
        PeriodRules(algorithms=("GLS",))
    with pytest.raises(ValidationError):
        PeriodRules(colour="red")
    assert PeriodRules(algorithms=("LS", "CE")).nested_suffix is None
    assert PeriodRules(nested=None).nested_suffix is None


def test_relations() -> None:
    tolerance = 1e-4
    assert relation(1.7, 1.7, tolerance) == "f"
    assert relation(1.7, 0.85, tolerance) == "f/2"
    assert relation(1.7, 3.4, tolerance) == "2f"
    assert relation(1.7, 2.7, tolerance) == "f+1/d"
    assert relation(1.7, 1.7 - SIDEREAL, tolerance) == "f-1/sidereal d"
    assert relation(0.3, 0.7, tolerance) == "-f+1/d"
    assert relation(1.7, 1.7 + 1 / 365.25, tolerance) == "f+1/yr"
    assert relation(1.7, 2.31817, tolerance) == ""


def test_families_hold_the_truth_behind_an_alias() -> None:
    found = family(np.array([1.7]), 0.01, 24.0, 1e-3)
    for true in (1.7, 0.85, 3.4, 0.7, 2.7, 3.7, 0.3, 0.15 + 1):
        assert np.abs(found - true).min() < 1e-3 or true == 1.15
    assert found.min() >= 0.01
    assert family(np.array([1.7, 1.7 + 1e-5]), 0.01, 24.0, 1e-3).size < 1.3 * found.size


def test_the_half_wins_only_if_the_cycles_differ(rng: np.random.Generator) -> None:
    time = np.sort(rng.uniform(0, 50, 300))
    grid = Grid(0.1, 0.002, 2000)
    for depth, frequency in ((0.0, 1.0), (0.2, 0.5)):
        wave = np.cos(2 * np.pi * time) + depth * np.cos(np.pi * time)
        points = Points.of(time, wave + rng.normal(0, 0.1, 300), np.full(300, 0.1))
        ranked = rank([points], np.array([1.0]), grid, RankRules())
        assert ranked.frequency[0] == pytest.approx(frequency, abs=1e-3)
        assert ranked.relation[0] == "f"
