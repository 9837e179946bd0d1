"""The masks of the demo: made once, shown with their colours, and told how to make again."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from astropy.io import fits

from tapetum.core.errors import InputError
from tapetum.core.settings import Settings
from tapetum.finders.contaminants import MODEL
from tapetum.images.mask_codes import read_codes
from tapetum.pipelines.demo_masks import mask_image, mask_sections
from tapetum.report.page import Page, render_page

HITS = [(60, 70), (61, 200), (150, 120)]


@pytest.fixture
def image(rng: np.random.Generator, tmp_path: Path) -> Path:
    data = rng.normal(500, 10, (200, 260)).astype(np.float32)
    for y, x in HITS:
        data[y, x] += 900
    fits.PrimaryHDU(data).writeto(tmp_path / "night.fits")
    return tmp_path / "night.fits"


@pytest.fixture
def network(tmp_path: Path, write_network: Callable[..., Path]) -> str:
    return str(write_network(tmp_path / "net"))


def test_the_masks_are_shown_with_counts_places_and_the_command(
    image: Path, network: str, tmp_path: Path
) -> None:
    report = mask_image(image, tmp_path / "masks", Settings(), model=network)
    assert report is not None
    assert report.counts == {"CR": 3}
    assert np.argwhere(read_codes(report.file, image)[0]).tolist() == [list(place) for place in HITS]
    with PIL.Image.open(report.preview) as picture:
        assert picture.size == (260, 200)
    assert 1 <= len(report.zooms) <= 3
    assert sum(counts["CR"] for counts, _ in report.zooms) <= 3
    page = unescape(render_page(Page("x", "", mask_sections(report, "The first epoch, masked"))))
    for words in ("The first epoch, masked", "sharp 1.0.0", " CR 3. ", "cosmic rays", "Place 1"):
        assert words in page
    assert page.count("data:image/png") == 1 + 2 * len(report.zooms)
    assert report.command.startswith(f"tapetum images mask {image} -o {tmp_path / 'masks'} ")


def test_finished_masks_are_not_made_again(image: Path, network: str, tmp_path: Path) -> None:
    first = mask_image(image, tmp_path / "masks", Settings(), model=network)
    before = first.file.stat().st_mtime_ns
    again = mask_image(image, tmp_path / "masks", Settings(), model=network)
    assert (again.seconds, again.counts) == (None, first.counts)
    assert again.file.stat().st_mtime_ns == before
    anew = mask_image(image, tmp_path / "masks", Settings(), model=network, overwrite=True)
    assert anew.seconds > 0
    assert anew.file.stat().st_mtime_ns > before


def test_the_default_network_is_taken_where_it_is_installed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_network: Callable[..., Path]
) -> None:
    from tapetum.models.registry import imported_dir

    monkeypatch.setattr("tapetum.models.registry._packaged", list)  # whatever comes with the package
    assert mask_image(image, tmp_path / "masks", Settings()) is None
    write_network(imported_dir() / MODEL / "1.0.0", MODEL)
    report = mask_image(image, tmp_path / "masks", Settings())
    assert report.network == "contaminants 1.0.0"
    assert "--model" not in report.command


def test_an_image_that_cannot_be_masked_is_named(network: str, tmp_path: Path) -> None:
    path = tmp_path / "blank.fits"
    fits.PrimaryHDU(np.full((64, 64), 7, np.float32)).writeto(path)
    with pytest.raises(InputError, match=r"blank\.fits"):
        mask_image(path, tmp_path / "masks", Settings(), model=network)
