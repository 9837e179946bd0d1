"""Sources drawn at random: kinds, magnitudes, galaxies, seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from tapetum.core.errors import InputError, UsageError
from tapetum.simulate.sources import KINDS, Conditions, Hosts, draw_sources, find_hosts, parse_kinds
from tapetum.simulate.stamping import MoffatField, TabulatedPsf

SHAPE = (200, 300)
EVERYTHING = Conditions(SHAPE, 26.0, (16.0, 20.0), 2.2, 5.0, 4.0, 30_000.0)


def galaxy(light: np.ndarray, x: float, y: float) -> None:
    dy, dx = np.mgrid[: light.shape[0], : light.shape[1]].astype(float)
    u, v = (dx - x) * 0.8 + (dy - y) * 0.6, (dy - y) * 0.8 - (dx - x) * 0.6
    light += (2000 * np.exp(-np.hypot(u, 2 * v) / 4)).astype(np.float32)


def test_magnitudes_are_even_in_their_range_and_become_flux(rng: np.random.Generator) -> None:
    drawn = draw_sources({"transient": 4000}, replace(EVERYTHING, apart_fwhm=0.0), rng)
    mag = 26.0 - 2.5 * np.log10([source.flux for source in drawn])
    assert mag.min() >= 16
    assert mag.max() <= 20
    assert np.histogram(mag, 4)[0].min() > 900
    phase = np.mod([source.x for source in drawn], 1)
    assert np.histogram(phase, 10, (0, 1))[0].min() > 300  # every sub-pixel phase occurs


def test_the_same_seed_draws_the_same_whatever_else_is_wanted() -> None:
    alone = draw_sources({"comet": 5}, EVERYTHING, np.random.default_rng(3))
    among = draw_sources({"transient": 7, "comet": 5, "ghost": 2}, EVERYTHING, np.random.default_rng(3))
    other = draw_sources({"comet": 5}, EVERYTHING, np.random.default_rng(4))
    assert repr(alone) == repr([source for source in among if source.kind == "comet"])
    assert repr(alone) != repr(other)


def test_nothing_is_put_where_there_is_no_data(rng: np.random.Generator) -> None:
    usable = np.zeros(SHAPE, np.bool_)
    usable[:100, :100] = True
    conditions = Conditions(SHAPE, 26.0, usable=usable)
    drawn = draw_sources({"transient": 200}, conditions, rng)
    assert max(max(source.x, source.y) for source in drawn) < 99.5
    with pytest.raises(InputError, match="without data"):
        draw_sources({"transient": 1}, Conditions(SHAPE, 26.0, usable=np.zeros(SHAPE, np.bool_)), rng)


def test_satellites_cross_the_whole_frame(rng: np.random.Generator) -> None:
    drawn = draw_sources({"satellite": 100}, EVERYTHING, rng)
    n_y, n_x = SHAPE
    through = 0
    for source in drawn:
        x1, y1, x2, y2 = source.ends()
        outside = [not (0 <= x < n_x and 0 <= y < n_y) for x, y in ((x1, y1), (x2, y2))]
        through += all(outside)
    assert 80 <= through < 100


def test_a_bright_star_needs_a_saturation_level(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="--saturation"):
        draw_sources({"bright_star": 1}, Conditions(SHAPE, 26.0), rng)


@pytest.mark.parametrize(
    ("kinds", "counts"),
    [
        (["transient"], {"transient": 10}),
        (["transient", "streak", "comet"], {"transient": 4, "streak": 3, "comet": 3}),
        (["transient", "satellite:2"], {"transient": 10, "satellite": 2}),
        (["streak:5", "streak"], {"streak": 5}),
    ],
)
def test_kinds_share_the_number(kinds: list[str], counts: dict[str, int]) -> None:
    assert parse_kinds(kinds, 10) == counts


def test_every_kind_can_be_asked_for() -> None:
    assert set(parse_kinds(["all"], 90)) == set(KINDS)
    assert set(parse_kinds(["all"], 90).values()) == {10}


@pytest.mark.parametrize("kind", ["supernova", "streak:many", "streak:-1", "all:3"])
def test_kinds_that_are_none(kind: str) -> None:
    with pytest.raises(UsageError, match=kind.partition(":")[0]):
        parse_kinds([kind], 10)
    with pytest.raises(UsageError, match="no such kind"):
        draw_sources({"supernova": 1}, EVERYTHING, np.random.default_rng(0))


def test_transients_on_galaxies_follow_the_light(rng: np.random.Generator) -> None:
    light = np.zeros(SHAPE, np.float32)
    galaxy(light, 150.3, 90.6)
    light[90, 150:] = np.nan  # a dead row of pixels gets none
    same = (np.full(3000, value) for value in (150.3, 90.6, 1e5, 5.0, 2.5, np.arctan2(0.6, 0.8)))
    conditions = Conditions(SHAPE, 26.0, hosts=Hosts(*same, light), on_galaxies=1.0, apart_fwhm=0.0)
    drawn = draw_sources({"transient": 3000}, conditions, rng)
    x, y = np.array([source.x for source in drawn]), np.array([source.y for source in drawn])
    assert all(source.host_flux == 1e5 for source in drawn)
    u, v = (x - 150.3) * 0.8 + (y - 90.6) * 0.6, (y - 90.6) * 0.8 - (x - 150.3) * 0.6
    assert np.hypot(u / 5, v / 2.5).max() < 2.5 + 0.5
    seen = np.where(np.isfinite(light), light, 0)
    dy, dx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    du, dv = (dx - 150.3) * 0.8 + (dy - 90.6) * 0.6, (dy - 90.6) * 0.8 - (dx - 150.3) * 0.6
    weight = np.where((du / 5) ** 2 + (dv / 2.5) ** 2 <= 2.5**2, seen, 0)
    assert np.mean(np.abs(u)) == pytest.approx((np.abs(du) * weight).sum() / weight.sum(), rel=0.05)
    assert not ((np.floor(y + 0.5) == 90) & (np.floor(x + 0.5) >= 150)).any()


def test_no_galaxy_has_two_transients(rng: np.random.Generator) -> None:
    light = np.zeros(SHAPE, np.float32)
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(20.0, 290, 40), np.arange(20.0, 190, 40)))
    for place in zip(x, y, strict=True):
        galaxy(light, *place)
    n = len(x)
    hosts = Hosts(x, y, np.full(n, 1e5), np.full(n, 5.0), np.full(n, 2.5), np.full(n, 0.93), light)
    conditions = Conditions(SHAPE, 26.0, hosts=hosts, on_galaxies=1.0)
    drawn = draw_sources({"transient": n + 20}, conditions, rng)
    on_one = [(source.host_x, source.host_y) for source in drawn if np.isfinite(source.host_x)]
    assert len(set(on_one)) == len(on_one)
    assert n - 3 <= len(on_one) <= n  # a host whose place was too near to another source is left out


def test_sources_that_are_to_be_found_keep_away_from_one_another() -> None:
    conditions = Conditions((600, 600), 26.0, fwhm_pix=2.0)
    counts = {"transient": 150, "streak": 10, "comet": 5, "cosmic_ray": 30}
    drawn = draw_sources(counts, conditions, np.random.default_rng(8))
    lines = [
        np.linspace(
            *np.reshape(source.ends() if source.kind == "streak" else (source.x, source.y) * 2, (2, 2)), 300
        )
        for source in drawn
        if source.kind != "cosmic_ray"
    ]
    owner = np.repeat(np.arange(len(lines)), 300)
    near = cKDTree(np.concatenate(lines)).query_pairs(9.999, output_type="ndarray")
    assert (owner[near[:, 0]] == owner[near[:, 1]]).all()
    alone = draw_sources({"transient": 150}, conditions, np.random.default_rng(8))
    assert repr(alone) == repr(drawn[:150])
    crowded = draw_sources({"transient": 200}, Conditions((40, 40), 26.0), np.random.default_rng(8))
    assert len(crowded) == 200  # where there is no room they come as near as they must


def test_galaxies_are_told_from_stars(rng: np.random.Generator) -> None:
    psf = TabulatedPsf.of_field(MoffatField(2.2), SHAPE, wings=False)
    light = rng.normal(0, 3, SHAPE).astype(np.float32)
    x, y = np.meshgrid(np.arange(20, 280, 30.0), np.arange(20, 90, 30.0))
    psf.add(light, x.ravel() + 0.3, y.ravel() - 0.2, np.full(x.size, 5000.0))
    centres = [(60.0, 150.0), (150.4, 160.2), (250.0, 140.8)]
    for place in centres:
        galaxy(light, *place)
    hosts = find_hosts(light, np.full(SHAPE, 3.0, np.float32), np.zeros(SHAPE, np.uint8), 2.4, 60_000.0)
    assert len(hosts) == 3
    for a, b in centres:
        assert np.hypot(hosts.x - a, hosts.y - b).min() < 0.5
