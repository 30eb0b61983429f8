"""Pictures of pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpo_cli.grids import PAPER, before_after, grid, save_png, to_pil


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
    images = [plain("red", (10 + 30 * i, 300 - 10 * i)) for i in range(count)]
    assert grid(images, ["x"] * count).width > 0


def test_floats_are_rounded_to_bytes_and_clipped():
    import torch

    image = to_pil(torch.tensor([-0.1, 0.5, 1.1]).view(1, 3, 1, 1))[0]
    assert image.getpixel((0, 0)) == (0, 128, 255)  # 0.5 * 255 = 127.5 rounds to the even 128


def test_before_and_after_show_all_pairs():
    sheet = np.asarray(
        before_after([plain("red")] * 9, [plain("blue")] * 9, captions=(["x"] * 9,) * 2, titles=("a", "b"))
    )
    assert (sheet == (255, 0, 0)).all(-1).sum() == (sheet == (0, 0, 255)).all(-1).sum() == 9 * 128 * 128


def test_a_picture_that_cannot_be_written_leaves_the_old_one(monkeypatch):
    save_png(plain("red"), Path("a/b.png"))
    before = Path("a/b.png").read_bytes()

    class Broken:
        def save(self, path, format):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_png(Broken(), Path("a/b.png"))
    assert Path("a/b.png").read_bytes() == before
    assert [path.name for path in Path("a").iterdir()] == ["b.png"]
