"""Archive clients against servers on this machine that answer as the archives do."""

from __future__ import annotations

import http.server
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from tapetum.core.errors import FormatError, InputError, NetworkError, UsageError
from tapetum.core.http import HttpClient, Patience
from tapetum.core.settings import ArchiveSettings
from tapetum.surveys.archive_files import fits_fault
from tapetum.surveys.archive_hips import Hips
from tapetum.surveys.archive_ps1 import PanStarrs, disc_positions, linear_flux, parse_names
from tapetum.surveys.archive_ztf import ZtfArchive
from tapetum.surveys.archives import archive_facts, find_reference_archive, reference_band

CENTRE = (359.95, 2.2)  # cells on both sides of RA 0
FRAME = "ztf_20200924431759_000655_zr_c13_o_q3"
OFFSET, SOFTENING, EXPOSURE = -0.02, 1.3, 640.0
SIDE = 40  # pixels of a skycell here
PASSWORD = "p&ss word"

Answer = tuple[int, bytes, dict[str, str]]


@dataclass
class Served:
    """What a server was asked, and how it answers."""

    answer: Callable[[str, str, dict[str, list[str]], bytes, dict[str, str]], Answer]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    served: Served
    lock = threading.Lock()

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        served = self.served
        with self.lock:
            served.asked.append(f"{self.command} {self.path}")
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        status, content, headers = served.answer(
            self.command, parts.path, parse_qs(parts.query), body, dict(self.headers)
        )
        self.send_response(status)
        cut = headers.pop("cut", "")
        if not cut:
            self.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        with self.lock:
            served.at_once -= 1

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Served]]:
    running = []

    def start(answer: Any) -> Served:
        served = Served(answer)
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"served": served})
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, thread))
        served.url = f"http://127.0.0.1:{server.server_port}"
        return served

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(Patience(connect_s=5, read_s=5, attempts=3, pause_s=0)) as client:
        yield client


def _bytes(*hdus: Any) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


# --- Pan-STARRS ---


def cell_of(ra: float, dec: float) -> tuple[int, int]:
    """Column and row of the skycell that holds a position: here 0.4 deg of RA and Dec."""
    return int(np.floor(((ra + 180) % 360) / 0.4)), int(np.floor((dec + 90) / 0.4))


def cell_path(cell: tuple[int, int], letter: str, kind: str = "") -> str:
    projection, sub = f"{cell[0]:04d}", f"{cell[1]:03d}"
    return f"rings.v3.skycell/{projection}/{sub}/rings.v3.skycell.{projection}.{sub}.stk.{letter}.unconv{kind}.fits"


def cell_pixels(cell: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Counts of the whole exposure."""
    rng = np.random.default_rng([*cell])
    counts = rng.normal(0, 30, (SIDE, SIDE))
    counts[7, 9] = 5e5
    return counts


def skycell(cell: tuple[int, int]) -> bytes:
    """A stacked skycell as the archive stores it: asinh magnitudes, compressed, with the WCS keys of 1993."""
    stored = 2.5 / np.log(10) * np.arcsinh((cell_pixels(cell) - OFFSET) / (2 * SOFTENING))
    stored[0, 0] = np.nan
    hdu = fits.CompImageHDU(stored.astype(np.float32), compression_type="GZIP_2", quantize_level=0)
    header = hdu.header
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = (cell[0] + 0.5) * 0.4 - 180, (cell[1] + 0.5) * 0.4 - 90
    header["CRPIX1"] = header["CRPIX2"] = (SIDE + 1) / 2
    header["CDELT1"] = header["CDELT2"] = 0.42 / SIDE
    for key, value in {"PC001001": -1.0, "PC001002": 0.0, "PC002001": 0.0, "PC002002": 1.0}.items():
        header[key] = value
    header["BOFFSET"], header["BSOFTEN"], header["EXPTIME"] = OFFSET, SOFTENING, EXPOSURE
    header["HIERARCH CELL.GAIN"], header["HIERARCH CELL.SATURATION"] = 1.25, 64000.0
    header["MJD-OBS"] = 55800.25
    return _bytes(fits.PrimaryHDU(), hdu)


def skymask() -> bytes:
    values = np.zeros((SIDE, SIDE), np.uint16)
    values[0, 0], values[7, 9], values[3, 3], values[4, 4] = 8, 0x20, 0x80, 0x8000
    return _bytes(fits.PrimaryHDU(), fits.CompImageHDU(values, compression_type="RICE_1"))


@dataclass
class PanStarrsServer:
    """The file-name service and the files behind it."""

    trouble: list[str] = field(default_factory=list)
    masks: bool = True
    bad: set[tuple[int, int]] = field(default_factory=set)

    def __call__(self, method: str, path: str, query: Any, body: bytes, headers: Any) -> Answer:
        if path.endswith("ps1filenames.py"):
            if "service" in self.trouble:
                self.trouble.remove("service")
                return 503, b"later", {}
            return 200, self.table(body), {"Content-Type": "text/plain"}
        if self.trouble:
            kind = self.trouble.pop()
            if kind == "busy":
                return 503, b"later", {}
            if kind == "page":
                return 200, b"<html>down for maintenance</html>", {}
        match = re.search(r"skycell\.(\d{4})\.(\d{3})\.stk\.\w\.unconv(\.mask)?\.fits$", path)
        if match is None:
            return 404, b"", {}
        content = skymask() if match[3] else skycell((int(match[1]), int(match[2])))
        cut = {"cut": "yes"} if self.trouble and self.trouble[-1] == "cut" and self.trouble.pop() else {}
        return 200, content, cut

    def table(self, body: bytes) -> bytes:
        text = body.decode()
        letter = re.search(r'name="filters"\r\n\r\n(\w+)\r\n', text)
        kinds = re.search(r'name="type"\r\n\r\n([\w.,]+)\r\n', text)
        assert letter
        assert kinds
        assert kinds[1] == "stack,stack.mask"
        lines = ["projcell subcell ra dec filter mjd type filename shortname badflag"]
        for ra, dec in re.findall(r"^(\d+\.\d+) (-?\d+\.\d+)\r?$", text, re.MULTILINE):
            cell = cell_of(float(ra), float(dec))
            for kind, suffix in (("stack", ""), ("stack.mask", ".mask")):
                if suffix and not self.masks:
                    continue
                file = cell_path(cell, letter[1], suffix)
                name = file.rpartition("/")[2]
                flag = int(cell in self.bad)
                lines.append(f"{cell[0]} {cell[1]} {ra} {dec} {letter[1]} 0.0 {kind} /{file} {name} {flag}")
        return "\n".join(lines).encode()


def files_asked(served: Served) -> list[str]:
    return [entry for entry in served.asked if entry.startswith("GET")]


def test_skycells_that_cover_a_field_become_linear_references(
    serve: Any, client: HttpClient, tmp_path: Path
) -> None:
    served = serve(PanStarrsServer())
    settings = ArchiveSettings(ps1_url=served.url, downloads=3)
    archive = find_reference_archive("ps1", settings, client, tmp_path / "cache")
    paths = archive.fetch(*CENTRE, 0.3, "bessellv", tmp_path / "out")
    # every position of the field lies in one of the cells, and no cell is far off
    there = {re.search(r"skycell\.(\d+)\.(\d+)\.", path.name) for path in paths}
    cells = {(int(match[1]), int(match[2])) for match in there if match}
    inside = disc_positions(*CENTRE, 0.3, 0.01)
    assert {cell_of(ra, dec) for ra, dec in inside} <= cells
    near = disc_positions(*CENTRE, 0.3 + 0.1, 0.01)
    assert cells <= {cell_of(ra, dec) for ra, dec in near}
    assert 4 <= len(cells) == len(paths) <= 9
    assert 1 < served.most_at_once <= 3
    assert len(files_asked(served)) == 2 * len(cells)
    # what they hold
    for path in paths:
        match = re.search(r"skycell\.(\d+)\.(\d+)\.", path.name)
        assert match
        cell = (int(match[1]), int(match[2]))
        with fits.open(path, checksum=True) as hdus:
            data, header = hdus[0].data, hdus[0].header
            wcs = WCS(header)
        expected = cell_pixels(cell) / EXPOSURE
        expected[0, 0] = np.nan
        np.testing.assert_allclose(data, expected, rtol=2e-6, atol=1e-6)
        ra, dec = wcs.all_pix2world((SIDE - 1) / 2, (SIDE - 1) / 2, 0)
        assert cell_of(float(ra), float(dec)) == cell
        east, _ = wcs.all_pix2world(0, (SIDE - 1) / 2, 0)
        assert (east - ra) % 360 < 1  # east is at the left
        assert (header["FILTER"], header["MAGZP"], header["RADESYS"]) == ("g", 25.0, "FK5")
        assert header["GAIN"] == pytest.approx(1.25 * EXPOSURE)
        assert header["SATURATE"] == pytest.approx(64000 / EXPOSURE)
        assert "BOFFSET" not in header


def test_a_skycell_is_understood_as_any_other_frame(serve: Any, client: HttpClient, tmp_path: Path) -> None:
    from tapetum.images.fits import read_frame
    from tapetum.images.frame import Bad

    served = serve(PanStarrsServer())
    archive = PanStarrs(client, served.url, tmp_path / "cache")
    path = archive.fetch(150.0, 2.2, 0.01, "ztfr", tmp_path / "out")[0]
    frame = read_frame(path)
    assert (frame.info.telescope, frame.info.band, frame.info.zero_point) == ("ps1", "ps1::r", 25.0)
    assert frame.info.gain == pytest.approx(1.25 * EXPOSURE)
    assert frame.mask[7, 9] & Bad.SATURATED
    assert frame.mask[0, 0] & Bad.NO_DATA
    assert not frame.mask[3, 3]
    assert not frame.mask[4, 4]


def test_finished_files_are_not_fetched_again_and_damaged_ones_are(
    serve: Any, client: HttpClient, tmp_path: Path
) -> None:
    served = serve(PanStarrsServer())
    archive = PanStarrs(client, served.url, tmp_path / "cache")
    first = archive.fetch(*CENTRE, 0.01, "r", tmp_path / "out")
    served.asked.clear()
    assert archive.fetch(*CENTRE, 0.01, "r", tmp_path / "out") == first
    assert files_asked(served) == []
    [image] = [path for path in (tmp_path / "cache").iterdir() if "mask" not in path.name][:1]
    image.write_bytes(image.read_bytes()[:-2880])
    assert "cut off" in str(fits_fault(image))
    archive.fetch(*CENTRE, 0.01, "r", tmp_path / "other")
    assert [entry.rpartition("/")[2] for entry in files_asked(served)] == [image.name]
    assert fits_fault(image) is None
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".part"]


@pytest.mark.parametrize("trouble", [["busy", "busy"], ["cut"], ["page"], ["service", "service"]])
def test_passing_trouble_is_survived(
    serve: Any, client: HttpClient, tmp_path: Path, trouble: list[str]
) -> None:
    served = serve(PanStarrsServer(trouble))
    archive = PanStarrs(client, served.url, tmp_path / "cache", downloads=1)
    for path in archive.fetch(*CENTRE, 0.01, "i", tmp_path / "out"):
        assert fits_fault(path) is None
    assert trouble == []


def test_lasting_trouble_is_an_error_that_names_the_file_and_leaves_none(
    serve: Any, client: HttpClient, tmp_path: Path
) -> None:
    served = serve(PanStarrsServer(["page"] * 50))
    archive = PanStarrs(client, served.url, tmp_path / "cache")
    with pytest.raises(
        FormatError, match=r"skycell\S+fits: not a FITS file, it begins with b'<html>.*not kept"
    ):
        archive.fetch(*CENTRE, 0.01, "i", tmp_path / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(NetworkError, match="Connection refused"):
        PanStarrs(client, "http://127.0.0.1:9", tmp_path / "cache").fetch(
            *CENTRE, 0.01, "i", tmp_path / "out"
        )


def test_cells_without_mask_or_flagged_bad(
    serve: Any, client: HttpClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(PanStarrsServer(masks=False))
    archive = PanStarrs(client, served.url, tmp_path / "cache")
    caplog.set_level(logging.WARNING, "tapetum")
    paths = archive.fetch(150.0, 2.2, 0.01, "r", tmp_path / "out")
    assert "has no mask" in caplog.text
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    flagged = serve(
        PanStarrsServer(bad={cell_of(*position) for position in disc_positions(150, 2.2, 0.2, 0.05)})
    )
    with pytest.raises(InputError, match=r"no r image at ra 150.00000, dec 2.20000"):
        PanStarrs(client, flagged.url, tmp_path / "other").fetch(150.0, 2.2, 0.01, "r", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((150.0, -40.0, 0.1, "r"), "saw nothing so far south"),
        ((150.0, 2.0, 0.1, "2massj"), "band '2massj'"),
        ((150.0, 2.0, 9.0, "r"), "radius 9.0"),
        ((150.0, 2.0, -1.0, "r"), "radius -1.0"),
        ((150.0, float("nan"), 0.1, "r"), "not a position"),
        ((400.0, 0.0, 0.1, "r"), "not a position"),
    ],
)
def test_impossible_wishes_ask_nobody(client: HttpClient, tmp_path: Path, arguments: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PanStarrs(client, "http://127.0.0.1:9", tmp_path).fetch(*arguments, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>sign in</html>",
        "projcell subcell type filename badflag\n1 2 stack /../../etc/passwd 0",
        "projcell subcell type filename badflag\n1 2 stack /rings.v3.skycell/1234/056/x.fits 0",
        "projcell subcell type filename badflag\n1 2 stack",
        "type filename badflag\nstack /rings.v3.skycell/1234/056/rings.v3.skycell.9999.056.stk.r.unconv.fits 0",
    ],
)
def test_nonsense_in_place_of_the_table_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"^there: "):
        parse_names(text, "there")


def test_positions_fill_the_disc_also_at_the_pole() -> None:
    for ra, dec in (CENTRE, (10.0, 90.0), (200.0, -89.9)):
        positions = disc_positions(ra, dec, 0.5, 0.05)
        sky = SkyCoord(positions, unit="deg")
        distance = sky.separation(SkyCoord(ra, dec, unit="deg")).deg
        assert distance.max() == pytest.approx(0.5, abs=1e-9)
        for inner in (0.1, 0.37):
            probe = SkyCoord(ra, dec, unit="deg").directional_offset_by(37 * u.deg, inner * u.deg)
            assert sky.separation(probe).deg.min() < 0.05 * np.sqrt(0.5)


def test_linear_flux_undoes_the_archives_compression(rng: np.random.Generator) -> None:
    flux = rng.normal(0, 1e3, 1000)
    stored = 1.0857362 * np.arcsinh((flux - OFFSET) / (2 * SOFTENING))  # the archive's own constant
    np.testing.assert_allclose(linear_flux(stored, OFFSET, SOFTENING), flux, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        ("B", "g"), ("V", "g"), ("R", "r"), ("I", "i"), ("g+r", "r"), ("clear", "r"), ("ztfg", "g"), ("ps1::z", "z"),
        ("sdssi", "i"), ("lssty", "y"), ("r", "r"), ("besselli", "i"),
    ],
)  # fmt: skip
def test_each_band_has_its_reference(band: str, expected: str) -> None:
    assert reference_band(band, "grizy") == expected


def test_archives_are_found_by_name(tmp_path: Path) -> None:
    settings = ArchiveSettings(downloads=2)
    ps1 = find_reference_archive("ps1", settings)
    assert isinstance(ps1, PanStarrs)
    assert ps1.url == archive_facts("ps1")["url"]
    assert ps1.cache.is_relative_to(tmp_path / "cache")  # the test's own
    hips = find_reference_archive("hips:CDS/P/DSS2/red", settings)
    assert isinstance(hips, Hips)
    assert (hips.survey, hips.downloads) == ("CDS/P/DSS2/red", 2)
    for name in ("", "sdss", "hips", "hips:", "ps1:x"):
        with pytest.raises(InputError, match="known: ps1, hips:ID"):
            find_reference_archive(name, settings)


# --- HiPS ---


def brightness(ra: Any, dec: Any) -> Any:
    """What the map here shows of a position."""
    return 100.0 + 50.0 * np.sin(np.radians(ra) * 3000) + 30.0 * np.cos(np.radians(dec) * 2000)


def hips2fits(method: str, path: str, query: dict[str, list[str]], body: bytes, headers: Any) -> Answer:
    [survey], [width], [height] = query["hips"], query["width"], query["height"]
    assert query["format"] == ["fits"]
    n_x, n_y = int(width), int(height)
    if survey == "CDS/P/none":
        return 200, _bytes(fits.PrimaryHDU(np.full((n_y, n_x), np.nan, np.float32))), {}
    header = fits.Header(json.loads(query["wcs"][0]))
    assert (header["NAXIS1"], header["NAXIS2"]) == (n_x, n_y)
    y, x = np.mgrid[:n_y, :n_x]
    data = brightness(*WCS(header).all_pix2world(x, y, 0))
    if "PanSTARRS" in survey:
        data = 2.5 / np.log(10) * np.arcsinh(data / 2)
    data[0, 0] = 0
    for key in ("NAXIS", "NAXIS1", "NAXIS2"):
        del header[key]
    return 200, _bytes(fits.PrimaryHDU(data.astype(np.float32), header)), {}


@pytest.mark.parametrize("survey", ["CDS/P/DSS2/red", "CDS/P/PanSTARRS/DR1/{band}"])
def test_cutouts_of_a_map_show_the_sky_where_their_wcs_says(
    serve: Any, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survey: str
) -> None:
    monkeypatch.setitem(archive_facts("hips"), "side", 200)
    served = serve(hips2fits)
    archive = Hips(client, served.url, survey, tmp_path / "cache", scale_arcsec=4.0)
    radius = 0.15
    paths = archive.fetch(*CENTRE, radius, "R", tmp_path / "out")
    assert len(paths) == 4
    covered = np.zeros(400, bool)
    field_positions = disc_positions(*CENTRE, radius, 0.02)[:400]
    for path in paths:
        with fits.open(path, checksum=True) as hdus:
            data, wcs = hdus[0].data, WCS(hdus[0].header)
        assert data.shape == (200, 200)
        y, x = np.mgrid[:200, :200]
        expected = brightness(*wcs.all_pix2world(x, y, 0))
        expected[0, 0] = np.nan
        np.testing.assert_allclose(data, expected, rtol=1e-4)
        column, row = wcs.all_world2pix(field_positions, 0).T
        covered[: len(column)] |= (abs(column - 99.5) <= 101) & (abs(row - 99.5) <= 101)
    assert covered[: len(field_positions)].all()
    assert all(("PanSTARRS%2FDR1%2Fr" in entry) == ("{band}" in survey) for entry in served.asked)
    served.asked.clear()
    assert archive.fetch(*CENTRE, radius, "R", tmp_path / "out") == paths
    assert served.asked == []


def test_a_map_on_the_grid_of_an_image(serve: Any, client: HttpClient, tmp_path: Path) -> None:
    served = serve(hips2fits)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [10, -70], [30, 20]
    wcs.wcs.cd = [[2e-4, 1e-4], [1e-4, -2e-4]]
    [path] = Hips(client, served.url, "CDS/P/x", tmp_path / "c").fetch_onto(wcs, (50, 60), tmp_path / "out")
    with fits.open(path) as hdus:
        data, found = hdus[0].data, WCS(hdus[0].header)
    assert data.shape == (50, 60)
    np.testing.assert_allclose(found.all_pix2world(5, 7, 0), wcs.all_pix2world(5, 7, 0), atol=1e-9)


def test_an_empty_map_is_an_error(serve: Any, client: HttpClient, tmp_path: Path) -> None:
    served = serve(hips2fits)
    archive = Hips(client, served.url, "CDS/P/none", tmp_path / "cache", scale_arcsec=20)
    with pytest.raises(InputError, match="CDS/P/none: this map has no pixels here"):
        archive.fetch(*CENTRE, 0.1, "r", tmp_path / "out")


# --- ZTF ---


@dataclass
class ZtfServer:
    """The products, of which private ones need a session."""

    private: bool = False
    forms: list[dict[str, list[str]]] = field(default_factory=list)

    def __call__(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes, headers: dict[str, str]
    ) -> Answer:
        if path == "/login.do":
            form = parse_qs(body.decode())
            self.forms.append(form)
            good = form["josso_password"] == [PASSWORD] and form["josso_cmd"] == ["login"]
            return 200, b"", {"Set-Cookie": "JOSSO_SESSIONID=abc; Path=/"} if good else {}
        if self.private and "JOSSO_SESSIONID=abc" not in headers.get("Cookie", ""):
            return 401, b"", {}
        return 200, _bytes(fits.PrimaryHDU(np.full((8, 8), len(path), np.float32))), {}


def ztf(served: Served, client: HttpClient, folder: Path, **settings: Any) -> ZtfArchive:
    login = f"{served.url}/login.do"
    return ZtfArchive(client, ArchiveSettings(ztf_url=served.url, ztf_login_url=login, **settings), folder)


def test_products_of_a_frame_lie_where_the_archive_keeps_them(
    serve: Any, client: HttpClient, tmp_path: Path
) -> None:
    served = serve(ZtfServer())
    archive = ztf(served, client, tmp_path)
    paths = archive.fetch_products(f"{FRAME}_sciimg.fits", ["science", "mask", "difference", "reference"])
    expected = [
        f"sci/2020/0924/431759/{FRAME}_sciimg.fits",
        f"sci/2020/0924/431759/{FRAME}_mskimg.fits",
        f"sci/2020/0924/431759/{FRAME}_scimrefdiffimg.fits.fz",
        "ref/000/field000655/zr/ccd13/q3/ztf_000655_zr_c13_q3_refimg.fits",
    ]
    assert sorted(served.asked) == sorted(f"GET /{path}" for path in expected)
    assert paths == [tmp_path / path for path in expected]
    served.asked.clear()
    assert archive.fetch_products(FRAME, ["science"]) == paths[:1]
    assert served.asked == []
    with pytest.raises(InputError, match="known products"):
        archive.fetch_products(FRAME, ["spectrum"])
    with pytest.raises(InputError):
        archive.fetch_products("somewhere.fits")


def test_a_frame_has_the_reference_of_its_field_filter_and_quadrant() -> None:
    from tapetum.surveys.archive_ztf import field_name

    identity: dict[str, str | int] = {
        "date": "20200924",
        "field": 655,
        "filter": "zr",
        "ccd": 13,
        "quadrant": 3,
    }
    assert field_name(identity, "ztfr") == "ztf_000655_zr_c13_q3"
    assert field_name({"field": "1655", "ccd": "2", "quadrant": "4"}, "ztfg") == "ztf_001655_zg_c02_q4"
    for missing, band in (({"field": 655}, "ztfr"), (identity, None), (identity, "sdssr"), ({}, "ztfr")):
        with pytest.raises(InputError, match=r"not known to be a ZTF image.*name a reference file"):
            field_name(missing, band)


@pytest.mark.parametrize("renamed", [False, True])
def test_the_surveys_own_reference_of_a_ztf_image_is_fetched(
    serve: Any, tmp_path: Path, rng: np.random.Generator, renamed: bool
) -> None:
    """`--reference ztf`: by the name of the frame or, of a renamed one, by its header."""
    from tapetum.images.fits import read_frame
    from tapetum.pipelines.references import References

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [10, 20], [50, 40]
    wcs.wcs.cdelt = [-1 / 3600, 1 / 3600]
    header = wcs.to_header()
    header.update({"MAGZP": 26.0, "GAIN": 6.0, "SATURATE": 5e4, "FILTER": "ZTF_r"})
    reference = _bytes(fits.PrimaryHDU(rng.normal(100, 5, (90, 110)).astype(np.float32), header))
    served = serve(lambda *request: (200, reference, {}))
    settings = ArchiveSettings(ztf_url=served.url)
    if renamed:
        header.update(
            {"TELESCOP": "Palomar 48-inch", "INSTRUME": "ZTF/MOSAIC", "FIELDID": 655, "CCDID": 13, "QID": 3}
        )
    path = tmp_path / ("monday.fits" if renamed else f"{FRAME}_sciimg.fits")
    fits.writeto(path, rng.normal(100, 5, (80, 100)).astype(np.float32), header)
    frame = read_frame(path)
    said: list[str] = []
    references = References.open(["ztf"], archives=settings)
    [aligned] = references.aligned(frame, say=said.append)
    assert aligned.shape == frame.shape
    assert aligned.info.telescope == "ztf"
    assert served.asked == ["GET /ref/000/field000655/zr/ccd13/q3/ztf_000655_zr_c13_q3_refimg.fits"]
    assert "fetching the ZTF reference of ztf_000655_zr_c13_q3" in said
    assert len(list(references.aligned(frame))) == len(served.asked) == 1  # the second time it is there
    other = tmp_path / "other.fits"
    fits.writeto(other, frame.data, wcs.to_header())
    with pytest.raises(InputError, match=r"other\.fits: not known to be a ZTF image"):
        list(references.aligned(read_frame(other)))


def test_private_data_need_a_session_and_the_password_stays_secret(
    serve: Any, client: HttpClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = ZtfServer(private=True)
    served = serve(server)
    with pytest.raises(NetworkError, match="401"):
        ztf(served, client, tmp_path).fetch_products(FRAME, ["science"])
    archive = ztf(served, client, tmp_path, ztf_user="eve", ztf_password=PASSWORD)
    archive.fetch_products(FRAME, ["science"])
    archive.fetch_products(FRAME, ["mask"])
    assert len(server.forms) == 1  # one session for all
    with HttpClient(Patience(attempts=1)) as other:
        wrong = ztf(served, other, tmp_path / "other", ztf_user="eve", ztf_password="not it")
        with pytest.raises(NetworkError, match="does not know user 'eve'") as caught:
            wrong.fetch_products(FRAME, ["science"])
    for text in (caplog.text, str(caught.value), repr(archive), *served.asked):
        assert PASSWORD not in text
        assert "p%26ss" not in text
        assert "not it" not in text
    with pytest.raises(UsageError, match="TAPETUM_ARCHIVES__ZTF_PASSWORD"):
        ztf(served, client, tmp_path, ztf_user="eve").fetch_products(FRAME, ["science"])


def test_settings_never_show_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tapetum.core.settings import load_settings, without_password, write_settings

    monkeypatch.setenv("TAPETUM_ARCHIVES__ZTF_PASSWORD", PASSWORD)
    settings = load_settings()
    assert settings.archives.ztf_password is not None
    assert settings.archives.ztf_password.get_secret_value() == PASSWORD
    assert without_password(settings.archives.ztf_password) == "***"
    write_settings(tmp_path / "settings.toml", settings, {})
    assert PASSWORD not in (tmp_path / "settings.toml").read_text()
    assert PASSWORD not in repr(settings)


# --- files ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a FITS file"),
        (b"SIMPLE  =                    T" + b" " * 2850, "damaged FITS|cut off"),
        (skymask()[:-2880], "cut off"),
        (skymask()[:5000], "damaged FITS|cut off"),
        (skymask(), None),
    ],
)
def test_only_whole_fits_files_are_kept(tmp_path: Path, content: bytes, words: str | None) -> None:
    path = tmp_path / "x.fits"
    path.write_bytes(content)
    fault = fits_fault(path)
    assert (fault is None) if words is None else re.search(words, str(fault))
