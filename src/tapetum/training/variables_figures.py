"""What a classifier for one class does on a part of the split, as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.training.figures import drawing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.evaluate import Figure
    from tapetum.training.variables_metrics import Ranking

BLUE, GREY = "#22577a", "0.7"
SQUARE = (4.2, 4.2)
MOST_FEATURES = 40  # in the picture of what each is worth
POINTS = 2000  # of a curve, as many as can be seen
WHAT = "pictures of a classifier"


def draw_confusion(path: Path, ranking: Ranking, code: str, title: str) -> None:
    """Rows of each truth and answer at the threshold, with their share of the truth."""
    counts = np.array(ranking.counts())
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [f"not {code}", code]
    with drawing(path, SQUARE, WHAT) as axes:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row in range(2):
            for column in range(2):
                axes.text(
                    column,
                    row,
                    f"{int(counts[row, column])}\n{shares[row, column]:.3f}",
                    ha="center",
                    va="center",
                    color="white" if shares[row, column] > 0.5 else "black",
                )
        axes.set(xticks=[0, 1], yticks=[0, 1], xlabel=f"given above {ranking.threshold:.3f}", ylabel="truth")
        axes.set_xticklabels(names)
        axes.set_yticklabels(names)
        axes.set_title(title, fontsize=9)


def draw_recall(path: Path, ranking: Ranking, figures: Mapping[str, Figure], title: str) -> None:
    """Precision against recall for every threshold, and where the model's is."""
    right, wrong = (part[1:] for part in ranking.curve())
    shown = _some(len(right))
    with drawing(path, SQUARE, WHAT) as axes:
        axes.step((right / right[-1])[shown], (right / (right + wrong))[shown], where="post", color=BLUE)
        axes.plot(figures["recall"].value, figures["precision"].value, "o", color=BLUE, ms=5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title(f"{title}\naverage precision {_said(figures['average_precision'])}", fontsize=9)


def draw_roc(path: Path, ranking: Ranking, figures: Mapping[str, Figure], title: str) -> None:
    """Share of the class that is given against share of the others that is, for every threshold."""
    right, wrong = ranking.curve()
    (quiet, false), _ = ranking.counts()
    shown = _some(len(right))
    with drawing(path, SQUARE, WHAT) as axes:
        axes.plot([0, 1], [0, 1], color=GREY, lw=1)
        axes.plot((wrong / wrong[-1])[shown], (right / right[-1])[shown], color=BLUE)
        axes.plot(false / max(quiet + false, 1), figures["recall"].value, "o", color=BLUE, ms=5)
        axes.set(
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false positive rate", ylabel="true positive rate"
        )
        axes.set_title(f"{title}\narea {_said(figures['roc_auc'])}", fontsize=9)


def draw_importance(path: Path, importance: Mapping[str, float], what: str, title: str) -> None:
    """What each feature is worth, the most important first."""
    names = list(importance)[:MOST_FEATURES]
    places = np.arange(len(names))
    with drawing(path, (5.2, 1.2 + 0.18 * max(len(names), 1)), WHAT) as axes:
        axes.barh(places, [importance[name] for name in names], color=BLUE)
        axes.set(yticks=places, xlabel=what)
        axes.set_yticklabels(names, fontsize=7)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)


def _some(n: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, n - 1, POINTS).astype(np.intp))


def _said(figure: Figure) -> str:
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if np.isfinite(figure.low) else ""
    return f"{figure.value:.3f}{interval}"
