"""What an evaluation says, by origin, edge and brightness: as metrics of a card and as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tapetum.models.card import Metric, Reliability, ReliabilityBin
from tapetum.training.evaluate import (
    Figure,
    by_group,
    expected_calibration_error,
    magnitude_bands,
    measure,
    reliability,
    sure,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.training.datasets import Examples

CONFIDENCE = 0.95
GROUP_FIGURES = ("auc", "brier", "ece")


def domain_of(examples: Examples) -> list[str]:
    """``simulated`` or ``packets`` for each example."""
    return ["simulated" if origin == "simulated" else "packets" for origin in examples.origin]


def edge_of(examples: Examples) -> list[str]:
    """``cut`` by a detector edge, ``missing pixels`` inside, or ``whole``, for each example."""
    names = []
    for stamps, shapes in zip(examples.stamps, examples.shapes, strict=True):
        side = int(shapes.max())
        cut = bool((shapes < side).any())
        inside = stamps[:, : int(shapes[:, 0].min()), : int(shapes[:, 1].min())]
        names.append("cut" if cut else "missing pixels" if not np.isfinite(inside).all() else "whole")
    return names


def groups_of(examples: Examples) -> dict[str, list[str]]:
    """The ways real alerts are divided: what each way is called, and the group of each example."""
    groups = {
        "survey": examples.origin,
        "edge": edge_of(examples),
        "magnitude": magnitude_bands(examples.mag),
    }
    return {way: names for way, names in groups.items() if len(set(names)) > 1}


def snr_bands(examples: Examples) -> list[str]:
    """Name of the signal-to-noise band of each simulated alert."""
    names = ["S/N < 5", "S/N 5 to 8", "S/N 8 to 15", "S/N 15 to 50", "S/N > 50"]
    return [names[i] for i in np.digitize(np.nan_to_num(examples.snr), [5, 8, 15, 50])]


def metrics_of(examples: Examples, probability: NDArray[np.float64]) -> dict[str, Metric]:
    """Metrics of a card: all figures for packets and for simulated alerts, a few within groups of them.

    Of the simulated alerts the groups say what share is accepted at one half: of the real ones by
    signal-to-noise (completeness), of the bogus ones by scenario.
    """
    target = examples.target
    simulated = np.array(domain_of(examples)) == "simulated"
    out: dict[str, Metric] = {}
    for domain, rows in (("packets", ~simulated), ("simulated", simulated)):
        if rows.any():
            figures = measure(probability[rows], target[rows], examples.take(rows).object_id)
            data = f"test part, {domain}"
            out |= {f"{domain}_{name}": as_metric(figure, data) for name, figure in figures.items()}
    packets = examples.take(~simulated)
    for way, groups in groups_of(packets).items():
        out |= _within(packets, probability[~simulated], groups, f"packets_{way}", GROUP_FIGURES)
    certain = simulated & sure(target)
    for name, rows in (("completeness", certain & (target > 0.5)), ("accepted", certain & (target <= 0.5))):
        part = examples.take(rows)
        groups = snr_bands(part) if name == "completeness" else part.kind
        out |= _within(part, probability[rows], groups, f"simulated_{name}", ("accepted",))
    return {name: metric for name, metric in out.items() if math.isfinite(metric.value)}


def _within(
    part: Examples, probability: NDArray[np.float64], groups: list[str], title: str, names: Sequence[str]
) -> dict[str, Metric]:
    found = by_group(probability, part.target, part.object_id, groups, names=names)
    out = {}
    for group, figures in found.items():
        key = f"{title}_{group}".replace(" ", "_")
        for name, figure in figures.items():
            full = key if name == "accepted" else f"{key}_{name}"
            out[full] = as_metric(figure, f"test part, {group}")
    return out


def as_metric(figure: Figure, data: str) -> Metric:
    """A figure as the card keeps it."""
    interval = math.isfinite(figure.low) and math.isfinite(figure.high)
    return Metric(
        value=figure.value,
        low=figure.low if interval else None,
        high=figure.high if interval else None,
        confidence=CONFIDENCE if interval else None,
        n=figure.n,
        data=data,
    )


def reliability_of(examples: Examples, probability: NDArray[np.float64]) -> Reliability:
    """The reliability diagram of the card."""
    bins = reliability(probability, examples.target)
    bars = tuple(
        ReliabilityBin(low=b.low, high=b.high, n=b.n, mean_probability=b.mean, fraction_positive=b.fraction)
        for b in bins
    )
    counts = {name: domain_of(examples).count(name) for name in sorted(set(domain_of(examples)))}
    data = "test part: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    return Reliability(data=data, n=len(examples), ece=expected_calibration_error(bins), bins=bars)


def comparison(results: Mapping[str, Mapping[str, Figure]], names: Sequence[str]) -> str:
    """Markdown table: one row per model, one column per figure with its interval."""
    lines = ["| model | n | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for model, figures in results.items():
        cells = [_cell(figures[name]) for name in names]
        lines.append(f"| {model} | {next(iter(figures.values())).n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(figure: Figure) -> str:
    if not math.isfinite(figure.value):
        return "-"
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if math.isfinite(figure.low) else ""
    return f"{figure.value:.3f}{interval}"
