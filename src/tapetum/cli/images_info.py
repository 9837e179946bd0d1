"""`tapetum images info` and `telescopes`: what is understood of images, and of whose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import (
    NO_IMAGES,
    ImagesArgument,
    JsonOption,
    MaskOption,
    TelescopeOption,
    report_rejections,
    say,
    telescope_of,
    warn,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tapetum.surveys.profile import SurveyProfile


def info(
    images: ImagesArgument,
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the seeing from the stars as well.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is understood of images, each value with where it comes from; warn of essential ones that are guessed.

    Example: tapetum images info night/*.fits.fz --telescope ztf
    """
    import json

    from tapetum.core.errors import InputError, UsageError
    from tapetum.images.fits import expand_sources, list_images
    from tapetum.images.summary import summary_lines

    profile = telescope_of(telescope)
    complaints: list[str] = []
    sources = expand_sources(images, rejected=lambda problem: complaints.append(f"rejected: {problem}"))
    if mask is not None and len(sources) != 1:
        raise UsageError(f"--mask belongs to one image, not to {len(sources)}")
    summaries: list[dict[str, Any]] = []
    for source in sources:
        try:
            names = list_images(source)
        except InputError as problem:
            complaints.append(f"rejected: {problem}")
            continue
        for name in names:
            try:
                summary = _look(name, profile, mask, measure=measure)
            except InputError as problem:
                complaints.append(f"rejected: {problem}")
                continue
            summaries.append(summary)
            if not as_json:
                typer.echo("\n".join(summary_lines(summary)))
            _warn_of(name, summary)
    if as_json:
        typer.echo(json.dumps(summaries, indent=2, allow_nan=False))
    elif any(summary["has_gaps"] for summary in summaries):
        say("what is guessed or not known can be told by a profile: --telescope profile.toml")
    report_rejections(complaints, len(complaints), len(summaries), things="images", nothing=NO_IMAGES)


def _warn_of(name: str, summary: dict[str, Any]) -> None:
    """One line of warnings per image; with ``-v`` each in full."""
    import logging

    texts = [str(text).removeprefix(f"{name}: ") for text in summary["warnings"]]
    if len(texts) == 1 or logging.getLogger("tapetum").isEnabledFor(logging.INFO):
        for text in texts:
            warn(f"{name}: {text}")
    elif texts:
        short = "; ".join(text.partition("; ")[0].partition(" (")[0] for text in texts)
        warn(f"{name}: {short}; -v tells more")


def _look(source: str, profile: SurveyProfile | None, mask: Path | None, *, measure: bool) -> dict[str, Any]:
    """The summary of one image."""
    from tapetum.core.errors import TapetumError
    from tapetum.images.fits import read_frame
    from tapetum.images.summary import summarise

    frame = read_frame(source, profile, mask=mask)
    if not measure:
        return summarise(frame)
    from tapetum.images.background import estimate_background
    from tapetum.images.psf import measure_psf

    try:
        background = estimate_background(frame.data, frame.mask)
        psf = measure_psf(frame.data, background, frame.mask, frame.info)
    except TapetumError as problem:  # an image without stars is still worth showing
        summary = summarise(frame)
        summary["warnings"].append(f"the seeing cannot be measured: {problem}")
        return summary
    return summarise(frame, psf)


def telescopes(as_json: JsonOption = False) -> None:
    """List the telescopes whose images are known; any other is read by common header keys, or by a profile of yours.

    Example: tapetum images telescopes
    """
    import json

    from tapetum.surveys.telescopes import describe_telescopes

    rows = describe_telescopes()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['name']:<13} {row['title']:<66} {row['known']}".rstrip())
