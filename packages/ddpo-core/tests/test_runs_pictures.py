"""Pictures of pictures, and the curve of a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpo_core.runs.pictures import (
    PAPER,
    TILES,
    before_after,
    grid,
    line_chart,
    read_tiles,
    save_animation,
    save_png,
    save_tiles,
    ticks,
    to_pil,
)


def plain(colour: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_small_images_are_enlarged_without_smoothing_and_stand_in_order():
    sheet = np.asarray(grid([plain("red"), plain("blue")], ["", ""], columns=2))
    red, blue = (sheet == (255, 0, 0)).all(-1), (sheet == (0, 0, 255)).all(-1)
    assert red.sum() == blue.sum() == 128 * 128
    assert np.argwhere(red)[:, 1].max() < np.argwhere(blue)[:, 1].min()


def test_captions_are_drawn_below_and_long_ones_are_cut():
    bare, told = (np.asarray(grid([plain("white")], [text])) for text in ("", "a fox " * 50))
    assert (bare == PAPER[0]).all()
    assert (told != PAPER[0]).any()
    assert told.shape[0] - bare.shape[0] == 3 * 15  # three lines and no more; an empty caption takes none


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17])
def test_any_number_of_images_of_any_size_fits(count):
    images = [plain("red", (200 + 10 * i, 400 - 10 * i)) for i in range(count)]
    red = (np.asarray(grid(images, ["x"] * count)) == (255, 0, 0)).all(-1)
    assert red.sum() == sum(image.width * image.height for image in images)  # none is cut or covered


def test_floats_are_rounded_to_bytes_and_clipped():
    import torch

    image = to_pil(torch.tensor([-0.1, 0.5, 1.1]).view(1, 3, 1, 1))[0]
    assert image.getpixel((0, 0)) == (0, 128, 255)  # 0.5 * 255 = 127.5 rounds to the even 128


def test_before_and_after_show_all_pairs():
    sheet = np.asarray(
        before_after([plain("red")] * 9, [plain("blue")] * 9, captions=(["x"] * 9,) * 2, titles=("a", "b"))
    )
    assert (sheet == (255, 0, 0)).all(-1).sum() == (sheet == (0, 0, 255)).all(-1).sum() == 9 * 128 * 128


def test_pictures_follow_each_other_in_an_animation_and_the_last_stays_longest(tmp_path):
    path = tmp_path / "series.webp"
    save_animation([(plain("red"), "before"), (plain("blue", (80, 64)), "after")], path)
    with Image.open(path) as animation:
        assert (animation.n_frames, animation.size) == (2, (80, 64 + 21))
        durations = []
        for frame, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
            animation.seek(frame)
            animation.load()
            durations.append(animation.info["duration"])
            middle = animation.convert("RGB").getpixel((32, 53))
            assert all(abs(seen - wanted) < 30 for seen, wanted in zip(middle, colour, strict=True))
        assert durations == [600, 3000]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a" / "b.png"
    save_png(plain("red"), path)
    before = path.read_bytes()

    class Broken(Image.Image):
        def save(self, path, format):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_png(Broken(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["b.png"]


def test_ticks_are_round_numbers_within_the_range():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(640.0, 1600.0) == [800.0, 1000.0, 1200.0, 1400.0, 1600.0]


def test_a_rising_curve_rises_in_the_picture():
    picture = np.asarray(line_chart([64, 128, 192], [-3.0, -2.0, -1.0], band=[0.1] * 3, title="reward", x_label="x"))
    is_curve = (np.abs(picture.astype(int) - (31, 119, 180)).sum(2)) < 60
    columns = np.flatnonzero(is_curve.any(0))
    heights = [np.flatnonzero(is_curve[:, column]).mean() for column in columns]
    assert heights[0] > heights[len(heights) // 2] > heights[-1]  # rows count downwards


@pytest.mark.parametrize("values", [[2.0], [0.0, 0.0], [1e-9, 2e-9], [-1e6, 1e6]])
def test_any_curve_can_be_drawn(values):
    drawn = line_chart(range(len(values)), values, band=[0.0] * len(values), title="t", x_label="x")
    assert drawn.size == (720, 400)


@pytest.mark.parametrize("sizes", [[(64, 64)] * 5, [(16, 16)], [(300, 200), (20, 40), (128, 128)]])
def test_images_are_read_from_their_grid_pixel_for_pixel(tmp_path, sizes):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(256, size=(h, w, 3), dtype=np.uint8)) for w, h in sizes]
    told = [{"prompt": "a “fox” \x1b", "seed": seed, "info": {"caption": None}} for seed in range(len(images))]
    save_tiles(tmp_path / "grid.png", images, ["a long caption " * 9] * len(images), described=told)
    tiles = read_tiles(tmp_path / "grid.png")
    assert [tile.described for tile in tiles] == told
    for tile, image in zip(tiles, images, strict=True):
        assert np.array_equal(tile.image, image)
    with Image.open(tmp_path / "grid.png") as written:
        assert np.array_equal(written, grid(images, ["a long caption " * 9] * len(images)))


@pytest.mark.parametrize(
    "chunk", [None, "", "{", "7", "[7]", '[{"box": [0, 0, 9, 9]}]', '[{"box": [0, 0, 9], "scale": 1}]',
              '[{"box": [0, 0, 900, 9], "scale": 1}]', '[{"box": [0, 0, 9, 9], "scale": 0}]']
)  # fmt: skip
def test_a_picture_that_does_not_say_where_its_tiles_are_is_one_tile(tmp_path, chunk):
    told = PngInfo()
    if chunk is not None:
        told.add_itxt(TILES, chunk)
    plain("red").save(tmp_path / "any.png", pnginfo=told)
    ((image, described),) = read_tiles(tmp_path / "any.png")
    assert (image.size, described) == ((64, 64), {})
