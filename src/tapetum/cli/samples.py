"""`tapetum samples`: real sample data from the package index."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tapetum.cli.common import JsonOption, progress_bar

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Real sample data, pinned and cached.")


@app.command("list")
def list_samples(as_json: JsonOption = False) -> None:
    """List the samples: what each is, its licence and size, and whether it is here already.

    Example: tapetum samples list
    """
    import json

    from tapetum.core.samples import SAMPLES

    rows: list[dict[str, Any]] = [
        {
            "name": sample.name,
            "title": sample.title,
            "licence": sample.licence,
            "package": sample.archive.filename,
            "download_bytes": sample.archive.n_bytes,
            "bytes": sample.n_bytes,
            "cached": sample.is_cached(),
            "folder": str(sample.folder),
        }
        for sample in SAMPLES.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        size = f"{row['bytes'] / 1e6:.0f} MB (download {row['download_bytes'] / 1e6:.0f} MB)"
        state = "cached" if row["cached"] else "not here yet"
        typer.echo(f"{row['name']:<13} {row['licence']:<13} {size:<26} {state:<13} {row['title']}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the sample; `tapetum samples list` shows them.")],
) -> None:
    """Fetch a sample once and print the paths of its files.

    Example: tapetum samples fetch ztf-alerts
    """
    from tapetum.core.samples import fetch_sample

    with progress_bar(f"fetching {name}") as progress:
        paths = fetch_sample(name, progress)
    for path in paths:
        typer.echo(path)
