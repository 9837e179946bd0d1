"""What a server knows around light curves, fetched before their features are made: catalogues, alerts, bright stars.

Questions wait for the server and need a password, so this process asks them, in threads, and workers find the answers
in files. A run that was stopped asks for what is missing, and for nothing else.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, NetworkError
from tapetum.core.progress import Progress, no_progress
from tapetum.core.settings import without_password
from tapetum.lightcurves.around import BRIGHT_RADIUS_ARCSEC, MATCH_RADIUS_ARCSEC
from tapetum.pipelines.lightcurve_catalogues import ALLWISE, DESCRIBED, GAIA, PS1, CatalogueFile
from tapetum.pipelines.lightcurve_features import FeatureOptions, feature_maker, position_of
from tapetum.pipelines.lightcurve_fetch import THREADS, fetch
from tapetum.pipelines.lightcurve_parts import parts_folder
from tapetum.pipelines.lightcurve_plans import BATCH, plan_alerts, plan_bright_stars, plan_matches
from tapetum.pipelines.outputs import STDOUT, finished_run
from tapetum.pipelines.steps import TROUBLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.lightcurves.formats.sources import Source
    from tapetum.pipelines.lightcurve_parts import Recipe
    from tapetum.pipelines.lightcurve_plans import Plan, Position
    from tapetum.surveys.kowalski import Kowalski

ALERTS = "ZTF_alerts"
STARS_FILE, ALERTS_FILE = "bright-stars", "alerts"
CELL_DEG = 0.25  # positions of a band of this width in declination follow each other


@dataclass(frozen=True)
class AroundOptions:
    """What is asked for around each light curve.

    Attributes
    ----------
    matches
        Catalogues whose nearest entry is taken, by name, and columns of each.
    stars
        Catalogue of Gaia's bright stars; None: none are looked for.
    alerts
        Collection of alerts that are counted; None: not.
    radius_arcsec
        Farthest entry and alert that count.
    star_radius_arcsec
        Farthest bright star that counts.
    batch
        Positions in one question.
    """

    matches: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
        (name, DESCRIBED[name]) for name in (GAIA, PS1, ALLWISE)
    )
    stars: str | None = GAIA
    alerts: str | None = ALERTS
    radius_arcsec: float = MATCH_RADIUS_ARCSEC
    star_radius_arcsec: float = BRIGHT_RADIUS_ARCSEC
    batch: int = BATCH

    def described(self, url: str) -> dict[str, Any]:
        """What decides the answers, as plain values: for `FeatureOptions.elsewhere`."""
        plain = {key: value for key, value in vars(self).items() if key != "batch"}
        return {**plain, "server": without_password(url)}

    def plans(self, positions: Sequence[Position]) -> dict[str, Plan]:
        """Name of a file -> what is asked for."""
        found = {
            f"matches-{catalogue}": plan_matches(
                catalogue, positions, columns, self.radius_arcsec, batch=self.batch
            )
            for catalogue, columns in self.matches
        }
        if self.stars is not None:
            found[STARS_FILE] = plan_bright_stars(
                self.stars, positions, self.star_radius_arcsec, batch=self.batch
            )
        if self.alerts is not None:
            found[ALERTS_FILE] = plan_alerts(self.alerts, positions, self.radius_arcsec, batch=self.batch)
        return found


def positions_of(sources: Iterable[Source]) -> list[Position]:
    """Positions of all light curves, each once, neighbours together; those that are not known are left out.

    What cannot be read is left out as well: whoever makes something of the light curves says why.
    """
    places: list[NDArray[np.float64]] = [np.empty((0, 2))]
    for source in sources:
        try:
            places += [np.unique(np.column_stack(position_of(curves)), axis=0) for curves in source.batches()]
        except TROUBLE:
            continue
    every = np.unique(np.concatenate(places), axis=0)
    every = every[np.isfinite(every).all(axis=1) & (np.abs(every[:, 1]) <= 90)]
    order = np.lexsort((every[:, 0], np.floor(every[:, 1] / CELL_DEG)))
    return [(float(ra), float(dec)) for ra, dec in every[order]]


@contextmanager
def with_server(
    recipe: Recipe,
    options: FeatureOptions,
    asked: AroundOptions,
    server: Kowalski,
    sources: Sequence[Source],
    output: str,
    *,
    overwrite: bool = False,
    threads: int = THREADS,
    progress: Progress = no_progress,
) -> Iterator[Recipe]:
    """The recipe of features, with what a server has around their light curves.

    Parameters
    ----------
    recipe, options
        Of the features, without the server.
    asked
        What is asked for.
    server
        Who has it.
    sources
        The light curves: their positions are read first.
    output
        Of the features; what was fetched lies in ``<output>.around`` until the table is complete.
    overwrite
        Ask for everything anew.
    threads
        Questions at the same time.
    progress
        Told of every batch.

    Raises
    ------
    InputError
        The server does not know us, or no light curve has a position.
    NetworkError
        Some questions were not answered; the same call asks those again.
    """
    if not overwrite and _is_finished(output, recipe):
        yield recipe
        return
    with _folder(output, recipe, overwrite=overwrite) as folder:
        positions = positions_of(sources)
        if not positions:
            raise InputError(
                f"no light curve has a position, so {server.url} cannot be asked what is around it"
            )
        plans = asked.plans(positions)
        files = {
            name: _fetched(plan, server, folder / f"{name}.parquet", threads, progress)
            for name, plan in plans.items()
        }
        yield replace(recipe, setup=partial(feature_maker, _with_files(options, asked, files)))


def _is_finished(output: str, recipe: Recipe) -> bool:
    before = finished_run(output, recipe.made_from)
    return before is not None and not before.n_rejected


@contextmanager
def _folder(output: str, recipe: Recipe, *, overwrite: bool) -> Iterator[Path]:
    """Where answers lie until the output is complete."""
    if output == STDOUT:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    every = Path(f"{output}.around").absolute()
    if overwrite:
        shutil.rmtree(every, ignore_errors=True)
    folder = every / recipe.made_from[:16]  # other questions have other answers
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if _is_finished(output, recipe):
        shutil.rmtree(every, ignore_errors=True)


def _fetched(plan: Plan, server: Kowalski, path: Path, threads: int, progress: Progress) -> str:
    """The file with all answers to a plan."""
    if path.exists() and not parts_folder(str(path)).exists():
        return str(path)
    report = fetch(plan, server, str(path), threads=threads, progress=progress)
    if report.problems:
        raise NetworkError(
            f"{plan.catalogue}: {len(report.problems)} of {len(plan.batches)} questions failed, first "
            f"{report.problems[0]}; the same command asks those again"
        )
    return str(path)


def _with_files(options: FeatureOptions, asked: AroundOptions, files: Mapping[str, str]) -> FeatureOptions:
    """Options whose catalogues are the files that were fetched."""
    matched = tuple(
        CatalogueFile(name, path, matched=True) for name, path in files.items() if name != STARS_FILE
    )
    return replace(
        options,
        catalogues=(*options.catalogues, *matched),
        gaia=files.get(STARS_FILE, options.gaia),
        star_radius_arcsec=asked.star_radius_arcsec,
    )
