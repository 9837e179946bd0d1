"""The profile of a survey: where its packets and images keep what, and by which conventions."""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

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


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as problem:
        raise ValueError(f"{pattern!r} is not a regular expression: {problem}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Reason = Literal["no_data", "defect", "saturated", "cosmic", "artefact"]


class SeeingKey(_Part):
    """A header key that tells the seeing."""

    key: str
    unit: Literal["pixel", "arcsec", "comment", "comment_or_pixel", "comment_or_arcsec"] = Field(
        description="comment: as the card's comment says; comment_or_...: else this, and said to be guessed"
    )


class ImageTimeKey(_Part):
    """A header key that tells the time of the exposure."""

    key: str
    format: Literal["jd", "mjd", "iso"] = Field(
        description="iso: a date, with the time of day in it or beside it"
    )
    reference: Literal["start", "mid", "end", "comment"] = Field(
        description="which moment of the exposure; comment: as the card's comment says, else its start"
    )


class ImageKeys(_Part):
    """Header keys by what they tell; the first that carries a usable value counts.

    A list that is left out is the one of the profile ``generic``; an empty list means that no key tells it.
    """

    gain: list[str] | None = Field(None, description="electrons per DN")
    read_noise: list[str] | None = Field(None, description="[electron]")
    saturation: list[str] | None = Field(None, description="[DN]")
    zero_point: list[str] | None = Field(None, description="magnitude of a source of 1 DN in this image")
    zero_point_per_second: list[str] | None = Field(
        None, description="magnitude of a source of 1 DN per second"
    )
    mag_limit: list[str] | None = Field(None, description="5 sigma [mag]")
    exposure: list[str] | None = Field(None, description="[s]")
    band: list[str] | None = Field(None, description="name of the filter")
    pixel_scale_arcsec: list[str] | None = Field(None, description="used where there is no WCS")
    unit: list[str] | None = Field(None, description="unit of the pixel values")
    time_scale: list[str] | None = Field(None, description="UTC, TAI, TT or TDB")
    time_of_day: list[str] | None = Field(None, description="hh:mm:ss, for dates without time")
    seeing: list[SeeingKey] | None = None
    time: list[ImageTimeKey] | None = None


class ImageDefaults(_Part):
    """Values of the camera that hold where the header says nothing; only what a source gives."""

    model_config = ConfigDict(strict=True)  # a number in quotes is text

    gain: float | None = Field(None, gt=0, description="electrons per DN")
    read_noise: float | None = Field(None, ge=0, description="[electron]")
    saturation: float | None = Field(None, gt=0, description="[DN]")
    pixel_scale_arcsec: float | None = Field(None, gt=0)
    exposure: float | None = Field(None, gt=0, description="[s]")
    zero_point: float | None = None


class MaskName(_Part):
    """How the name of a mask image follows from that of its image: `find` replaced by `put`."""

    find: Pattern
    put: str


class ImageMask(_Part):
    """The mask image that lies beside an image, and what its values mean."""

    files: list[MaskName] = Field(default_factory=list)
    bits: dict[Reason, list[Annotated[int, Field(ge=0, le=62)]]] = Field(
        default_factory=dict, description="bits that make a pixel bad; all others are harmless"
    )
    codes: dict[Reason, list[Annotated[int, Field(ge=1)]]] = Field(
        default_factory=dict, description="for masks of whole numbers: values that make a pixel bad"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.bits and self.codes:
            raise ValueError("a mask has either bits or codes")
        return self


class ImageQuality(_Part):
    """A header key whose bits say what the survey's own pipeline thought of the image."""

    key: str
    bits: dict[int, str] = Field(description="bit -> its meaning")
    warn: list[int] = Field(default_factory=list, description="bits that a user must know of")
    status: str | None = Field(None, description="key that is 0 for an image not to be used")


class ImageArchive(_Part):
    """Where the survey's archive keeps its images: paths relative to its address."""

    products: dict[str, str] = Field(
        description="product -> path, with groups of `file_name` and `name` in braces"
    )


class ImageFields(_Part):
    """How to understand the images of a telescope."""

    recognise: list[dict[str, Pattern]] = Field(
        default_factory=list,
        description="header key -> expression that is found in its value; all of one group must be",
    )
    file_name: Pattern | None = Field(
        None,
        description="expression with named groups, as field, ccd, quadrant, date, filter; a name with _ in front is "
        "for the archive's paths only",
    )
    identity: dict[str, str] = Field(
        default_factory=dict, description="group of `file_name` -> header key that says the same"
    )
    keys: ImageKeys = ImageKeys()
    defaults: ImageDefaults = ImageDefaults()
    bands: dict[Pattern, str] = Field(
        default_factory=dict,
        description="expression for the whole name of the filter -> sncosmo band name, or clear",
    )
    mask: ImageMask | None = None
    quality: ImageQuality | None = None
    archive: ImageArchive | None = None


class SurveyProfile(_Part):
    """Everything Tapetum knows about a survey or telescope."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    aliases: list[str] = Field(default_factory=list, description="other spellings of the name")
    magnitude_system: Literal["AB", "Vega"] = Field(
        "AB", description="of the magnitudes; fluxes are always AB"
    )
    alert: AlertFields | None = Field(None, description="absent: it sends no alerts that we read")
    image: ImageFields | None = Field(None, description="absent: its images are not known")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.alert is None and self.image is None:
            raise ValueError("a profile has a part [alert] or [image], or both")
        return self


class AlertProfile(SurveyProfile):
    """The profile of a survey that sends alerts."""

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
    shipped = files(__package__) / "profiles" / f"{name}.toml"
    if not re.fullmatch(r"\w+", name) or not shipped.is_file():
        raise InputError(
            f"{name!r} is not a survey; known: {', '.join(profile_names())}, or the path of a profile.toml"
        )
    return _parse(name, shipped.read_text(encoding="utf-8"))


def load_alert_profile(name: str) -> AlertProfile:
    """Load the profile of a survey that sends alerts, as `load_profile` does.

    Raises
    ------
    InputError
        No such profile, not a valid one, or one without alerts.
    """
    profile = load_profile(name)
    if not isinstance(profile, AlertProfile):
        raise InputError(f"{name}: this profile has no part [alert], so its alerts cannot be read")
    return profile


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read as a survey profile: {problem}") from None


@cache
def _parse(name: str, text: str) -> SurveyProfile:
    try:
        content = tomllib.loads(text)
        return (AlertProfile if "alert" in content else SurveyProfile).model_validate(content)
    except tomllib.TOMLDecodeError as problem:
        raise InputError(f"{name}: not valid TOML: {problem}") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        hint = _other_keys(first["loc"]) if first["type"] == "extra_forbidden" else ""
        raise InputError(f"{name}: {place + ': ' if place else ''}{hint or first['msg']}") from None


def _other_keys(place: tuple[int | str, ...]) -> str:
    """What is said of a key that is none: the one that was meant, and all that may stand there."""
    model: Any = AlertProfile
    for step in place[:-1]:
        if isinstance(step, str):
            model = _model_in(model.model_fields[step].annotation) if step in model.model_fields else None
        if model is None:
            return ""
    known, wrong = list(model.model_fields), str(place[-1])
    near = get_close_matches(wrong, known, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"there is no such key; {meant}Known here: {', '.join(known)}"


def _model_in(annotation: Any) -> type[_Part] | None:
    """The part of a profile inside ``list[X]``, ``X | None`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return cast("type[_Part]", annotation)
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def all_profiles() -> list[SurveyProfile]:
    """Every known profile, in the order of `profile_names`."""
    return [load_profile(name) for name in profile_names()]


def alert_profiles() -> list[AlertProfile]:
    """Every known profile of a survey that sends alerts."""
    return [profile for profile in all_profiles() if isinstance(profile, AlertProfile)]
