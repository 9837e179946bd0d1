"""What a search leaves behind: the names of its files, how they are read again, and the truth that belongs to them."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, InputError
from tapetum.images.fits import path_of
from tapetum.pipelines.folders import OLD, PART
from tapetum.simulate.truth import TRUTH_NAME as TRUTH
from tapetum.simulate.truth import read_list
from tapetum.surveys.telescopes import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from astropy.table import Table
    from numpy.typing import NDArray

CANDIDATES, DETECTIONS, SURROUNDINGS = "candidates.ecsv", "detections.ecsv", "surroundings.ecsv"
SETTINGS, LOG, REPORT, CUTOUTS = "settings.toml", "search.log", "report.html", "cutouts"
VERB = "images search"  # in the settings of every result folder: what else lies beside them is none
OWN_FOLDERS = (
    "candidates",
    "candidates_training",
    "completeness",
)  # that other verbs make beside the results
PLANES = ("science", "template", "difference")
REAL_KINDS = ("point", "transient", "star", "streak", "asteroid", "comet")
EXTENDED_RADIUS_PIX = 5.0  # a comet's brightest pixel is not sharply defined


@dataclass(frozen=True)
class SearchResult:
    """One searched image.

    Attributes
    ----------
    folder
        Where its files lie; the folder's name is the image's name.
    candidates
        `candidates.ecsv`, an `astropy.table.Table`.
    """

    folder: Path
    candidates: Table

    @property
    def name(self) -> str:
        """Name of the image among all results."""
        return self.folder.name

    @property
    def source(self) -> str:
        """Path of the science image, as it was searched."""
        return str(self.candidates.meta.get("source", self.name))

    def number(self, key: str) -> float:
        """A number that the search wrote about the image; NaN where it could not know it."""
        try:
            return float(self.candidates.meta.get(key, "nan"))
        except ValueError:
            return float("nan")

    @property
    def shape(self) -> tuple[int, int]:
        """(n_y, n_x) [pixel].

        Raises
        ------
        FormatError
            The table does not say it.
        """
        shape = self.candidates.meta.get("shape", "")
        words = shape.split() if isinstance(shape, str) else list(shape)
        if len(words) != 2:
            raise FormatError(f"{self.folder / CANDIDATES}: no shape in its metadata; search the image again")
        return int(words[0]), int(words[1])

    def pixels(self, radius_arcsec: float) -> float:
        """A radius in pixels; without a pixel scale one pixel counts as one arcsecond."""
        scale = self.number("pixel_scale_arcsec")
        return radius_arcsec / scale if np.isfinite(scale) else radius_arcsec


def failed_log(folder: Path) -> Path:
    """Log of a failed search whose folder keeps an earlier result."""
    return folder.with_name(f"{folder.name}.failed.log")


@lru_cache(maxsize=65536)
def image_stem(source: str) -> str:
    """Name of an image file without folder, FITS suffixes and extension.

    >>> image_stem("night/a.fits.fz[2]")
    'a'
    """
    return SUFFIX.sub("", path_of(source).name)


def run_of(folder: Path) -> dict[str, Any]:
    """What the settings of a result folder say of the search; empty for a folder that no search has made."""
    try:
        run = tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8")).get("run", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    return dict(run) if isinstance(run, dict) and run.get("verb") == VERB else {}


def result_folders(folder: Path) -> list[Path]:
    """Result folders in a folder of searches that are whole, by name; those that a killed run left behind are not."""
    places = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for path in places if path.suffix not in (PART, OLD) and run_of(path)]


def read_results(folder: Path) -> list[SearchResult]:
    """Every finished result in a folder of searches, by name.

    Raises
    ------
    InputError
        There is none.
    FormatError
        A candidate table cannot be read.
    """
    tables = [place / CANDIDATES for place in result_folders(folder) if (place / CANDIDATES).is_file()]
    if not tables:
        raise InputError(
            f"{folder}: no */{CANDIDATES}; give the folder that `tapetum images search -o` wrote"
        )
    return [SearchResult(path.parent, read_ecsv(path)) for path in tables]


@dataclass(frozen=True)
class Unsearched:
    """An image whose search failed.

    Attributes
    ----------
    name, source
        As in `SearchResult`.
    n_sources
        Sources that were injected into it; None where no truth table is found.
    """

    name: str
    source: str
    n_sources: int | None


def read_unsearched(folder: Path, truth: Sequence[Path] = ()) -> list[Unsearched]:
    """The images in a folder of searches that could not be searched, by name.

    Parameters
    ----------
    truth
        Truth tables for images that have none beside them.

    Raises
    ------
    FormatError
        A truth table cannot be read.
    """
    failed = [place for place in result_folders(folder) if not (place / CANDIDATES).is_file()]
    tables = [(path, read_truth(path)) for path in truth] if failed else []
    out = []
    for place in failed:
        source = str(run_of(place).get("source", place.name))
        known = carried_truth(source, place.name)
        if known is None and tables:
            beside = _sources_beside([place])
            known = truth_for(source, tables, [beside[other] for other in beside if other != place])
        out.append(Unsearched(place.name, source, None if known is None else len(known[is_source(known)])))
    return out


def is_source(truth: Table) -> NDArray[np.bool_]:
    """Which rows of a truth table are sources; the others are artefacts, that nobody should find."""
    return np.array([str(kind) in REAL_KINDS for kind in truth["kind"]], bool)


def unsearched_words(failed: Sequence[Unsearched], n_searched: int) -> str:
    """What is said of images that could not be searched; empty where all could."""
    if not failed:
        return ""
    n, total = len(failed), len(failed) + n_searched
    known = [one.n_sources for one in failed if one.n_sources is not None]
    sources = f"{sum(known)} simulated sources are" if known else "truth is"
    its = f"{'its' if n == 1 else 'their'} {sources} not counted"
    which = ", ".join(one.name for one in failed[:3]) + (", ..." if n > 3 else "")
    return f"{n} {'image' if n == 1 else 'images'} of {total} could not be searched, {its}: {which}"


def read_ecsv(path: Path) -> Table:
    """An ECSV table.

    Raises
    ------
    FormatError
        The file cannot be read as one.
    """
    from astropy.table import Table

    try:
        return Table.read(path, format="ascii.ecsv")
    except (OSError, ValueError, KeyError) as problem:
        raise FormatError(f"{path}: not a readable ECSV table: {problem}") from None


def read_truth(path: Path) -> Table:
    """Read injected sources: ``simulated_objects.list`` (ours or gmadet's) or a JSON list of sources.

    Returns
    -------
    Table
        At least ``filename x y mag kind`` with `x`, `y` 0-based; ``length_pix``, ``angle_deg`` 0 where there is no
        trail; further columns as they were. Sources without a position (trails across the frame) are left out.

    Raises
    ------
    FormatError
        Not such a file, or a needed column is missing; the message names it.
    """
    table = _json_truth(path) if path.suffix.lower() == ".json" else _list_truth(path)
    for ours, theirs in (("x", "Xpos"), ("y", "Ypos")):
        if ours not in table.colnames:
            if theirs not in table.colnames:
                raise FormatError(f"{path}: no column {ours} or {theirs}")
            table[ours] = np.asarray(table[theirs], np.float64) - 1.0  # gmadet counts pixels from 1
    if "mag" not in table.colnames:
        raise FormatError(f"{path}: no column mag")
    defaults: dict[str, Any] = {"kind": "point", "filename": "", "length_pix": 0.0, "angle_deg": 0.0}
    for name, value in defaults.items():
        if name not in table.colnames:
            table[name] = [value] * len(table)
        elif not isinstance(value, str):
            table[name] = np.nan_to_num(_filled(table[name]))
    return table[np.isfinite(_filled(table["x"])) & np.isfinite(_filled(table["y"]))]


def _filled(column: Any) -> NDArray[np.float64]:
    plain = column.filled(np.nan) if hasattr(column, "filled") else column
    return np.asarray(plain, np.float64)


def _list_truth(path: Path) -> Table:
    try:
        table = read_list(path)
    except OSError as problem:
        raise FormatError(f"{path}: not a readable truth table: {problem}") from None
    for numeric in ("x", "y", "Xpos", "Ypos", "mag"):
        if numeric in table.colnames and table[numeric].dtype.kind not in "fiu":
            raise FormatError(f"{path}: column {numeric} is not a number")
    return table


def _json_truth(path: Path) -> Table:
    from astropy.table import Table

    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        sources = [entry for entry in entries if "x" in entry and "y" in entry]
        columns = {
            "idx": list(range(len(sources))),
            "x": [float(entry["x"]) for entry in sources],
            "y": [float(entry["y"]) for entry in sources],
            "mag": [float(entry["mag"]) for entry in sources],
            "kind": [str(entry.get("kind", "point")) for entry in sources],
            "length_pix": [float(entry.get("length", 0.0)) for entry in sources],
            "angle_deg": [float(entry.get("angle", 0.0)) for entry in sources],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise FormatError(f"{path}: not a list of sources with x, y and mag: {problem!r}") from None
    return Table(columns)


def truth_files(named: Iterable[Path]) -> list[Path]:
    """Truth tables among files and folders.

    Raises
    ------
    InputError
        A path does not exist, or a folder has no truth in it.
    """
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            inside = sorted([*path.rglob("*_truth.json"), *path.rglob(TRUTH)])
            if not inside:
                raise InputError(f"{path}: neither {TRUTH} nor *_truth.json in it")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: no such truth table")
    return found


def truth_for(source: str, tables: Sequence[tuple[Path, Table]], others: Sequence[str] = ()) -> Table | None:
    """The rows of truth tables that belong to an image.

    A row belongs to it when its `filename` names the image file; a table without file names belongs to the images
    whose name begins as its own does (``sim_0_truth.json`` to ``sim_0_sci.fits.fz``). Among images of one name it is
    the one whose folders agree best with those of the row, or of its table; never one that is another file.

    Parameters
    ----------
    others
        Further images that rows may belong to.

    Raises
    ------
    InputError
        A row may belong to this image as well as to another one.
    """
    from astropy.table import vstack

    parts = []
    for path, table in tables:
        names = [str(name) if name else "" for name in table["filename"]]
        some = any(names)  # else the table's own name tells
        ours = {
            name: (bool(name) or not some) and _belongs(name, path, source, others)
            for name in dict.fromkeys(names)
        }
        chosen = np.array([ours[name] for name in names], bool)
        if chosen.any():
            parts.append(table[chosen])
    return vstack(parts, metadata_conflicts="silent") if parts else None


def truths_of(results: Sequence[SearchResult], tables: Sequence[tuple[Path, Table]]) -> list[Table | None]:
    """The truth of each result: the table that the search carried along, else the rows of `tables` that are its own.

    Raises
    ------
    InputError
        A row may belong to several images.
    FormatError
        A table cannot be read.
    """
    places = _sources_beside([result.folder for result in results]) if tables else {}
    places |= {result.folder: result.source for result in results}
    out = []
    for result in results:
        own = result.folder / TRUTH
        others = [source for place, source in places.items() if place != result.folder]
        out.append(read_truth(own) if own.is_file() else truth_for(result.source, tables, others))
    return out


def _sources_beside(folders: Sequence[Path]) -> dict[Path, str]:
    """The image of every result folder that lies beside some, the failed ones too: truth may be theirs."""
    parents = dict.fromkeys(folder.parent for folder in folders)
    runs = {place: run_of(place) for parent in parents for place in result_folders(parent)}
    return {place: str(run["source"]) for place, run in runs.items() if "source" in run}


def _belongs(name: str, table: Path, source: str, others: Sequence[str]) -> bool:
    """Whether a file name in a truth table (empty: none, the table's name tells) means this image and no other."""
    if not _may_mean(name, table, source):
        return False
    agreement = _common_folders(name, table, source)
    for other in others:
        if not _may_mean(name, table, other):
            continue
        theirs = _common_folders(name, table, other)
        if theirs > agreement:
            return False
        if theirs == agreement:
            raise InputError(
                f"{table}: {name or 'what it lists'} may be of {source} or of {other}; write the image's "
                "folder into the column filename, or put the table beside its image and search again"
            )
    return True


def _may_mean(name: str, table: Path, source: str) -> bool:
    stem = image_stem(source)
    if not name:
        begin = table.name.split(".")[0].removesuffix("_truth")
        return re.fullmatch(re.escape(begin) + r"(_.*)?", stem) is not None
    if image_stem(name) != stem:
        return False
    number, wanted = (text.removeprefix(str(path_of(text))) for text in (name, source))
    if number and wanted and number != wanted:
        return False
    place, image = _place(name, table), path_of(source).absolute()
    if image.parent == table.absolute().parent:
        return True  # beside its image it may name the place where it was made
    return not (place.is_file() and image.is_file()) or place.samefile(image)


def _place(name: str, table: Path) -> Path:
    """Where a file lies that a table names; what is not absolute is seen from the table's folder."""
    return (table.parent / path_of(name)).absolute() if name else table.absolute()


def _common_folders(name: str, table: Path, source: str) -> int:
    """How many folders two paths share, counted from their ends."""
    ours, theirs = (reversed(path.parent.parts) for path in (path_of(source).absolute(), _place(name, table)))
    n = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        n += 1
    return n


def carried_truth(source: str, name: str) -> Table | None:
    """The truth beside an image, renamed to the image's name among the results; None where there is none.

    Parameters
    ----------
    source
        Path of the science image.
    name
        Of its result folder.

    Raises
    ------
    FormatError
        There is a table, and it cannot be read.
    """
    path = path_of(source).parent / TRUTH
    if not path.is_file():
        return None
    table = truth_for(source, [(path, read_truth(path))])
    if table is None:
        return None
    table["original"] = [str(value) for value in table["filename"]]
    table["filename"] = [name] * len(table)
    return table


@dataclass(frozen=True)
class Match:
    """Injected sources against the candidates of the same image.

    Attributes
    ----------
    closest : ndarray of int, shape (n_truth,)
        Row of the candidate that shows each source; -1 where there is none. No two sources have the same.
    distance : ndarray, shape (n_truth,)
        To that candidate [pixel]; NaN where there is none.
    all_rows
        Of each source every candidate that belongs to it, `closest` first: pieces of a trail are several.
    owner : ndarray of int, shape (n_candidates,)
        The source that a candidate belongs to; -1 where none is near.
    """

    closest: NDArray[np.intp]
    distance: NDArray[np.float64]
    all_rows: list[NDArray[np.intp]]
    owner: NDArray[np.intp]


def match_truth(truth: Table, x: NDArray[np.float64], y: NDArray[np.float64], radius_pix: float) -> Match:
    """Match injected sources to candidates of ONE image by pixel position, one to one.

    The brightest source chooses first, and takes the nearest candidate that is left: a faint source is not found
    because its bright neighbour was. Trails choose after all others, for what lies on their line may be something else.
    A candidate that nobody took, within the radius of sources that have one already, belongs to the nearest of them.

    A trail matches all along its length, with `radius_pix` around it; a comet within at least 5 pixels. Artefacts that
    were injected are no sources: they match nothing.

    Parameters
    ----------
    truth
        As `read_truth` gives it.
    x, y : ndarray, shape (n_candidates,)
        [pixel, 0-based].
    """
    near = _near(truth, x, y, radius_pix)
    mag, length = (np.asarray(truth[name], np.float64) for name in ("mag", "length_pix"))
    closest, best = np.full(len(truth), -1, np.intp), np.full(len(truth), np.nan)
    owner, nearest = np.full(len(x), -1, np.intp), np.full(len(x), np.inf)
    for number in np.lexsort([mag, length > 0]).tolist():
        rows, distance = near[number]
        free = np.flatnonzero(owner[rows] < 0)
        if free.size:
            closest[number], best[number] = rows[free[0]], distance[free[0]]
            owner[closest[number]], nearest[closest[number]] = (
                number,
                -1.0,
            )  # nobody is nearer than its source
    for number, (rows, distance) in enumerate(near):
        nearer = distance < nearest[rows]
        owner[rows[nearer]], nearest[rows[nearer]] = number, distance[nearer]
    own = [rows[owner[rows] == number] for number, (rows, _) in enumerate(near)]
    return Match(closest, best, own, owner)


def _near(
    truth: Table, x: NDArray[np.float64], y: NDArray[np.float64], radius_pix: float
) -> list[tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Candidates within the radius of each source, the nearest first, and their distances [pixel]."""
    from scipy.spatial import cKDTree

    tx, ty, length, angle = (
        np.asarray(truth[name], np.float64) for name in ("x", "y", "length_pix", "angle_deg")
    )
    half, direction = length / 2, np.deg2rad(angle)
    kinds = [str(kind) for kind in truth["kind"]]
    radius = np.array([max(radius_pix, EXTENDED_RADIUS_PIX) if k == "comet" else radius_pix for k in kinds])
    around: list[Any] = [[] for _ in kinds]
    if len(x) and kinds:
        tree = cKDTree(np.column_stack([x, y]))
        around = list(tree.query_ball_point(np.column_stack([tx, ty]), radius + half))
    near = []
    for number, kind in enumerate(kinds):
        rows = np.asarray(around[number] if kind in REAL_KINDS else [], np.intp)
        dx, dy = x[rows] - tx[number], y[rows] - ty[number]
        along = dx * np.cos(direction[number]) + dy * np.sin(direction[number])
        across = dy * np.cos(direction[number]) - dx * np.sin(direction[number])
        distance = np.hypot(np.maximum(np.abs(along) - half[number], 0.0), across)
        order = np.argsort(distance, kind="stable")
        order = order[distance[order] <= radius[number]]
        near.append((rows[order], distance[order]))
    return near
