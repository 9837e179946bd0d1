"""Contaminant masks read back as codes: planes, single masks, cubes and files of many images, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from tapetum.core.errors import InputError, LimitError
from tapetum.core.limits import Limits
from tapetum.images.contaminants import NAMES, Contaminant
from tapetum.images.mask_codes import class_counts, class_words, masks_of, read_codes

SHAPE = (20, 30)


def codes_of(rng):
    codes = np.zeros(SHAPE, np.int16)
    for code in Contaminant:
        codes[rng.random(SHAPE) < 0.05] |= int(code)
    return codes


def planes_of(codes, names=NAMES):
    """One plane per class, and the header that says which."""
    header = fits.Header({f"{name}_DIM": str(number) for number, name in enumerate(names)})
    layers = [codes & Contaminant[name] != 0 if name != "BG" else codes == 0 for name in names]
    return np.array(layers, np.uint8), header


def image(path, shape=SHAPE, **more):
    fits.PrimaryHDU(np.arange(np.prod(shape), dtype=np.float32).reshape(shape)).writeto(path, **more)
    return str(path)


@pytest.mark.parametrize("names", [NAMES, ("TRL", "CR"), (*NAMES[:4], "BG")])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_planes_become_codes(rng, tmp_path, names, suffix):
    source, codes = image(tmp_path / "x.fits"), codes_of(rng)
    planes, header = planes_of(codes, names)
    header["MODEL"], header["MODELVER"] = "net", "1.2.3"
    fits.PrimaryHDU(planes, header).writeto(tmp_path / f"x.masks{suffix}")
    masks = masks_of(source)
    assert masks == tmp_path / f"x.masks{suffix}"
    found, origin = read_codes(masks, source)
    known = sum(Contaminant[name] for name in names if name != "BG")
    np.testing.assert_array_equal(found, codes & known)
    assert (found.dtype, origin) == (np.uint16, "net 1.2.3")


def test_a_single_mask_is_taken_as_it_is(rng, tmp_path):
    source, codes = image(tmp_path / "x.fits"), codes_of(rng)
    header = fits.Header({"SMASK": "Yes", "CR_SM": 1})
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(codes, header)]).writeto(tmp_path / "x.masks.fits.fz")
    found, origin = read_codes(masks_of(source), source)
    np.testing.assert_array_equal(found, codes)
    assert origin == ""
    counts = class_counts(found)
    assert counts == {code.name: int((codes & code != 0).sum()) for code in Contaminant}
    assert class_words(found).startswith(f"CR {counts['CR']}, HCL ")
    assert class_words(np.zeros(SHAPE, np.uint16)) == "none"


def test_the_masks_of_an_extension_are_its_own_or_those_at_its_place(rng, tmp_path):
    parts = [
        fits.PrimaryHDU(),
        fits.ImageHDU(np.eye(20), name="A"),
        fits.ImageHDU(np.ones((3, *SHAPE)) * 2.0),
    ]
    parts[2].data[0, 0, 0] = 1
    fits.HDUList(parts).writeto(tmp_path / "x.fits")
    cube = [codes_of(rng) for _ in range(3)]
    planes, header = planes_of(cube[0])
    stack = np.array([planes_of(codes)[0] for codes in cube])
    other = planes_of(np.zeros((20, 20), np.int16))
    masks = [fits.PrimaryHDU(), fits.ImageHDU(*other, name="A"), fits.ImageHDU(stack, header)]
    fits.HDUList(masks).writeto(tmp_path / "x.masks.fits")
    for plane, codes in enumerate(cube):
        source = f"{tmp_path / 'x.fits'}[2][{plane}]"
        np.testing.assert_array_equal(read_codes(masks_of(source), source)[0], codes)
    assert not read_codes(masks_of(tmp_path / "x.fits"), tmp_path / "x.fits")[0].any()  # A is the first image
    fits.PrimaryHDU(planes * 0, header).writeto(tmp_path / "x.masks2_1.fits")
    source = f"{tmp_path / 'x.fits'}[2][1]"
    assert masks_of(source).name == "x.masks2_1.fits"
    assert not read_codes(masks_of(source), source)[0].any()
    assert masks_of(f"{tmp_path / 'x.fits'}[9]") is None


def test_masks_may_lie_elsewhere(tmp_path):
    source = image(tmp_path / "x.fits")
    (tmp_path / "masks").mkdir()
    image(tmp_path / "masks" / "x.masks.fits")
    assert masks_of(source) is None
    assert masks_of(source, tmp_path / "masks") == tmp_path / "masks" / "x.masks.fits"


def test_masks_may_be_as_many_times_larger_as_there_are_classes(rng, tmp_path):
    source, codes = image(tmp_path / "x.fits"), codes_of(rng)
    fits.PrimaryHDU(*planes_of(codes)).writeto(tmp_path / "x.masks.fits")
    limits = Limits(image_file_bytes=codes.size)
    np.testing.assert_array_equal(read_codes(tmp_path / "x.masks.fits", source, limits=limits)[0], codes)
    with pytest.raises(LimitError):
        read_codes(tmp_path / "x.masks.fits", source, limits=Limits(image_pixels=codes.size - 1))


def test_compressed_masks_have_an_empty_part_before_them(rng, tmp_path):
    parts = [fits.PrimaryHDU(np.eye(20)), fits.ImageHDU(np.eye(20))]
    fits.HDUList(parts).writeto(tmp_path / "x.fits")
    codes = np.array([np.full((20, 20), 1), np.full((20, 20), 2)], np.int16)
    header = fits.Header({"SMASK": "Yes"})
    masks = [fits.PrimaryHDU(), *(fits.CompImageHDU(each, header) for each in codes)]
    fits.HDUList(masks).writeto(tmp_path / "x.masks.fits.fz")
    for number in (0, 1):
        source = f"{tmp_path / 'x.fits'}[{number}]"
        np.testing.assert_array_equal(read_codes(masks_of(source), source)[0], codes[number])


def test_what_is_no_mask_of_the_image_is_refused(rng, tmp_path):
    source, masks = image(tmp_path / "x.fits"), tmp_path / "m.fits"
    planes, header = planes_of(codes_of(rng))

    def written(data, **cards):
        fits.PrimaryHDU(data, fits.Header({**header, **cards})).writeto(masks, overwrite=True)
        return masks

    for data, cards, reason in (
        (planes[:, :9], {}, "do not fit .* 30 x 9 and 30 x 20"),
        (planes.astype(np.float32), {}, "probabilities"),
        (planes, {"THRESH": "No"}, "probabilities"),
        (planes, {"CR_DIM": "first"}, "names no classes"),
        (planes[:5], {}, "5 planes; 14 are needed"),
    ):
        with pytest.raises(InputError, match=reason):
            read_codes(written(data, **cards), source)
    fits.PrimaryHDU(planes).writeto(masks, overwrite=True)
    with pytest.raises(InputError, match="names no classes"):
        read_codes(masks, source)
    with pytest.raises(InputError, match="no such file"):
        read_codes(tmp_path / "nowhere.fits", source)
