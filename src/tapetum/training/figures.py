"""The reliability diagram as a picture, and how any picture of this room is written."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import MissingExtraError, UsageError
from tapetum.core.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tapetum.models.card import ReliabilityBin

SUFFIXES = (".svg", ".png")


def draw_reliability(path: Path, bins: Sequence[ReliabilityBin], title: str, ece: float) -> None:
    """Draw share of real alerts against mean probability, with binomial errors, as ``.svg`` or ``.png``.

    The picture of the same bins is the same to the last byte: no date, fixed names of its parts.

    Raises
    ------
    UsageError
        The file is to be of another kind.
    MissingExtraError
        matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a reliability diagram ends in {' or '.join(SUFFIXES)}")
    shown = [entry for entry in bins if entry.n]
    x = np.array([entry.mean_probability for entry in shown], float)
    y = np.array([entry.fraction_positive for entry in shown], float)
    n = np.array([entry.n for entry in shown], float)
    # Laplace's rule keeps the error of a share of exactly 0 or 1 above zero
    share = (y * n + 1) / (n + 2)
    error = np.sqrt(share * (1 - share) / n)
    with drawing(path, (4.5, 4.5), "a reliability diagram") as axes:
        axes.plot([0, 1], [0, 1], color="0.7", lw=1)
        axes.errorbar(x, y, yerr=error, fmt="o", ms=4, lw=1, capsize=2, color="#22577a")
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            xlabel="mean probability in bin",
            ylabel="share that is real",
        )
        axes.set_aspect("equal")
        axes.set_title(f"{title}\n{int(n.sum())} alerts, debiased ECE {ece:.3f}", fontsize=9)


@contextmanager
def drawing(path: Path, size: tuple[float, float], what: str) -> Iterator[Any]:
    """Axes to draw on, written as ``.svg`` or ``.png`` when the block ends.

    The picture of the same data is the same to the last byte: no date, fixed names of its parts.

    Parameters
    ----------
    path
        File to write.
    size
        Width and height [inch].
    what
        For the message when matplotlib is missing.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("train", what) from None
    with mpl.rc_context({"svg.hashsalt": "tapetum"}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.add_subplot()
        with whole_file(path) as part, part.open("wb") as handle:
            if path.suffix == ".svg":
                svg: Any = FigureCanvasSVG(figure)
                svg.print_svg(handle, metadata={"Date": None})
            else:
                png: Any = FigureCanvasAgg(figure)
                png.print_png(handle)
