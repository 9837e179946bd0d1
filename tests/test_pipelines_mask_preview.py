"""Which places of a masked image are worth a closer look, and the colours of the classes."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import PIL.Image
from astropy.io import fits
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.images.contaminants import NAMES, Contaminant
from tapetum.pipelines.mask_preview import LAYERS, interesting, legend, preview_png
from tapetum.report.page import Dot

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "mask-contaminants.md"


def test_every_class_has_a_colour_of_its_own():
    assert {layer.name for layer in LAYERS} == set(NAMES) - {"BG"}
    assert all(layer.code == Contaminant[layer.name] for layer in LAYERS)
    assert len({layer.colour for layer in LAYERS}) == len(LAYERS)


def test_the_page_names_codes_and_colours_and_which_classes_are_defects():
    page = PAGE.read_text()
    rows = re.findall(r"^\| `([A-Z]+)` \| (\d+) \| .* \| .*`(#\w{6})` \|$", page, re.MULTILINE)
    assert {name: (int(code), colour) for name, code, colour in rows} == {
        layer.name: (layer.code, layer.colour) for layer in LAYERS
    }
    named = re.search(r"Pixels with (.*?) do not show", page)[1]
    defects = re.findall(r"`([A-Z]+)`", named)
    code, total = re.search(r"codes & (\d+) != 0  # ([\d +]+)", page).groups()
    assert int(code) == sum(Contaminant[name] for name in defects) == sum(map(int, total.split("+")))
    planes = re.search(r"planes\[\[([\d, ]+)\]\]", page)[1]
    assert [NAMES[int(number)] for number in planes.split(",")] == defects
    usable = {"FR", "NEB", "BBG", "BG"}
    assert set(defects) == set(NAMES) - usable


def test_places_show_as_many_classes_as_possible_and_do_not_overlap():
    codes = np.zeros((300, 400), np.uint16)
    codes[40:60, 40:60] |= np.uint16(Contaminant.CR)
    codes[200:230, 300:330] |= np.uint16(Contaminant.TRL)
    codes[205:215, 310:330] |= np.uint16(Contaminant.SAT)
    codes[100:300, :200] |= np.uint16(Contaminant.BBG)  # nothing to see close by
    first, second = interesting(codes, 2, 80)
    inside = [set(np.unique(codes[box.window])) for box in (first, second)]
    assert inside[0] >= {int(Contaminant.TRL), int(Contaminant.TRL | Contaminant.SAT)}
    assert int(Contaminant.CR) in inside[1]
    for box in interesting(codes, 6, 80):
        assert codes[box.window].shape == (80, 80)
    places = interesting(codes, 6, 80)
    for number, one in enumerate(places):
        assert all(max(abs(one.x - other.x), abs(one.y - other.y)) >= 80 for other in places[:number])


def test_where_there_is_nothing_there_is_no_place():
    assert interesting(np.zeros((50, 60), np.uint16), 3, 160) == []
    small = np.zeros((50, 60), np.uint16)
    small[25, 25] = Contaminant.HP
    [box] = interesting(small, 3, 160)
    assert (box.y, box.side) == (0, 50)
    assert small[box.window].any()


def test_the_legend_counts_the_most_frequent_first():
    words = legend({"CR": 1200, "TRL": 30000})
    assert [word for word in words if isinstance(word, str)] == [" TRL 30,000. ", " CR 1,200. "]
    assert words[0] == Dot(next(layer.colour for layer in LAYERS if layer.name == "TRL"))


def test_the_preview_is_as_large_as_it_may_be(rng):
    image = rng.normal(0, 1, (90, 130)).astype(np.float32)
    codes = np.zeros(image.shape, np.uint16)
    codes[10, 20] = Contaminant.CR
    with PIL.Image.open(io.BytesIO(preview_png(image, codes, side=65))) as picture:
        assert picture.size == (65, 45)
        red, green, blue = np.asarray(picture.convert("RGB"))[45 - 1 - 5, 10].astype(int)
    assert red > 200 > 100 > max(green, blue)


def test_every_image_of_a_file_has_a_picture(rng, tmp_path, write_network):
    network = write_network(tmp_path / "net")
    images = [
        fits.ImageHDU(rng.normal(500, 10, shape).astype(np.float32)) for shape in ((64, 70), (2, 60, 60))
    ]
    images[0].data[30, 20] += 900
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "x.fits")
    said = CliRunner().invoke(
        app, ["images", "mask", str(tmp_path / "x.fits"), "--model", str(network), "--preview"]
    )
    assert said.exit_code == 0, said.output
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pictures] == ["x.masks_1.png", "x.masks_2_0.png", "x.masks_2_1.png"]
    with PIL.Image.open(pictures[0]) as picture:
        red, green, _ = np.asarray(picture.convert("RGB"))[63 - 30, 20].astype(int)
    assert red > 200 > 100 > green
    images[1].data[1] = 7  # one of its planes, and the first image, cannot be judged; the names stay
    images[0].data[:] = 7
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "night[2].fits")
    for path in pictures:
        path.unlink()
    command = ["images", "mask", str(tmp_path / "night[2].fits"), "--model", str(network), "--preview"]
    CliRunner().invoke(app, command)
    assert [path.name for path in tmp_path.glob("*.png")] == ["night[2].masks_2_0.png"]
    again = CliRunner().invoke(app, ["images", "mask", str(tmp_path / "x.fits"), "--model", str(network)])
    assert "finished already" in again.output  # pictures are no part of the masks
