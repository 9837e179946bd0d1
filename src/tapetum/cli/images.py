"""`tapetum images`: from raw frames to ranked candidates, and the single steps; each verb lies in a file of its own."""

from __future__ import annotations

import typer

from tapetum.cli import (
    images_align,
    images_detect,
    images_info,
    images_mask,
    images_search,
    images_simulate,
    images_subtract,
    images_tracking,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Images: search, simulate, and the single steps of a search.",
)
app.command("info")(images_info.info)
app.command("telescopes")(images_info.telescopes)
app.command("simulate")(images_simulate.simulate)
app.command("align")(images_align.align)
app.command("subtract")(images_subtract.subtract)
app.command("detect")(images_detect.detect)
app.command("mask")(images_mask.mask)
app.command("tracking")(images_tracking.tracking)
app.command("search")(images_search.search)
app.command("cutouts")(images_search.cutouts)
app.command("completeness")(images_search.completeness)
