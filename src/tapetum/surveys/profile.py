"""The profile of a survey: where its packets keep what, and by which conventions."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tapetum.core.errors import InputError
from tapetum.core.places import config_dir

JD_MINUS_MJD = 2_400_000.5


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeFields(_Part):
    """How the survey tells time, so that it can become ``mjd``: UTC, mid-exposure."""

    field: str = Field(description="dotted path of the time")
    format: Literal["jd", "mjd"]
    scale: Literal["utc", "tai"] = "utc"
    reference: Literal["start", "mid"] = Field(description="which moment of the exposure the time names")
    exposure: str | None = Field(None, description="dotted path of the exposure time [s]")
    exposure_default: float = Field(0.0, ge=0, description="exposure time where the packet does not say [s]")


class BandFields(_Part):
    """The filter: either one constant, or a field and the names of its values."""

    field: str | None = None
    names: dict[str, str] = Field(
        default_factory=dict, description="value in the packet -> sncosmo band name"
    )
    constant: str | None = None
    ab_offset: dict[str, float] = Field(default_factory=dict, description="band -> AB minus Vega magnitude")


class BrightnessFields(_Part):
    """Difference photometry, as magnitude or as flux [nJy]; whichever is missing is computed."""

    mag: str | None = None
    mag_err: str | None = None
    mag_limit: str | None = None
    flux: str | None = Field(None, description="signed difference flux [nJy]")
    flux_err: str | None = None
    positive: str | None = Field(None, description="field that says science minus reference is positive")
    negative: str | None = Field(None, description="field that says science minus reference is negative")


class StampFields(_Part):
    """The three cutouts."""

    science: str
    template: str
    difference: str
    size: int = Field(ge=1, description="side of a full stamp [pixel]")
    pixel_scale_arcsec: float | None = Field(None, gt=0, description="absent where no source gives it")


class HistoryFields(_Part):
    """One array of earlier photometry; the paths are relative to its items."""

    array: str
    forced: bool = False
    time: str
    band: str | None = Field(None, description="absent: the band of the alert itself")
    ra: str | None = None
    dec: str | None = None
    mag: str | None = None
    mag_err: str | None = None
    mag_limit: str | None = None
    flux: str | None = None
    flux_err: str | None = None
    zero_point: str | None = Field(None, description="magnitude zero point of `flux`; absent: flux is nJy")
    positive: str | None = None
    negative: str | None = None
    mag_ref: str | None = Field(None, description="magnitude of the nearest source in the reference image")
    mag_ref_err: str | None = None
    field: str | None = None
    quadrant: str | None = None
    image: str | None = Field(
        None, description="file name of the image, for rows that lack field and quadrant"
    )
    status: str | None = Field(None, description="only rows whose status is `status_good` count")
    status_good: float = 0.0


class ReferenceFields(_Part):
    """The source in the reference image, to which difference fluxes of a star must be added."""

    mag: str
    mag_err: str
    field: str
    quadrant: str
    image: str | None = None
    image_pattern: str | None = Field(None, description="regular expression with groups field, ccd, quadrant")
    star_distance: str = Field(
        description="field of the candidate: distance to the nearest catalogued source [arcsec]"
    )
    star_score: str = Field(description="field of the candidate: its star/galaxy score, 1 = star")


class AsteroidFields(_Part):
    """The nearest known asteroid: fields of the candidate."""

    distance: str = Field(description="from the detection [arcsec]; negative or absent where there is none")
    mag: str = Field(description="predicted brightness [mag]")


class AlertFields(_Part):
    """Where an alert packet keeps what; every path is dotted, from the top of the packet."""

    recognise: list[str] = Field(
        min_length=1, description="paths that together tell this survey's packets from all others"
    )
    alert_id: str
    object_id: list[str] = Field(min_length=1, description="the first of these that is neither null nor 0")
    ra: str
    dec: str
    candidate: str = Field(description="the record of the detection itself, kept as JSON")
    time: TimeFields
    band: BandFields
    brightness: BrightnessFields
    stamps: StampFields
    history: list[HistoryFields] = Field(default_factory=list)
    reference: ReferenceFields | None = None
    reliability: str | None = Field(None, description="the packet's own real-bogus score, 1 = real")
    early_reliability: str | None = Field(
        None, description="an older score, for packets that do not carry `reliability`"
    )
    asteroid: AsteroidFields | None = None
    synonyms: dict[str, str] = Field(
        default_factory=dict, description="our feature name -> the survey's field of `candidate`"
    )


class SurveyProfile(_Part):
    """Everything Tapetum knows about a survey."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    magnitude_system: Literal["AB", "Vega"] = Field(
        "AB", description="of the magnitudes; fluxes are always AB"
    )
    alert: AlertFields


def user_profiles() -> dict[str, Path]:
    """Profiles of the user by name: ``$XDG_CONFIG_HOME/tapetum/surveys/*.toml``."""
    return {path.stem: path for path in sorted((config_dir() / "surveys").glob("*.toml"))}


def profile_names() -> list[str]:
    """Names of all known profiles, the package's and the user's, sorted."""
    shipped = (files(__package__) / "profiles").iterdir()
    names = {entry.name.removesuffix(".toml") for entry in shipped if entry.name.endswith(".toml")}
    return sorted(names | set(user_profiles()))


def load_profile(name: str) -> SurveyProfile:
    """Load a profile by its name (the user's before the package's), or from a path that ends in ``.toml``.

    Raises
    ------
    InputError
        No such profile, or the file is not a valid one; the message names the key.
    """
    path = Path(name) if name.endswith(".toml") else user_profiles().get(name)
    if path is not None:
        if not path.is_file():
            raise InputError(f"{name}: no such survey profile")
        profile = _parse(str(path), _text(path))
        if not name.endswith(".toml") and profile.name != name:
            raise InputError(f"{path}: its name is {profile.name!r}; a profile's file is called <name>.toml")
        return profile
    if name not in profile_names():
        raise InputError(
            f"{name!r} is not a survey; known: {', '.join(profile_names())}, or the path of a profile.toml"
        )
    return _parse(name, (files(__package__) / "profiles" / f"{name}.toml").read_text())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read as a survey profile: {problem}") from None


@cache
def _parse(name: str, text: str) -> SurveyProfile:
    try:
        return SurveyProfile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as problem:
        raise InputError(f"{name}: not valid TOML: {problem}") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def all_profiles() -> list[SurveyProfile]:
    """Every known profile, in the order of `profile_names`."""
    return [load_profile(name) for name in profile_names()]
