"""Reference pages made from the code at each build, so that they cannot go stale: commands, features, every room."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

ROOMS = (
    "core", "report", "sky", "surveys", "images", "alerts", "lightcurves", "simulate", "models", "finders",
    "pipelines", "training", "store",
)  # fmt: skip

WIDTH = 68  # of the help [columns]: what the page's boxes show without scrolling


def commands() -> Iterator[tuple[str, str]]:
    """(command line, its help) of every noun and verb, in the order of the help."""
    from tapetum.cli.app import app

    def visit(command: Any, context: Any, path: str) -> Iterator[tuple[str, str]]:
        yield path, command.get_help(context)
        for name, inner in getattr(command, "commands", {}).items():
            yield from visit(inner, type(context)(inner, info_name=name, parent=context), f"{path} {name}")

    root = typer.main.get_command(app)
    yield from visit(
        root, root.make_context("tapetum", [], resilient_parsing=True, terminal_width=WIDTH), "tapetum"
    )


def cli_page() -> str:
    """The page of the command line, in Markdown."""
    parts = ["# Command line", "", "Made from the program's own help.", ""]
    for path, text in commands():
        level = "##" if path.count(" ") <= 1 else "###"
        parts += [f"{level} `{path}`", "", "```text", inspect.cleandoc(text), "```", ""]
    return "\n".join(parts)


SETS_OF_FEATURES = {
    "scope": (
        "As the described pipeline computes them. What it has in the slots of amplitudes and phases are raw Fourier "
        "coefficients. Points of one time keep their order, so that a table does not depend on the machine."
    ),
    "tapetum": "Ours: they mean the same in every survey. The last column says what leaves a feature as it is.",
    "cesium": "The configured list of the described pipeline.",
}
FEATURES_HEAD = """# Features of light curves

`tapetum lightcurves features --set scope --set tapetum --set cesium` computes them. In formulas m, e, t are magnitudes,
their errors and times of the N good points, w = 1/e^2, and P5 is the 5th percentile, linear between points. `PERIOD`
stands for the name of a period: `f1_power_LS`. A curve that is too short, or constant, for a feature has none (null).

A feature may be unchanged by
"""


def features_page() -> str:
    """The page of the features of light curves, in Markdown."""
    from tapetum.lightcurves.features import CHANGES, SETS, reference_table

    parts = [FEATURES_HEAD, *(f"- **{name}**: {what};" for name, what in CHANGES.items()), ""]
    for name in SETS:
        parts += [f"## Set `{name}`", "", SETS_OF_FEATURES[name], "", reference_table(name)]
    return "\n".join(parts)


def room_page(room: str) -> str:
    """The page of one room, in Markdown: its public modules."""
    package = importlib.import_module(f"tapetum.{room}")
    modules = [m.name for m in pkgutil.walk_packages(package.__path__, f"tapetum.{room}.")]
    parts = [f"# {room}", "", inspect.getdoc(package) or "", ""]
    for name in sorted(m for m in modules if not any(part.startswith("_") for part in m.split("."))):
        parts += [f"## `{name}`", "", "```{eval-rst}", f".. automodule:: {name}", "```", ""]
    return "\n".join(parts)


def write_pages(app: Sphinx) -> None:
    """Write the pages before Sphinx reads its sources."""
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "cli": cli_page(),
        "light-curve-features": features_page(),
        **{f"api-{room}": room_page(room) for room in ROOMS},
    }
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
