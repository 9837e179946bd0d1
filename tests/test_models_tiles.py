"""Tiles: every pixel is answered once, far from borders that are not the frame's; tiles and a whole frame agree."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tapetum.models.tiles import original_tiles, plan_tiles, run_tiles

SHAPES = [(1, 1), (31, 64), (33, 500), (500, 33), (640, 640), (1000, 731)]


class Neighbours:
    """Stands in for a network: the sum over a neighbourhood, and the phase within a grid that starts with the tile."""

    def __init__(self, reach, multiple):
        self.reach, self.multiple, self.batches = reach, multiple, []

    def maps(self, frames, core=(slice(None), slice(None))):
        self.batches.append(frames.shape)
        n = 2 * self.reach + 1
        total = np.stack([ndimage.uniform_filter(frame[0], n, mode="constant") * n * n for frame in frames])
        y, x = np.indices(frames.shape[2:]) % self.multiple
        return np.stack([total, np.broadcast_to(10 * y + x, total.shape)], axis=1).astype(np.float32)[
            :, :, *core
        ]


def run(model, image, tiles, **settings):
    out = np.full((2, *image.shape), np.nan, np.float32)

    def consume(place, maps):
        assert maps.shape[1:] == out[:, *place].shape[1:]
        out[:, *place] = maps

    run_tiles(model, image, tiles, consume, **settings)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("side", "margin", "multiple"), [(200, 40, 16), (128, 0, 32), (400, 156, 32), (90, 7, 1)]
)
def test_plan_answers_every_pixel_once_and_far_from_borders(shape, side, margin, multiple):
    tiles = plan_tiles(shape, side=side, margin=margin, multiple=multiple)
    times = np.zeros(shape, int)
    for tile in tiles:
        times[tile.core] += 1
        assert tile.n_y * tile.n_x <= side * side
        assert (tile.n_y, tile.n_x) == (tiles[0].n_y, tiles[0].n_x)
        for start, size, core, n in zip(
            (tile.y, tile.x), (tile.n_y, tile.n_x), tile.core, shape, strict=True
        ):
            assert start % multiple == size % multiple == 0
            assert start == 0 or core.start - start >= margin
            assert start + size >= n or start + size - core.stop >= margin
            assert start + size < n + multiple
    assert (times == 1).all()


def test_plan_takes_the_grid_that_sees_fewest_pixels():
    tiles = plan_tiles((1000, 100), side=300, margin=20, multiple=4)
    assert (tiles[0].n_x, len(tiles)) == (100, 2)  # long tiles over the whole width, not squares
    assert len(plan_tiles((300, 300), side=300, margin=20)) == 1
    whole = plan_tiles((4096, 4096), side=1448, margin=156, multiple=32)
    assert len(whole) * whole[0].n_y * whole[0].n_x < 1.5 * 4096**2


def test_plan_needs_room_for_the_margin():
    with pytest.raises(ValueError, match="tiles of 300 x 300 pixels are too small; at least 352 x 352"):
        plan_tiles((4000, 4000), side=300, margin=156, multiple=32)


@pytest.mark.parametrize("side", [48, 64, 97, 1000])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_give_what_the_whole_frame_gives(rng, side, batch):
    image = rng.normal(0, 1, (150, 201)).astype(np.float32)
    whole = np.zeros((1, 1, 152, 208), np.float32)
    whole[0, 0, :150, :201] = image
    model = Neighbours(5, 8)
    expected = model.maps(whole)[0, :, :150, :201]
    tiled = run(model, image, plan_tiles(image.shape, side=side, margin=5, multiple=8), batch=batch)
    assert abs(tiled - expected).max() < 1e-4


def test_tiles_go_through_together_when_asked(rng):
    image = rng.normal(0, 1, (50, 600)).astype(np.float32)
    model = Neighbours(1, 1)
    tiles = plan_tiles(image.shape, side=60, margin=2)
    run(model, image, tiles, batch=4)
    sizes = [shape[0] for shape in model.batches]
    assert sum(sizes) == len(tiles)
    assert max(sizes) == 4


@pytest.mark.parametrize(
    ("shape", "n"),  # as the original counts them; 600 has its last regular tile at the border
    [((4096, 4096), 400), ((4094, 2046), 200), ((3080, 3072), 225), ((400, 400), 1), ((600, 401), 4)],
)
def test_original_tiles(shape, n):
    tiles = original_tiles(shape)
    assert len(tiles) == n
    times = np.zeros(shape, int)
    for tile in tiles:
        assert (tile.n_y, tile.n_x) == (400, 400)
        assert tile.y + 400 <= shape[0]
        assert tile.x + 400 <= shape[1]
        times[tile.core] += 1
    assert times.min() == 1


def test_original_tiles_answer_with_their_middle_and_the_border_with_the_last():
    tiles = original_tiles((400, 900))
    assert [tile.x for tile in tiles] == [0, 200, 400, 500]
    assert [tile.core[1] for tile in tiles] == [
        slice(0, 300),
        slice(300, 500),
        slice(500, 700),
        slice(600, 900),
    ]


def test_a_frame_smaller_than_the_original_tile_is_filled_up(rng):
    image = rng.normal(0, 1, (90, 420)).astype(np.float32)
    model = Neighbours(3, 1)
    total = run(model, image, original_tiles(image.shape))[0]
    padded = np.zeros((1, 1, 400, 420), np.float32)
    padded[0, 0, :90] = image
    assert abs(total - model.maps(padded)[0, 0, :90]).max() < 1e-4
