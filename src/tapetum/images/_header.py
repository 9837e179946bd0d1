"""What a header says of an image, told in the words of `FrameInfo`, each value with where it comes from."""

from __future__ import annotations

import datetime
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images.frame import FrameInfo
from tapetum.surveys.conventions import SECONDS_PER_DAY, to_utc
from tapetum.surveys.profile import JD_MINUS_MJD, TimeFields
from tapetum.surveys.telescopes import band_of, file_name_groups, image_fields, keys_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapetum.surveys.profile import ImageTimeKey, SurveyProfile

MJD_OF_ORDINAL = -678_576  # MJD of the day before 1 January of the year 1
MJD_RANGE = (10_000.0, 100_000.0)  # 1886 to 2132
TT_MINUS_TAI = 32.184
MOST_LIKELY_GAIN = 20.0  # electrons per DN; beyond, it is often the setting of an amplifier
ISO_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d(?:\.\d*)?))?)?Z?")
OLD_DATE = re.compile(
    r"(\d\d)/(\d\d)/(\d{2,3})"
)  # day, month, years since 1900; the third digit came with 2000
TIME_OF_DAY = re.compile(r"(\d\d?):(\d\d)(?::(\d\d(?:\.\d*)?))?")
MOMENTS = {
    "start": r"\b(start|begin|began|beginning|open)",
    "mid": r"\b(mid|middle|average|mean)",
    "end": r"\b(end|stop|close)",
}
# zero points of images in physical units [AB mag of one unit]; MJy/sr needs the area of the pixel as well
UNIT_ZERO_POINT = {
    "nanomaggy": 22.5,
    "nanomaggies": 22.5,
    "jy": 8.90,
    "mjy": 16.40,
    "ujy": 23.90,
    "njy": 31.40,
}
ELECTRONS = {"e", "e-", "electron", "electrons"}
COUNTS = {"", "adu", "dn", "count", "counts", "data value", "data units"}


class _Account:
    """Collects values and, for each, where it came from."""

    def __init__(self, header: Any, profile: SurveyProfile) -> None:
        self.header, self.profile = header, profile
        self.keys, self.defaults = keys_of(profile), image_fields(profile).defaults
        self.origin: dict[str, str] = {}
        self.notes: list[str] = []

    def number(
        self,
        name: str,
        keys: Sequence[str] | None,
        usable: Callable[[float], bool],
        default: float | None = None,
    ) -> float | None:
        """The first usable number under these keys, else the profile's; `origin` says which."""
        useless = []
        for key in keys or ():
            raw = self.header.get(key)
            value = number_of(raw)
            if value is not None and usable(value):
                self.origin[name] = f"header {key}"
                return value
            if value is not None or (isinstance(raw, str) and raw.strip()):
                useless.append(f"{key} = {raw if value is None else format(value, 'g')}")
        if default is not None:
            self.origin[name] = f"profile {self.profile.name}"
            return default
        why = f"header {', '.join(useless)} is not usable" if useless else "no header key tells it"
        self.origin[name] = f"unknown: {why}"
        return None

    def text(self, keys: Sequence[str] | None) -> tuple[str, str]:
        """The first key that carries text, and the text."""
        for key in keys or ():
            value = self.header.get(key)
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
                return key, str(value).strip()
        return "", ""

    def guess(self, name: str, value: float, what: str) -> float:
        """A value that nothing gives, said to be guessed and why."""
        before = self.origin.get(name, "").removeprefix("unknown: ")
        self.origin[name] = f"guessed: {what}" + (f" ({before})" if before else "")
        return value


def describe(
    header: Any, profile: SurveyProfile, filename: str, pixel_scale: float | None, largest: float | None
) -> FrameInfo:
    """All that header, file name and profile say of an image.

    Parameters
    ----------
    header
        An `astropy.io.fits.Header` whose cards all parse.
    profile
        Of the telescope.
    filename
        Without its folder.
    pixel_scale
        By the WCS [arcsec]; None without one.
    largest
        The largest value that the file's type can hold [DN]; None for floating point.
    """
    account = _Account(header, profile)
    keys, defaults = account.keys, account.defaults
    exposure = account.number("exposure_s", keys.exposure, lambda value: 0 < value < 1e7, defaults.exposure)
    scale = _pixel_scale(account, pixel_scale)
    gain = _gain(account, exposure)
    read_noise = account.number(
        "read_noise", keys.read_noise, lambda value: 0 < value < 1e4, defaults.read_noise
    )
    mjd, band = _mjd(account, exposure), _band(account)
    zero_point, fwhm = _zero_point(account, exposure), _fwhm(account, scale)
    depth = account.number("mag_limit", keys.mag_limit, lambda value: 0 < value < 40)
    saturation = _saturation(account, largest)
    quality = _quality(account)
    return FrameInfo(
        telescope=profile.name,
        band=band,
        mjd=mjd,
        exposure_s=exposure,
        gain=gain,
        read_noise=account.guess("read_noise", 0.0, "none") if read_noise is None else read_noise,
        saturation=saturation,
        pixel_scale_arcsec=scale,
        zero_point=zero_point,
        fwhm_pix=fwhm,
        mag_limit=depth,
        identity=_identity(account, filename),
        quality=quality,
        origin=account.origin,
        warnings=tuple(account.notes),
    )


def number_of(value: Any) -> float | None:
    """A header value as a finite number, also if it is written as text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _pixel_scale(account: _Account, by_wcs: float | None) -> float | None:
    if by_wcs is not None:
        account.origin["pixel_scale_arcsec"] = "WCS"
        return by_wcs
    default = account.defaults.pixel_scale_arcsec
    return account.number(
        "pixel_scale_arcsec", account.keys.pixel_scale_arcsec, lambda value: 1e-4 < value < 3600, default
    )


def _unit(account: _Account) -> str:
    return account.text(account.keys.unit)[1].lower()


def _gain(account: _Account, exposure: float | None) -> float:
    gain = account.number("gain", account.keys.gain, lambda value: value > 0, account.defaults.gain)
    unit, _, per = (text.strip() for text in _unit(account).partition("/"))
    if unit in ELECTRONS:
        if per in ("s", "sec", "second") and exposure:
            return account.guess("gain", exposure, "the exposure time, since pixels are electrons per second")
        if not per:
            return account.guess("gain", 1.0, "1, since pixels are electrons")
    if gain is None:
        return account.guess("gain", 1.0, "1")
    if gain > MOST_LIKELY_GAIN:
        account.notes.append(
            f"a gain of {gain:g} electrons per DN is unusual for one exposure: a setting of the camera, or a stack?"
        )
    return gain


def _saturation(account: _Account, largest: float | None) -> float:
    default = account.defaults.saturation
    level = account.number("saturation", account.keys.saturation, lambda value: value > 0, default)
    if level is not None:
        return level
    if largest is not None:
        return account.guess("saturation", largest, f"{largest:g}, the largest value that the file can hold")
    return account.guess("saturation", math.inf, "none")


def _zero_point(account: _Account, exposure: float | None) -> float | None:
    def likely(value: float) -> bool:
        return 5 < value < 45

    keys, defaults = account.keys, account.defaults
    value = account.number("zero_point", keys.zero_point, likely, defaults.zero_point)
    if value is not None:
        return value
    if keys.zero_point_per_second and exposure:
        value = account.number("zero_point", keys.zero_point_per_second, likely)
        if value is not None:
            account.origin["zero_point"] += ", for the exposure time"
            return value + 2.5 * math.log10(exposure)
    return _zero_point_of_unit(account)


def _zero_point_of_unit(account: _Account) -> float | None:
    key, text = account.text(account.keys.unit)
    unit = text.lower()
    if unit not in COUNTS and unit.partition("/")[0] not in ELECTRONS | {"adu", "dn", "count", "counts"}:
        account.notes.append(
            f"pixels are {text}, not counts: gain and saturation of the header may not be meant for them"
        )
    area = number_of(account.header.get("PIXAR_SR"))
    if text == "MJy/sr" and area is not None and area > 0:
        account.origin["zero_point"] = f"header {key} {text} and PIXAR_SR"
        return UNIT_ZERO_POINT["jy"] - 2.5 * math.log10(1e6 * area)
    if text != "MJy" and unit in UNIT_ZERO_POINT:
        account.origin["zero_point"] = f"header {key} {text}"
        return UNIT_ZERO_POINT[unit]
    return None


def _fwhm(account: _Account, scale: float | None) -> float | None:
    account.origin["fwhm_pix"] = "unknown: no header key tells it"
    for rule in account.keys.seeing or ():
        value = number_of(account.header.get(rule.key))
        if value is None or not 0 < value < 200:
            continue
        unit, said = rule.unit, True
        if unit.startswith("comment"):
            comment = str(account.header.comments[rule.key]).lower()
            by_comment = "pixel" if "pix" in comment else "arcsec" if re.search(r'arcsec|"', comment) else ""
            said = bool(by_comment)
            unit_name = by_comment or rule.unit.rpartition("_")[2]
        else:
            unit_name = unit
        if unit_name == "comment" or (unit_name == "arcsec" and scale is None):
            continue
        source = f"header {rule.key} [{unit_name}]"
        account.origin["fwhm_pix"] = source if said else f"guessed: {source}, the unit is not said"
        return value if unit_name == "pixel" or scale is None else value / scale
    return None


def _band(account: _Account) -> str | None:
    key, text = account.text(account.keys.band)
    if not text:
        account.origin["band"] = "unknown: no header key tells it"
        return None
    band = band_of(account.profile, text)
    account.origin["band"] = (
        f"header {key} = {text!r}"
        if band
        else f"unknown: header {key} = {text!r} is no filter that the profile names"
    )
    return band


def _mjd(account: _Account, exposure: float | None) -> float | None:
    """Middle of the exposure [day, UTC]."""
    account.origin["mjd"] = "unknown: no header key tells it"
    rules = account.keys.time or ()
    # a key that says which moment it means comes before those of which convention must tell
    for rule in sorted(rules, key=lambda rule: not _reference(account, rule)[1]):
        value = account.header.get(rule.key)
        found = _moment(account, rule, value)
        if found is None:
            if value is not None and account.origin["mjd"].endswith("tells it"):
                account.origin["mjd"] = f"unknown: header {rule.key} = {str(value)[:30]!r} has no time of day"
            continue
        mjd, key = found
        reference, said = _reference(account, rule)
        shift = {"start": 0.5, "mid": 0.0, "end": -0.5}[reference]
        said_as = reference if said else f"{reference}, as is usual"
        account.origin["mjd"] = f"header {key} ({said_as})"
        if shift and exposure is None:
            account.origin["mjd"] = f"guessed: header {key} ({said_as}); the exposure time is not known"
        return _utc(account, mjd) + shift * (exposure or 0.0) / SECONDS_PER_DAY
    return None


def _reference(account: _Account, rule: ImageTimeKey) -> tuple[str, bool]:
    if rule.reference != "comment":
        return rule.reference, True
    if rule.key not in account.header:
        return "start", False
    comment = str(account.header.comments[rule.key]).lower()
    for moment, pattern in MOMENTS.items():
        if re.search(pattern, comment):
            return moment, True
    return "start", False


def _moment(account: _Account, rule: ImageTimeKey, value: Any) -> tuple[float, str] | None:
    """The time under a key as MJD, and the keys it was made from; None without a time of day."""
    if rule.format == "iso":
        day, time = date_of(value)
    else:
        number = number_of(value)
        mjd = math.nan if number is None else number - (JD_MINUS_MJD if rule.format == "jd" else 0.0)
        day = math.floor(mjd) if math.isfinite(mjd) else None
        time = None if day is None or mjd == day else mjd - day
    if day is None or not MJD_RANGE[0] < day < MJD_RANGE[1]:
        return None
    if time is not None:
        return day + time, rule.key
    key, text = account.text(account.keys.time_of_day)
    clock = TIME_OF_DAY.fullmatch(text)
    if clock is None:
        return None
    fraction = _fraction(*clock.groups())
    return None if fraction is None else (day + fraction, f"{rule.key} and {key}")


def date_of(value: Any) -> tuple[int | None, float | None]:
    """Day [MJD] and fraction of the day of a date as FITS headers write it; None for what it does not say."""
    text = str(value).strip() if isinstance(value, str) else ""
    iso, old = ISO_DATE.fullmatch(text), OLD_DATE.fullmatch(text)
    try:
        if old:
            day, month, year = (int(part) for part in old.groups())
            return datetime.date(1900 + year, month, day).toordinal() + MJD_OF_ORDINAL, None
        if iso is None:
            return None, None
        number = datetime.date(*(int(part) for part in iso.groups()[:3])).toordinal() + MJD_OF_ORDINAL
    except ValueError:
        return None, None
    if iso[4] is None:
        return number, None
    return number, _fraction(*iso.groups()[3:])


def _fraction(hours: str, minutes: str, seconds: str | None) -> float | None:
    """Time of day as part of the day; None for what no clock shows."""
    h, m, s = int(hours), int(minutes), float(seconds or 0)
    return (h + m / 60 + s / 3600) / 24 if h < 24 and m < 60 and s < 61 else None


def _utc(account: _Account, mjd: float) -> float:
    key, scale = account.text(account.keys.time_scale)
    scale = scale.upper()
    if scale in ("TT", "TDT", "TDB", "ET"):
        mjd -= TT_MINUS_TAI / SECONDS_PER_DAY
    elif scale != "TAI":
        if scale not in ("", "UTC", "UT", "UT1", "GMT", "Z"):
            account.notes.append(f"header {key} = {scale!r} is no time scale that is known; taken as UTC")
        return mjd
    fields = TimeFields(field=key, format="mjd", scale="tai", reference="start")
    return float(to_utc(np.array([mjd]), fields)[0])


def _quality(account: _Account) -> tuple[str, ...]:
    """What the survey's own pipeline says against the image; what a user must know becomes a note."""
    rules = image_fields(account.profile).quality
    if rules is None:
        return ()
    value = number_of(account.header.get(rules.key))
    bits = int(value) if value is not None and 0 <= value < 2**63 else 0
    said = {bit: rules.bits.get(bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1}
    grave = [text for bit, text in said.items() if bit in rules.warn]
    if grave:
        account.notes.append(f"{rules.key}: {'; '.join(dict.fromkeys(grave))}")
    if rules.status and number_of(account.header.get(rules.status)) == 0:
        account.notes.append(f"{rules.status} = 0: the survey's own pipeline calls this image bad")
    return tuple(dict.fromkeys(said.values()))


def _identity(account: _Account, filename: str) -> dict[str, str | int]:
    groups = file_name_groups(account.profile, filename)
    found: dict[str, str | int] = {
        name: int(text) if text.isdigit() and name != "date" else text
        for name, text in groups.items()
        if name != "name" and not name.startswith("_")
    }
    for name, key in image_fields(account.profile).identity.items():
        value = account.header.get(key)
        if name not in found and isinstance(value, (int, str)) and not isinstance(value, bool):
            found[name] = value
    return found
