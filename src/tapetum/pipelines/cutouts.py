"""Cutouts of candidates as FITS files: to look at, and sorted into true and false to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.images.cutouts import centre_pixel, cut
from tapetum.pipelines.folders import recover_folders, whole_folder
from tapetum.pipelines.search_results import (
    CUTOUTS,
    DETECTIONS,
    PLANES,
    REAL_KINDS,
    Match,
    SearchResult,
    match_truth,
    read_ecsv,
    read_truth,
    truths_of,
)
from tapetum.simulate.truth import TRUTH_NAME as TRUTH
from tapetum.simulate.truth import write_truth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from astropy.table import Table
    from numpy.typing import NDArray

    from tapetum.core.progress import Progress

BLOCK = 2880  # bytes that every part of a FITS file is a multiple of
LONGEST_TEXT = 68  # that a line of a header holds
LIST, CROSSMATCH, TRAINING, ALL = (
    "candidates_list.dat",
    "crossmatch.dat",
    "candidates_training",
    "candidates",
)


def cut_planes(
    planes: Sequence[NDArray[np.float32] | None], x: NDArray[Any], y: NDArray[Any], size: int
) -> NDArray[np.float32]:
    """Stamps of several images of one grid: shape (n, n_planes, size, size), all NaN for a plane that is None."""
    out = np.full((len(x), len(planes), size, size), np.nan, np.float32)
    for number, plane in enumerate(planes):
        if plane is not None:
            out[:, number] = cut(plane, x, y, size)
    return out


def crosses_edge(x: NDArray[Any], y: NDArray[Any], size: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether a stamp reaches beyond the image of this shape (n_y, n_x)."""
    column, row = centre_pixel(x) - size // 2, centre_pixel(y) - size // 2
    inside = (column >= 0) & (row >= 0) & (column + size <= shape[1]) & (row + size <= shape[0])
    return np.asarray(~inside)


def write_cutout(
    path: Path,
    stamps: NDArray[np.float32],
    cards: Mapping[str, Any],
    wcs: Any = None,
    corner: tuple[int, int] = (0, 0),
) -> None:
    """Write one candidate: the difference as the primary image, as gmadet does, then science and template.

    Parameters
    ----------
    stamps : ndarray of float32, shape (3, size, size)
        Science, template, difference.
    cards
        Header keywords; values that are not finite are left out.
    wcs
        Header of the whole image's WCS (`astropy.io.fits.Header`), or None.
    corner
        (x, y) of the stamp's first pixel in the whole image.
    """
    known = {key: value for key, value in cards.items() if not isinstance(value, float) or np.isfinite(value)}
    sky = "" if wcs is None else _moved(wcs, corner)
    science, template, difference = stamps
    # TAPPROD: no input, should somebody search the folder
    own = sky + _cards({"EXTNAME": "DIFFERENCE", "TAPPROD": "cutout", **known})
    parts = [_image_part({"SIMPLE": True}, difference, {"EXTEND": True}, own)]
    for name, plane in (("SCIENCE", science), ("TEMPLATE", template)):
        size = {"PCOUNT": 0, "GCOUNT": 1, "EXTNAME": name}
        parts.append(_image_part({"XTENSION": "IMAGE"}, plane, size, sky))
    path.write_bytes(b"".join(parts))


def _cards(values: Mapping[str, Any]) -> str:
    return "".join(_card(key, value) for key, value in values.items())


def _card(key: str, value: Any, comment: str = "") -> str:
    """One line of a header (FITS standard 4.0, section 4.2), or several where a text is long."""
    from astropy.io import fits

    if isinstance(value, str):
        text = value.replace("'", "''")
        if len(text) > LONGEST_TEXT or not value.isascii():
            return str(fits.Card(key, value.encode("ascii", "replace").decode(), comment).image)
        word = f"'{text:<8}'".ljust(20)
    elif isinstance(value, bool | np.bool_):
        word = f"{'T' if value else 'F':>20}"
    elif isinstance(value, int | np.integer):
        word = f"{value:>20d}"
    else:
        number = repr(float(value)).upper()
        word = f"{number if '.' in number else number.replace('E', '.0E'):>20}"
    return f"{key:<8}= {word}{' / ' if comment else ''}{comment}"[:80].ljust(80)


def _moved(wcs: Any, corner: tuple[int, int]) -> str:
    """Cards of the WCS of a stamp that begins at `corner`."""
    places = {f"CRPIX{axis}": wcs.get(f"CRPIX{axis}", 0.0) - offset for axis, offset in enumerate(corner, 1)}
    kept = "".join(card.image for card in wcs.cards if card.keyword not in places)
    comments = {key: wcs.comments[key] if key in wcs else "" for key in places}
    return kept + "".join(_card(key, value, comments[key]) for key, value in places.items())


def _image_part(
    first: Mapping[str, Any], plane: NDArray[np.float32], last: Mapping[str, Any], more: str
) -> bytes:
    """One image with its header, filled up to whole blocks; astropy takes ten times as long to check small ones."""
    n_y, n_x = plane.shape
    size = {"BITPIX": -32, "NAXIS": 2, "NAXIS1": n_x, "NAXIS2": n_y}
    head = (_cards({**first, **size, **last}) + more + "END".ljust(80)).encode("ascii")
    body = np.ascontiguousarray(plane, ">f4").tobytes()
    return head.ljust(-(-len(head) // BLOCK) * BLOCK) + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0")


def read_cutout(path: Path) -> tuple[NDArray[np.float32], Any]:
    """Stamps of one candidate, shape (3, size, size) as science, template, difference, and the header.

    Raises
    ------
    FormatError
        Not a cutout of ours.
    """
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as hdus:
            stamps = [np.asarray(hdus[name].data, np.float32) for name in ("SCIENCE", "TEMPLATE")]
            return np.stack([*stamps, np.asarray(hdus[0].data, np.float32)]), hdus[0].header.copy()
    except (OSError, KeyError, ValueError, TypeError) as problem:
        raise FormatError(f"{path}: not a cutout of a search: {problem}") from None


def candidate_cards(row: Mapping[str, Any], source: str, *, edge: bool) -> dict[str, Any]:
    """Header keywords of a candidate: gmadet's names, positions 1-based as FITS counts, and our score.

    Parameters
    ----------
    row
        One row of the candidate table, missing numbers as NaN or None.
    """
    number = {key: _number(row.get(key)) for key in ("mag", "mag_err", "fwhm", "fwhm_psf", "ra", "dec")}
    cards: dict[str, Any] = {
        "MAG": number["mag"],
        "MAGERR": number["mag_err"],
        "FWHM": number["fwhm"],
        "FWHMPSF": number["fwhm_psf"],
        "FILTER": str(row.get("band") or "unknown"),
        "RA": number["ra"],
        "DEC": number["dec"],
        "XPOS": float(row["x"]) + 1.0,
        "YPOS": float(row["y"]) + 1.0,
        "FILE": source[-67:],  # a card holds so much; the end of a path tells more than its beginning
        "CANDID": str(row["candidate_id"])[-67:],
        "EDGE": str(bool(edge)),
        "SNR": _number(row.get("snr")),
        "SIGN": int(row.get("sign", 1)),
        "PROB": _number(row.get("probability")),
    }
    contaminants = _number(row.get("contaminants"))
    return cards if np.isnan(contaminants) else {**cards, "CONTAM": int(contaminants)}


def _number(value: Any) -> float:
    if value is None or np.ma.is_masked(value):
        return float("nan")
    return float(value)


@dataclass(frozen=True)
class CutoutReport:
    """What `make_cutouts` did.

    Attributes
    ----------
    folder
        Where they are.
    n_written
        Cutouts written.
    n_true, n_false, n_undecided
        Of them, at the place of an injected source, declared false, and waiting for a decision by eye.
    n_sources, n_found
        Injected sources, and those with a candidate.
    complaints
        Images that could not be cut, with the reason.
    """

    folder: Path
    n_written: int
    n_true: int = 0
    n_false: int = 0
    n_undecided: int = 0
    n_sources: int = 0
    n_found: int = 0
    complaints: tuple[str, ...] = ()


def make_cutouts(
    folder: Path,
    results: Sequence[SearchResult],
    *,
    training: bool = False,
    rest_is_false: bool = False,
    every_detection: bool = False,
    size: int | None = None,
    radius_arcsec: float = 2.0,
    truth: Sequence[Path] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CutoutReport:
    """Write the cutouts of all results into ``candidates/``, or sorted by truth into ``candidates_training/``.

    A candidate belongs to an injected source only when both are of the same image: images of one field do not mix.

    Parameters
    ----------
    folder
        The folder of the searches; the cutouts appear in it, whole.
    training
        Sort into ``true/`` and ``false/`` by the truth tables, and write ``crossmatch.dat``.
    rest_is_false
        Put what no truth explains into ``false/`` instead of beside the two folders.
    every_detection
        Cut what was vetoed as well.
    size
        Side [pixel]; None: as the search cut them.
    radius_arcsec
        A candidate this near to an injected source is that source.
    truth
        Truth tables of their own, for images that carry none.
    overwrite
        Replace the folder if it is there; decisions by eye in it are lost.

    Raises
    ------
    UsageError
        The output folder is there already.
    InputError
        `training` without any truth, or nothing could be cut.
    """
    target = folder / (TRAINING if training else ALL)
    recover_folders(folder)
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target}: is there already; --overwrite replaces it, and what was sorted by eye in it"
        )
    tables = [(path, read_truth(path)) for path in truth]
    truths = truths_of(results, tables) if training else [None] * len(results)
    if training and all(table is None for table in truths):
        raise InputError(f"{folder}: no {TRUTH} in any result, and no --truth names one")
    counts = {"true": 0, "false": 0, "": 0}
    listed: list[Table] = []
    crossed: list[Table] = []
    complaints: list[str] = []
    with whole_folder(target) as part:
        for done, (result, table) in enumerate(zip(results, truths, strict=True), 1):
            chosen = read_ecsv(result.folder / DETECTIONS) if every_detection else result.candidates
            try:
                stamps, wcs = stamps_of(result, chosen, size)
            except InputError as problem:
                complaints.append(str(problem))
                continue
            match = None if table is None else _match(result, chosen, table, radius_arcsec)
            labels = _labels(chosen, match, training=training, rest_is_false=rest_is_false)
            first = sum(counts.values()) + 1
            _write_all(part, result, chosen, stamps, wcs, labels, first)
            for label in labels:
                counts[label] += 1
            listed.append(_list_of(result, chosen, stamps.shape[-1], first))
            if match is not None and table is not None:
                crossed.append(crossmatch(result, chosen, table, match, stamps.shape[-1]))
            if progress is not None:
                progress(done, len(results))
        if complaints and not listed:
            raise InputError(complaints[0])
        _write_lists(part if not training else folder, listed, crossed)
    real = [
        table[np.isin(table["kind"], REAL_KINDS)] for table in crossed
    ]  # artefacts are nothing to be found
    n_sources = sum(map(len, real))
    n_found = int(sum((np.asarray(table["Nmatches"]) > 0).sum() for table in real))
    return CutoutReport(
        target,
        sum(counts.values()),
        counts["true"],
        counts["false"],
        counts[""],
        n_sources,
        n_found,
        tuple(complaints),
    )


def write_crossmatch(
    folder: Path, results: Sequence[SearchResult], truth: Sequence[Path], radius_arcsec: float
) -> None:
    """Write ``crossmatch.dat`` for the candidates of all results that have a truth table."""
    tables = [(path, read_truth(path)) for path in truth]
    crossed = []
    for result, known in zip(results, truths_of(results, tables), strict=True):
        if known is not None:
            size = int(np.nan_to_num(result.number("cutout_size"), nan=1.0))
            match = _match(result, result.candidates, known, radius_arcsec)
            crossed.append(crossmatch(result, result.candidates, known, match, size))
    _write_lists(folder, [], crossed)


def crossmatch(result: SearchResult, chosen: Table, truth: Table, match: Match, size: int) -> Table:
    """The truth table of one image with what was found of it.

    Beside its own columns: ``filename2 Nmatches closest_candID all_candIDs edge``, as gmadet calls them.
    """
    names = [str(name) for name in chosen["candidate_id"]]
    out = truth.copy(copy_data=True)
    out["filename"] = [result.name] * len(out)
    found = [[names[row] for row in rows] for rows in match.all_rows]
    out["filename2"] = [result.name if ids else "" for ids in found]
    out["Nmatches"] = np.array([len(ids) for ids in found], np.int64)
    out["closest_candID"] = [ids[0] if ids else "" for ids in found]
    out["all_candIDs"] = [",".join(ids) for ids in found]
    out["edge"] = crosses_edge(np.asarray(truth["x"]), np.asarray(truth["y"]), size, result.shape)
    out.meta.clear()
    return out


def stamps_of(result: SearchResult, chosen: Table, size: int | None) -> tuple[NDArray[np.float32], Any]:
    """Stamps of candidates, shape (n, 3, size, size), and the header of the image's WCS (None without).

    They come from the cutouts of the search, or where these do not reach, from the images it kept.

    Raises
    ------
    InputError
        Neither is there; the message names the remedy.
    """
    if not len(chosen):
        side = size or int(result.number("cutout_size") if np.isfinite(result.number("cutout_size")) else 1)
        return np.empty((0, 3, side, side), np.float32), None
    files = [result.folder / CUTOUTS / f"{name}.fits" for name in chosen["candidate_id"]]
    if all(file.is_file() for file in files):
        stamps = np.stack([read_cutout(file)[0] for file in files])
        if size is None or size <= stamps.shape[-1]:
            return _middle(stamps, size or stamps.shape[-1]), _wcs_of(files[0], chosen, stamps.shape[-1])
    return _from_images(result, chosen, size)


def _middle(stamps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    start = stamps.shape[-1] // 2 - size // 2
    return stamps[..., start : start + size, start : start + size]


def _wcs_of(file: Path, chosen: Table, size: int) -> Any:
    """The WCS header of the whole image, from the one of its first cutout."""
    from astropy.wcs import WCS

    header = read_cutout(file)[1]
    wcs = WCS(header, naxis=2)
    if not wcs.has_celestial:
        return None
    whole = wcs.to_header(relax=True)
    for axis, name in ((1, "x"), (2, "y")):
        corner = int(centre_pixel(float(chosen[name][0]))) - size // 2
        whole[f"CRPIX{axis}"] = whole.get(f"CRPIX{axis}", 0.0) + corner
    return whole


def _from_images(result: SearchResult, chosen: Table, size: int | None) -> tuple[NDArray[np.float32], Any]:
    from tapetum.images.fits import read_frame

    planes: list[NDArray[np.float32] | None] = []
    wcs = None
    for name in PLANES:
        path = result.folder / f"{name}.fits.fz"
        frame = read_frame(path) if path.is_file() else None
        planes.append(None if frame is None else frame.data)
        if frame is not None and frame.wcs is not None and wcs is None:
            wcs = frame.wcs.to_header(relax=True)
    wanted = size or result.number("cutout_size")
    if all(plane is None for plane in planes) or not np.isfinite(wanted):
        raise InputError(
            f"{result.folder}: cutouts of {size or 'any'} pixels are not there; search the image again with --keep all"
        )
    side = int(wanted)
    return cut_planes(planes, np.asarray(chosen["x"]), np.asarray(chosen["y"]), side), wcs


def _match(result: SearchResult, chosen: Table, truth: Table, radius_arcsec: float) -> Match:
    x, y = np.asarray(chosen["x"], np.float64), np.asarray(chosen["y"], np.float64)
    return match_truth(truth, x, y, result.pixels(radius_arcsec))


def _labels(chosen: Table, match: Match | None, *, training: bool, rest_is_false: bool) -> list[str]:
    if not training:
        return [""] * len(chosen)
    owner = np.full(len(chosen), -1) if match is None else match.owner
    return ["true" if number >= 0 else "false" if rest_is_false else "" for number in owner.tolist()]


def _write_all(
    part: Path,
    result: SearchResult,
    chosen: Table,
    stamps: NDArray[np.float32],
    wcs: Any,
    labels: Sequence[str],
    first: int,
) -> None:
    size = stamps.shape[-1]
    x, y = np.asarray(chosen["x"], np.float64), np.asarray(chosen["y"], np.float64)
    edge = crosses_edge(x, y, size, result.shape)
    corners = np.column_stack([centre_pixel(x), centre_pixel(y)]) - size // 2
    for number, (row, stamp) in enumerate(zip(chosen, stamps, strict=True)):
        path = part / labels[number] / f"candidate_{first + number}.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        cards = candidate_cards(dict(zip(chosen.colnames, row, strict=True)), result.name, edge=edge[number])
        write_cutout(path, stamp, cards, wcs, (int(corners[number, 0]), int(corners[number, 1])))


def _list_of(result: SearchResult, chosen: Table, size: int, first: int) -> Table:
    """The candidates of one image under the column names of gmadet; positions 1-based."""
    from astropy.table import Table

    x, y = np.asarray(chosen["x"], np.float64), np.asarray(chosen["y"], np.float64)
    out = Table()
    out["ID"] = [str(name) for name in chosen["candidate_id"]]
    out["file"] = [f"candidate_{first + number}.fits" for number in range(len(chosen))]
    for theirs, ours in (("RA", "ra"), ("Dec", "dec")):
        out[theirs] = chosen[ours]
    out["Xpos"], out["Ypos"] = x + 1.0, y + 1.0
    out["edge"] = crosses_edge(x, y, size, result.shape)
    out["Band"] = [str(band) for band in chosen["band"]]
    for theirs, ours in (("mag", "mag"), ("magerr", "mag_err"), ("FWHM", "fwhm"), ("FWHMPSF", "fwhm_psf")):
        out[theirs] = chosen[ours]
    out["filename"] = [result.name] * len(chosen)
    out["OriginalIma"] = [result.source] * len(chosen)
    if "contaminants" in chosen.colnames:  # earlier versions did not ask
        out["contaminants"] = chosen["contaminants"]
    return out


def _write_lists(folder: Path, listed: Sequence[Table], crossed: Sequence[Table]) -> None:
    from astropy.table import vstack

    for name, tables in ((LIST, listed), (CROSSMATCH, crossed)):
        if tables:
            write_truth(folder / name, vstack(list(tables), metadata_conflicts="silent"))
