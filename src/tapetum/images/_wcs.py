"""World coordinates of an image: made from its header without noise, judged, and written back."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from tapetum.images._fits_parts import READ_ERRORS
from tapetum.images._fits_pixels import listening
from tapetum.images.celestial import is_celestial, native_of_pixels, system_problem

LIKELY_SCALE = (1e-5, 3600.0)  # of a pixel [arcsec]
MOST_AXES = 4
MOST_ORDERS = 9  # of SIP polynomials: one digit, by their convention
AXIS_KEYS = {"NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "NAXIS4"}
# all that may describe a WCS: it is replaced as a whole, never mixed
WCS_KEYS = re.compile(
    r"WCSAXES|WCSNAME|C(?:TYPE|RPIX|RVAL|DELT|UNIT|ROTA|RDER|SYER)\d|(?:PC|CD|PV|PS)\d_\d+|LONPOLE|LATPOLE"
    r"|RADESYS|RADECSYS|EQUINOX|[AB]P?_(?:\d_\d|ORDER|DMAX)|WAT\d_\d{3}|WCSDIM|LT[MV]\d(?:_\d)?|CROTA\d|TR\d_\d"
)


def read_wcs(header: Any, notes: list[str]) -> Any:
    """The celestial WCS of a header (two axes), or None; `notes` says why one that is there cannot be used."""
    from astropy.wcs import WCS

    if not any(str(header.get(f"CTYPE{axis}", "")).strip() for axis in (1, 2, 3)):
        return None
    problems: list[str] = []
    try:
        _check_orders(header)
        with listening(problems):
            wcs = WCS(_wcs_cards(header))
            if not wcs.has_celestial:
                return None
            wcs = wcs if wcs.naxis == 2 else wcs.celestial
            known = is_celestial(wcs)
            usable = known and math.isfinite(_central_scale(wcs, header))
    except READ_ERRORS as problem:
        notes.append(f"its WCS cannot be used: {' '.join(str(problem).split())[:200]}")
        return None
    if not known:
        notes.append(f"its WCS cannot be used: {wcs.wcs.lngtyp} is neither equatorial nor galactic")
        return None
    if not usable:
        notes.append("its WCS cannot be used: it does not map the middle of the image to the sky")
        return None
    doubt = system_problem(wcs)
    notes += [doubt] if doubt else []
    return wcs


def _check_orders(header: Any) -> None:
    """Raise ValueError where astropy would make arrays of whatever size the header asks for."""
    caps = {
        "WCSAXES": MOST_AXES,
        **dict.fromkeys(("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"), MOST_ORDERS),
    }
    for key, cap in caps.items():
        value = header.get(key, 0)
        if not isinstance(value, int) or not 0 <= value <= cap:
            raise ValueError(f"its {key} is {value}")


def _wcs_cards(header: Any) -> Any:
    """What a header says of coordinates, alone: astropy is faster without the rest, and cannot stumble over it.

    A header that has SIP terms says so in CTYPE as well; some writers forget it.
    """
    from astropy.io import fits

    cards = fits.Header([c for c in header.cards if WCS_KEYS.fullmatch(c.keyword) or c.keyword in AXIS_KEYS])
    if "A_ORDER" in cards:
        for axis in (1, 2):
            name = str(cards.get(f"CTYPE{axis}", "")).rstrip()
            if name.endswith("-TAN"):
                cards[f"CTYPE{axis}"] = f"{name}-SIP"
    return cards


def _central_scale(wcs: Any, header: Any) -> float:
    shape = tuple(int(header.get(f"NAXIS{axis}", 1)) for axis in (2, 1))
    scale = pixel_scale(wcs, (shape[0], shape[1]))
    return scale if LIKELY_SCALE[0] < scale < LIKELY_SCALE[1] else math.nan


def pixel_scale(wcs: Any, shape: tuple[int, int]) -> float:
    """Root of the area of the central pixel [arcsec]; distortion counts.

    The pixel's sides as vectors on the tangent plane, from central differences of half a pixel to each side.
    """
    y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    steps_x, steps_y = np.array([0.5, -0.5, 0.0, 0.0]), np.array([0.0, 0.0, 0.5, -0.5])
    lon, lat = (np.radians(axis) for axis in native_of_pixels(wcs, x + steps_x, y + steps_y))
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    along_x, along_y = points[:, 0] - points[:, 1], points[:, 2] - points[:, 3]
    return float(np.degrees(np.sqrt(np.linalg.norm(np.cross(along_x, along_y)))) * 3600)


def wcs_kind(wcs: Any, header: Any) -> str | None:
    """Name of the projection: ``TAN``, ``TAN-SIP``, ``TPV``, ...; wcslib itself calls a TPV TAN once it is in use."""
    if wcs is None:
        return None
    name = str(header.get("CTYPE1", ""))[5:8].strip("- ")
    return f"{name}-SIP" if wcs.sip is not None else name


def put_wcs(header: Any, wcs: Any) -> None:
    """Replace all that a header says of coordinates by `wcs`."""
    remove_wcs(header)
    problems: list[str] = []
    with listening(problems):
        cards = wcs.to_header(relax=True)
    for card in cards.cards:
        if WCS_KEYS.fullmatch(card.keyword):
            header[card.keyword] = (card.value, card.comment)
    if wcs.sip is not None and not str(header["CTYPE1"]).endswith("-SIP"):
        for axis in (1, 2):
            header[f"CTYPE{axis}"] = f"{header[f'CTYPE{axis}']}-SIP"


def remove_wcs(header: Any) -> None:
    """Take out all that a header says of coordinates."""
    for keyword in {card.keyword for card in header.cards if WCS_KEYS.fullmatch(card.keyword)}:
        header.remove(keyword, remove_all=True)
