"""Every oddity that a folder of images holds has one defined answer."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ddpo_rewards import ImageError, RewardError, load_image
from ddpo_rewards.images import MAX_PIXELS

RED = (255, 0, 0)


def pixels(path):
    return np.asarray(load_image(path)).tolist()


def png_of_size(width, height):
    """A valid PNG header that promises a size, with no pixels behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F", "HSV", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = {"CMYK": "jpg", "HSV": "tiff", "YCbCr": "jpg", "F": "tiff"}.get(mode, "png")
    path = tmp_path / f"image.{suffix}"
    image = Image.new("RGB", (5, 3), RED)
    if mode == "HSV":
        image.save(path)
    else:
        (Image.new(mode, (5, 3)) if mode in ("I;16", "F") else image.convert(mode)).save(path)
    loaded = load_image(path)
    assert (loaded.mode, loaded.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_is_laid_on_white(tmp_path, suffix):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)])  # opaque red, nothing, a fifth of black
    image.save(tmp_path / f"a.{suffix}", lossless=True, exact=True)
    assert pixels(tmp_path / f"a.{suffix}") == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert pixels(tmp_path / "a.png") == [[[255, 0, 0], [255, 255, 255]]]


def test_an_rgb_image_with_a_transparent_colour_is_laid_on_white(tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png", transparency=RED)
    assert pixels(tmp_path / "a.png") == [[[255, 255, 255]]]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    # 65535 / 257 = 255 and 32896 / 257 = 128; Pillow's own conversion would clip both to 255.
    values = np.array([[0, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotation_is_applied(tmp_path, orientation):
    # Whatever the orientation of the stored pixels, the upright picture has its red stripe at the top.
    upright = Image.new("RGB", (16, 16), "blue")
    upright.paste(RED, (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(np.asarray(load_image(tmp_path / "a.jpg"), int) - np.asarray(upright, int)).max() < 4


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0][0] == [255, 0, 0]


def test_a_profile_and_a_text_change_nothing(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "a cat")
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png", pnginfo=info, icc_profile=b"not a profile")
    assert pixels(tmp_path / "a.png") == [[[255, 0, 0]]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix):
    whole, half = tmp_path / f"whole.{suffix}", tmp_path / f"half.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"half.{suffix}' is (damaged or truncated|no image)"):
        load_image(half)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"this is no image", "is no image"),
        ("bomb.png", png_of_size(50_000, 50_000), "more than 89,478,485 pixels"),
        ("large.png", png_of_size(10_000, 10_000), "more than 89,478,485 pixels"),
    ],
)
def test_a_file_that_holds_no_usable_image_is_an_error_that_names_it(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"{name}'.*{complaint}"):
        load_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_pillow_only_warns_of_is_refused_all_the_same(tmp_path):
    (tmp_path / "large.png").write_bytes(png_of_size(10_000, 10_000))
    with pytest.raises(ImageError, match="more than 89,478,485 pixels"):
        load_image(tmp_path / "large.png")


def test_the_pixel_limit_is_that_of_pillow():
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path)
    assert issubclass(ImageError, RewardError)
    assert issubclass(RewardError, ValueError)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"]))
def test_any_bytes_are_an_image_or_an_error_that_names_the_file(tmp_path_factory, content, magic):
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(magic + content)
    try:
        assert load_image(path).mode == "RGB"
    except ImageError as error:
        message = str(error)
        assert "fuzz.bin" in message
