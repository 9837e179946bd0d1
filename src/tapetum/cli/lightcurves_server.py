"""Options of the verbs that ask a Kowalski server, and how one is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import settings_of
from tapetum.cli.lightcurves_common import comma_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.core.settings import KowalskiSettings, Settings
    from tapetum.pipelines.lightcurve_around import AroundOptions
    from tapetum.surveys.kowalski import Kowalski

SOURCES, FEATURES = "ZTF_sources_20230109", "ZTF_source_features_DR16"
NONE = "none"  # in place of a catalogue that is not asked

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="Kowalski server. Default: the settings'.")
]
UserOption = Annotated[
    str | None,
    typer.Option("--user", help="Who asks; the password is in the environment: TAPETUM_KOWALSKI__PASSWORD."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Questions asked at the same time.")
]
AskOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL|settings",
        help="Ask this Kowalski server, or that of the settings, for catalogues around the light curves.",
    ),
]
GaiaOption = Annotated[
    str,
    typer.Option("--gaia-catalogue", "--gaia-catalog", metavar="NAME|none", help="Gaia on the server."),
]
Ps1Option = Annotated[
    str, typer.Option("--ps1-catalogue", "--ps1-catalog", metavar="NAME|none", help="PS1 on the server.")
]
AllwiseOption = Annotated[
    str,
    typer.Option(
        "--allwise-catalogue", "--allwise-catalog", metavar="NAME|none", help="AllWISE on the server."
    ),
]
AlertsOption = Annotated[
    str,
    typer.Option("--alerts-catalogue", "--alerts-catalog", metavar="NAME|none", help="Alerts on the server."),
]
MoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--server-catalogue", metavar="NAME:COLUMN,...", help="Any other on the server; may be repeated."
    ),
]
QueryOption = Annotated[
    int, typer.Option("--query-size-limit", min=1, help="Positions in one question to the server.")
]
StarRadiusOption = Annotated[
    float,
    typer.Option(
        "--bright-star-query-radius-arcsec", min=0, help="Farthest bright star that counts [arcsec]."
    ),
]


def server_settings(
    context: typer.Context, server: str | None, user: str | None, threads: int | None, **more: Any
) -> Settings:
    """The settings of this call, with a server.

    Raises
    ------
    UsageError
        None is named.
    """
    from tapetum.core.errors import UsageError

    settings = settings_of(
        context, kowalski__url=server, kowalski__user=user, kowalski__threads=threads, **more
    )
    if settings.kowalski.url is None:
        raise UsageError("no Kowalski server: give --server URL, or set kowalski.url in tapetum.toml")
    return settings


@contextmanager
def open_server(about: KowalskiSettings) -> Iterator[Kowalski]:
    """The server of the settings; passwords come from these alone."""
    from tapetum.surveys.kowalski import Login, open_kowalski

    password, token = (
        None if secret is None else secret.get_secret_value() for secret in (about.password, about.token)
    )
    with open_kowalski(about.url or "", Login(about.user, password, token), seconds=about.seconds) as server:
        yield server


def around_of(
    names: dict[str, str],
    more: Sequence[str],
    *,
    there: Sequence[str],
    stars: bool,
    radius_arcsec: float,
    star_radius_arcsec: float,
    batch: int,
) -> AroundOptions:
    """What is asked of a server around light curves.

    Parameters
    ----------
    names
        Catalogues by what they are: gaia, ps1, allwise, alerts; ``none`` is not asked.
    more
        Others, as ``NAME:COLUMN,...``.
    there
        Which of gaia, ps1, allwise, alerts are local tables already.
    stars
        Whether bright stars are looked for.
    radius_arcsec, star_radius_arcsec, batch
        As for `AroundOptions`.

    Raises
    ------
    UsageError
        A catalogue without columns, or named twice.
    """
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.lightcurve_around import AroundOptions
    from tapetum.pipelines.lightcurve_catalogues import ALLWISE, DESCRIBED, GAIA, PS1

    asked = {key: name for key, name in names.items() if key not in there and name != NONE}
    known = {"gaia": DESCRIBED[GAIA], "ps1": DESCRIBED[PS1], "allwise": DESCRIBED[ALLWISE]}
    matches = [(asked[key], columns) for key, columns in known.items() if key in asked]
    for text in more:
        name, _, columns = text.partition(":")
        if not (name and comma_list(columns)):
            raise UsageError(f"--server-catalogue {text}: write NAME:COLUMN,COLUMN")
        matches.append((name, comma_list(columns)))
    named = [name for name, _ in matches]
    if len(set(named)) < len(named):
        raise UsageError(f"a catalogue of the server is named twice: {', '.join(named)}")
    return AroundOptions(
        tuple(matches), asked.get("gaia") if stars else None, asked.get("alerts"), radius_arcsec,
        star_radius_arcsec, batch,
    )  # fmt: skip
