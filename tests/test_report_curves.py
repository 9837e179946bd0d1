"""Light curves and histograms as SVG: every point where it belongs, in a picture that any XML reader accepts."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapetum.report.curves import (
    BAND_COLOURS,
    MOST_FOLDED,
    band_colour,
    folded_svg,
    histogram_svg,
    light_curve_svg,
)
from tapetum.report.svg import nice_ticks, text

SVG = "{http://www.w3.org/2000/svg}"
NAN = math.nan


def parts(svg: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(SVG + tag))


def curve(**changes: object) -> str:
    values = {
        "mjd": np.array([60000.0, 60001.0, 60002.0, 60003.0]),
        "band": ["ztfg", "ztfr", "ztfg", "ztfi"],
        "mag": np.array([19.0, 18.0, NAN, NAN]),
        "mag_err": np.array([0.1, NAN, NAN, NAN]),
        "mag_limit": np.array([20.5, 20.4, 20.3, NAN]),
    }
    return light_curve_svg(**{**values, **changes})  # type: ignore[arg-type]


def test_detections_are_dots_limits_are_triangles_and_the_rest_is_left_out() -> None:
    dots, triangles = parts(curve(), "circle"), parts(curve(), "polygon")
    assert len(dots) == 2
    assert len(triangles) == 1
    first, second = dots
    assert float(first.attrib["cx"]) < float(second.attrib["cx"])
    assert float(first.attrib["cy"]) > float(second.attrib["cy"])  # brighter is up
    assert BAND_COLOURS["g"] in first.attrib["style"]
    assert BAND_COLOURS["r"] in second.attrib["style"]
    assert "1 upper limits" in ET.fromstring(curve()).attrib["aria-label"]


def test_fainter_than_the_reference_is_a_ring() -> None:
    dots = parts(curve(positive=np.array([False, True, True, True])), "circle")
    assert ["fill:none" in dot.attrib["style"] for dot in dots] == [True, False]


def test_mark_shows_only_within_the_curve() -> None:
    inside, outside = (len(parts(curve(mark_mjd=mjd), "line")) for mjd in (60001.5, 50000.0))
    assert inside == outside + 1


def test_clouded_limits_do_not_stretch_the_axis() -> None:
    n = 30
    limits = np.full(n, 20.5)
    limits[3] = 12.0
    svg = light_curve_svg(np.arange(n) + 60000.0, ["ztfr"] * n, np.full(n, NAN), np.full(n, NAN), limits)
    assert len(parts(svg, "polygon")) == n - 1
    assert "12" not in [label.text for label in parts(svg, "text")]


def test_everything_lies_within_the_picture(rng: np.random.Generator) -> None:
    n = 200
    mag = np.where(rng.random(n) < 0.5, rng.normal(19, 2, n), NAN)
    svg = light_curve_svg(
        rng.uniform(58000, 61000, n), ["lsstz"] * n, mag, rng.uniform(0, 3, n), rng.normal(20, 1, n)
    )
    for element in parts(svg, "circle"):
        assert 0 <= float(element.attrib["cx"]) <= 380
        assert 0 <= float(element.attrib["cy"]) <= 210
    for element in parts(svg, "line"):
        assert all(-0.1 <= float(element.attrib[key]) <= 380.1 for key in ("x1", "x2", "y1", "y2"))


def test_no_photometry_says_so() -> None:
    nothing = np.full(2, NAN)
    svg = light_curve_svg(nothing, ["ztfg"] * 2, nothing, nothing, nothing)
    assert [label.text for label in parts(svg, "text")] == ["no photometry"]
    empty = np.zeros(0)
    assert "no photometry" in light_curve_svg(empty, [], empty, empty, empty)


def test_unknown_bands_have_a_colour_too() -> None:
    assert band_colour("ztfr") == band_colour("lsstr") != band_colour("ztfg")
    assert band_colour("") == band_colour("unknown-1")
    assert band_colour("") not in (band_colour("machob"), band_colour("bessellb"))


def test_histogram_bars_grow_with_their_counts_and_empty_bins_have_none() -> None:
    edges = np.linspace(0, 1, 5)
    counts = np.array([0, 1, 10, 100])
    svg = histogram_svg(edges, [("ours", counts, "teal")], x_label="probability")
    heights = [float(bar.attrib["height"]) for bar in parts(svg, "rect")]
    assert len(heights) == 3
    assert 0 < heights[0] < heights[1] < heights[2]
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=0.2)  # logarithmic
    two = histogram_svg(edges, [("a", counts, "teal"), ("b", counts, "red")], x_label="p")
    assert len(parts(two, "rect")) == 6 + 2  # and a swatch of each
    assert parts(histogram_svg(edges, [("none", np.zeros(4, int), "red")], x_label="p"), "rect") == []


def test_words_are_escaped() -> None:
    assert "&lt;b&gt;" in text(0, 0, "<b>")
    assert ET.fromstring(curve(band=['"><script>', "ztfr", "ztfg", "ztfi"])) is not None


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), at_most=st.integers(2, 12))
def test_ticks_are_round_few_and_inside(low: float, span: float, at_most: int) -> None:
    high = low + span
    ticks = nice_ticks(low, high, at_most)
    assert 1 <= len(ticks) <= at_most + 2
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    steps = np.diff(ticks)
    if steps.size:
        step = steps.mean()
        assert np.allclose(steps, step, rtol=1e-6)
        mantissa = step / 10 ** math.floor(math.log10(step * 1.0000001))
        assert min(abs(mantissa - wanted) for wanted in (1, 2, 5)) < 1e-3


# --- folded light curves ---


def folded(n: int, rng: np.random.Generator, period: float = 0.7) -> str:
    time = rng.uniform(0, 100, n)
    mag = 15 + 0.5 * np.cos(2 * np.pi * time / period) + np.where(np.arange(n) % 2, 1.0, 0.0)
    return folded_svg(time, period, ["ztfr" if k % 2 else "ztfg" for k in range(n)], mag, np.full(n, 0.01))


def test_a_folded_curve_shows_two_cycles_with_the_brightest_phase_at_whole_numbers(
    rng: np.random.Generator,
) -> None:
    dots = parts(folded(100, rng), "circle")
    assert len(dots) == 200
    places = np.array([[float(dot.attrib["cx"]), float(dot.attrib["cy"])] for dot in dots])
    left, right = 52.0, 370.0
    phase = 2 * (places[:, 0] - left) / (right - left)
    assert ((phase >= 0) & (phase <= 2)).all()
    red = np.array([BAND_COLOURS["r"] in dot.attrib["style"] for dot in dots])
    for band in (red, ~red):
        height = places[band, 1]
        bright = height < np.percentile(height, 15)  # up
        away = np.abs(phase[band][bright] - np.round(phase[band][bright]))
        assert (away < 0.15).all()
    first, second = np.sort(phase[phase < 1]), np.sort(phase[phase >= 1])
    np.testing.assert_allclose(second - 1, first, atol=1e-3)


def test_of_many_points_some_are_shown_and_the_title_says_so(rng: np.random.Generator) -> None:
    picture = folded(3000, rng)
    assert len(parts(picture, "circle")) <= 2 * MOST_FOLDED
    assert f"{MOST_FOLDED} of 3000 points, folded with 0.7 d" in picture


def test_what_cannot_be_folded_says_so(rng: np.random.Generator) -> None:
    nothing = np.full(3, NAN)
    assert "no photometry" in folded_svg(nothing, 1.0, ["ztfg"] * 3, nothing, nothing)
    values = np.arange(3.0)
    assert "no photometry" in folded_svg(values, NAN, ["ztfg"] * 3, values, values)


def test_an_outlier_does_not_flatten_a_folded_curve(rng: np.random.Generator) -> None:
    time = rng.uniform(0, 100, 1000)
    mag = 15 + 0.5 * np.cos(2 * np.pi * time)
    mag[0] = 30.0
    dots = parts(folded_svg(time, 1.0, ["ztfg"] * 1000, mag, np.full(1000, 0.01)), "circle")
    heights = [float(dot.attrib["cy"]) for dot in dots]
    assert max(heights) - min(heights) > 100
