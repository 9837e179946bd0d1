"""Where the reference of a science image comes from: named files, a folder to choose from, or an archive."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.settings import ArchiveSettings
from tapetum.images.celestial import enclosing_cone, is_celestial
from tapetum.images.edges import without_bad_edges
from tapetum.images.fits import expand_sources, list_images, path_of, read_frame
from tapetum.images.mosaic import mosaic
from tapetum.images.pixelmap import COVERAGE_NODES, covered_nodes
from tapetum.images.remap import align
from tapetum.surveys.telescopes import find_telescope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.images.frame import Frame

    Say = Callable[[str], None]

ZTF = "ztf"
WHOLE = 0.98  # of the science image that one reference covers: no other one is needed
LEAST_GAIN = 0.01  # of the science image that a further reference must add


def _nobody(message: str) -> None:
    """Hear nothing."""


@dataclass(frozen=True)
class Entry:
    """A reference image that was found, without its pixels.

    Attributes
    ----------
    header
        Its header as text, so that it travels to workers.
    shape
        (n_y, n_x) [pixel].
    """

    source: str
    header: str
    shape: tuple[int, int]

    def wcs(self) -> Any:
        """Its WCS, or None."""
        from astropy.io import fits
        from astropy.wcs import WCS

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reading the frame itself will tell
            wcs = WCS(fits.Header.fromstring(self.header, sep="\n"), naxis=2)
        return wcs if is_celestial(wcs) else None


@dataclass(frozen=True)
class References:
    """All that may serve as reference; it travels to workers.

    Attributes
    ----------
    entries
        Images of files and folders.
    named
        One image was named: it is the reference, whatever its header says.
    archives
        ``ps1``, ``ztf`` or ``hips:ID``.
    telescope
        Profile to read them with; None recognises it.
    archive_settings
        Addresses of the archives; None is the default.
    folder
        Where images of archives are kept; None is the cache.
    """

    entries: tuple[Entry, ...]
    named: bool = False
    archives: tuple[str, ...] = ()
    telescope: str | None = None
    archive_settings: ArchiveSettings | None = None
    folder: Path | None = None

    @classmethod
    def open(
        cls, specs: Sequence[str], telescope: str | None = None, archives: ArchiveSettings | None = None
    ) -> Self:
        """Look at what was named.

        Raises
        ------
        InputError
            A file or folder does not exist or holds no image.
        """
        remote = tuple(spec for spec in specs if is_archive(spec))
        files = [spec for spec in specs if not is_archive(spec)]
        sources = expand_sources(files) if files else []
        if len(sources) == 1 and sources == files and not remote and _is_one_image(sources[0]):
            return cls((Entry(sources[0], "", (0, 0)),), True, remote, telescope, archives)
        entries = tuple(entry for source in sources for entry in _entries(source))
        if files and not entries:
            raise InputError(f"{', '.join(files)}: no image with a WCS to choose a reference from")
        return cls(entries, False, remote, telescope, archives)

    @property
    def sources(self) -> list[str]:
        """The images of files and folders."""
        return [entry.source for entry in self.entries]

    def aligned(
        self,
        frame: Frame,
        *,
        cells: Literal["mosaic", "individual"] = "mosaic",
        say: Say = _nobody,
        threads: int = 1,
    ) -> Iterator[Frame]:
        """The reference on the pixel grid of a science frame: one mosaic, or each cell on its own.

        Raises
        ------
        InputError
            Nothing of the frame's band covers it.
        NetworkError
            An archive is needed and cannot be reached.
        """
        found = self.frames_for(frame, say)
        if cells == "individual":
            yield from self._one_by_one(found, frame, say, threads)
            return
        first = next(found)
        second = next(found, None)
        if second is None:
            yield align(first, frame, threads=threads)
        else:  # the mosaic reads them one at a time: many large ones need not fit into memory
            yield mosaic(chain([first, second], found), frame, threads=threads)

    def _one_by_one(self, found: Iterator[Frame], frame: Frame, say: Say, threads: int) -> Iterator[Frame]:
        """Each cell on its own; one that cannot be aligned does not stop the others."""
        problems: list[InputError] = []
        n = 0
        for cell in found:
            try:
                aligned = align(cell, frame, threads=threads)
            except InputError as problem:
                problems.append(problem)
                say(f"warning: {cell.source}: left out: {problem}")
                continue
            n += 1
            yield aligned
        if problems and not n:
            raise problems[0]

    def frames_for(self, frame: Frame, say: Say = _nobody) -> Iterator[Frame]:
        """The reference images that a science frame needs, the one that covers most of it first.

        Raises
        ------
        InputError
            Nothing of the frame's band covers it.
        NetworkError
            An archive is needed and cannot be reached.
        """
        problems: list[str] = []
        n = 0
        for cell in self._found(frame, problems, say):
            n += 1
            say(f"reference {cell.source}")
            cell, edges = without_bad_edges(cell)  # where its own edges are: alignment moves and blurs them
            if edges:
                say(f"{cell.source}: {edges}")
            yield cell
        if not n:
            why = "; ".join(problems) or "none of them overlaps"
            raise InputError(f"{frame.source}: no reference among {len(self.entries)} images: {why}")

    def _found(self, frame: Frame, problems: list[str], say: Say) -> Iterator[Frame]:
        profile = find_telescope(self.telescope) if self.telescope else None
        if self.named:
            yield _told_of_band(read_frame(self.entries[0].source, profile), frame)
            return
        if frame.wcs is None:
            problems.append("the science image has no WCS, so nothing says which one it needs; name one file")
            return
        seen = np.zeros([min(side, COVERAGE_NODES) for side in frame.shape], bool)
        yield from self._covering(frame, profile, problems, seen, say)
        for archive in self.archives if seen.mean() < WHOLE else ():
            for path in self._fetched(archive, frame, say):
                yield read_frame(path)

    def _covering(
        self, frame: Frame, profile: Any, problems: list[str], seen: NDArray[np.bool_], say: Say
    ) -> Iterator[Frame]:
        """Frames of the right band that each add to what is covered; `seen` is told of it."""
        overlaps = []
        for entry in self.entries:
            wcs = entry.wcs()
            if _same_file(entry.source, frame.source):
                problems.append(f"{entry.source} is the science image itself")
            elif wcs is not None:
                inside = covered_nodes(wcs, frame.wcs, entry.shape, frame.shape)
                if inside.any():
                    overlaps.append((float(inside.mean()), entry, inside))
        overlaps.sort(key=lambda overlap: -overlap[0])
        for _, entry, inside in overlaps:
            if seen.mean() >= WHOLE:
                return
            if (inside & ~seen).mean() < LEAST_GAIN:
                continue
            try:
                cell = read_frame(entry.source, profile)
            except InputError as trouble:  # another image may cover the same place
                problems.append(str(trouble))
                say(f"warning: left out: {trouble}")
                continue
            if problem := _band_problem(cell, frame):
                problems.append(f"{cell.source} {problem}")
                continue
            seen |= inside
            yield cell

    def _fetched(self, archive: str, frame: Frame, say: Say) -> list[Path]:
        """Images of an archive that cover a frame."""
        from tapetum.core.places import cache_dir
        from tapetum.surveys.archives import find_reference_archive

        if archive == ZTF:
            return self._ztf_reference(frame, say)
        ra, dec, radius = enclosing_cone(frame.wcs, frame.shape)
        say(f"fetching {archive} around {ra:.4f} {dec:+.4f}, radius {radius:.3f} deg")
        client = find_reference_archive(archive, self.archive_settings or ArchiveSettings())
        folder = self.folder or cache_dir() / "references" / re.sub(r"\W+", "_", archive)
        folder.mkdir(parents=True, exist_ok=True)
        return client.fetch(ra, dec, radius, frame.info.band or "clear", folder)

    def _ztf_reference(self, frame: Frame, say: Say) -> list[Path]:
        """The survey's own reference image of a ZTF frame."""
        from tapetum.core.http import HttpClient, Patience
        from tapetum.core.places import cache_dir
        from tapetum.surveys.archive_ztf import ZtfArchive, field_name
        from tapetum.surveys.archives import READ_SECONDS

        try:
            name = field_name(frame.info.identity, frame.info.band)
        except InputError as problem:
            raise InputError(f"{frame.source}: {problem}") from None
        say(f"fetching the ZTF reference of {name}")
        folder = self.folder or cache_dir() / "archives" / ZTF
        with HttpClient(Patience(read_s=READ_SECONDS)) as client:
            archive = ZtfArchive(client, self.archive_settings or ArchiveSettings(), folder)
            return archive.fetch_products(name, ["reference"])


def is_archive(spec: str) -> bool:
    """Whether a reference is to be fetched."""
    return spec in ("ps1", ZTF) or spec.startswith("hips:")


def _is_one_image(source: str) -> bool:
    _require(source)
    try:
        return len(list_images(source)) == 1
    except InputError:  # reading it will say why
        return True


def _require(source: str) -> None:
    path = path_of(source)
    if not path.is_file():
        raise InputError(f"{path}: no such reference; name a file, a folder, ps1, ztf or hips:ID")


def _entries(source: str) -> list[Entry]:
    """Every image of a file that may hold a reference; a file that cannot be read holds none."""
    from astropy.io import fits

    found = []
    try:
        names = list_images(source)
    except InputError:
        _require(source)
        return []
    for name in names:
        number = name.rpartition("[")[2].rstrip("]") if name.endswith("]") else ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with fits.open(path_of(source), lazy_load_hdus=True) as hdus:
                    hdu = _chosen(hdus, number)
                    if hdu is not None:
                        found.append(Entry(name, hdu.header.tostring(sep="\n"), tuple(hdu.shape[-2:])))
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
            ):  # reading it as an image will tell, if it is needed
                continue
    return found


def _chosen(hdus: Any, number: str) -> Any:
    if number:
        return hdus[int(number)] if number.isdigit() else hdus[number]
    return next((hdu for hdu in hdus if len(getattr(hdu, "shape", ())) >= 2 and hdu.is_image), None)


def _same_file(one: str, other: str) -> bool:
    return path_of(one).resolve() == path_of(other).resolve()


def _band_problem(cell: Frame, frame: Frame) -> str | None:
    """What is wrong with the band of a reference; None when it is that of the science frame, or not known."""
    if frame.info.band and cell.info.band and cell.info.band != frame.info.band:
        return f"is of band {cell.info.band}, the image of {frame.info.band}"
    return None


def _told_of_band(cell: Frame, frame: Frame) -> Frame:
    """A named reference, with a warning where it is of another band: who names it may want just that."""
    problem = _band_problem(cell, frame)
    if problem is None:
        return cell
    warning = f"{problem}: colours of stars, and what they leave in the difference, differ"
    return replace(cell, info=replace(cell.info, warnings=(*cell.info.warnings, warning)))
