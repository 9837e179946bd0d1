"""Stamps: identical pixels to astropy's, and every kind of damage named."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.records import to_record
from tapetum.alerts.stamps import compress, inflate, read_stamp, write_stamp
from tapetum.core.errors import FormatError, InputError, LimitError
from tapetum.core.limits import Limits


def as_fits(array, **cards) -> bytes:
    out = io.BytesIO()
    hdu = fits.PrimaryHDU(array)
    hdu.header.update(cards)
    hdu.writeto(out)
    return out.getvalue()


def astropy_pixels(raw: bytes):
    with fits.open(io.BytesIO(raw), ignore_missing_simple=True) as hdus:
        return next(h.data for h in hdus if h.data is not None and h.data.ndim == 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.uint8])
@pytest.mark.parametrize("packed", [True, False])
def test_every_type_as_astropy_reads_it(rng, dtype, packed):
    image = rng.normal(100, 20, (17, 23)).astype(dtype)
    raw = as_fits(image)
    ours = read_stamp(gzip.compress(raw) if packed else raw)
    np.testing.assert_array_equal(ours, astropy_pixels(raw))


def test_scaled_blank_and_long_headers_go_through_astropy(rng):
    stored = as_fits(rng.integers(0, 60000, (9, 9)).astype(np.uint16))  # BZERO = 32768
    np.testing.assert_array_equal(read_stamp(stored), astropy_pixels(stored))
    long_header = as_fits(rng.normal(size=(9, 9)).astype(np.float32), **{f"KEY{i}": i for i in range(60)})
    np.testing.assert_array_equal(read_stamp(long_header), astropy_pixels(long_header))
    several = io.BytesIO()
    planes = [rng.normal(size=(5, 7)) for _ in range(3)]
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(p) for p in planes)]).writeto(several)
    np.testing.assert_array_equal(read_stamp(several.getvalue()), planes[0])


def test_missing_simple_card_is_tolerated(rng):
    raw = as_fits(rng.normal(size=(9, 9)).astype(np.float32))
    without = raw[80:2880] + b" " * 80 + raw[2880:]
    np.testing.assert_array_equal(read_stamp(without), astropy_pixels(raw))


def test_nan_survives_and_write_is_the_inverse_of_read(rng):
    image = rng.normal(size=(63, 40)).astype(np.float32)
    image[3, 4] = np.nan
    np.testing.assert_array_equal(read_stamp(write_stamp(image)), image)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "it is empty"),
        (b"\xff\xd8\xff\xe0" + b"x" * 5000, "JPEG"),
        (b"\x89PNG" + b"x" * 5000, "PNG"),
        (b"nonsense" * 1000, "not a FITS file"),
        (compress(b"nonsense" * 1000), "not a FITS file"),
        (compress(b"x" * 5000)[:-9], "truncated"),
    ],
    ids=["empty", "jpeg", "png", "text", "packed text", "cut short"],
)
def test_what_is_not_a_stamp_is_named(data, error):
    with pytest.raises(FormatError, match=error):
        read_stamp(data)


def test_wrong_checksum_is_an_error(rng):
    data = bytearray(write_stamp(rng.normal(size=(63, 63))))
    data[-6] ^= 0xFF
    with pytest.raises(FormatError, match="damaged"):
        read_stamp(bytes(data))


def test_truncated_pixels_are_an_error(rng):
    raw = as_fits(rng.normal(size=(63, 63)).astype(np.float32))
    with pytest.raises(FormatError, match="truncated"):
        read_stamp(raw[: 2880 + 1000])


def test_bombs_are_refused_before_they_burst():
    with pytest.raises(LimitError, match="after decompression"):
        inflate(compress(bytes(50_000_000)), Limits(stamp_bytes=1_000_000))
    header = "".join(
        card.ljust(80)
        for card in [
            "SIMPLE  = T",
            "BITPIX  = -32",
            "NAXIS   = 2",
            "NAXIS1  = 2000000",
            "NAXIS2  = 2000000",
            "END",
        ]
    )
    with pytest.raises(LimitError, match="axis of 2000000"):
        read_stamp(header.ljust(2880).encode())


def test_absurd_naxis_is_refused():
    header = "".join(card.ljust(80) for card in ["SIMPLE  = T", "BITPIX  = -32", "NAXIS   = 999", "END"])
    with pytest.raises(InputError):
        read_stamp(header.ljust(2880).encode() + bytes(2880))


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(min_size=1, max_size=80), at=st.integers(0, 2880 + 500), keep=st.integers(0, 2880 * 2))
def test_noise_in_a_stamp_is_pixels_or_an_input_error(noise, at, keep):
    raw = bytearray(as_fits(np.zeros((11, 13), np.float32)))
    raw[at : at + len(noise)] = noise
    try:
        image = read_stamp(bytes(raw[:keep]))
    except InputError:
        return
    assert image.ndim == 2


def test_real_stamps_have_the_pixels_astropy_reads(real_data: Path):
    folder = real_data / "alerts"
    seen = 0
    for name in ("pgir", "wntr", "turbo"):
        for packet in iter_packets([folder / name]):
            assert isinstance(packet, Packet)
            record = to_record(packet)
            for key in record:
                if "utout" in key:
                    raw = record[key] if record[key][:2] != b"\x1f\x8b" else gzip.decompress(record[key])
                    np.testing.assert_array_equal(read_stamp(record[key]), astropy_pixels(raw))
                    seen += 1
    rubin = pq.read_table(folder / "rubin_alerts.parquet")
    for key in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        for raw in rubin[key].to_pylist()[:9]:
            np.testing.assert_array_equal(read_stamp(raw), astropy_pixels(raw))
            seen += 1
    assert seen > 90
