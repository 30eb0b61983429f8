import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpo_rewards import RewardError, get_reward
from ddpo_rewards.builtin.jpeg import _scratch_file, jpeg_sizes


def saved(picture, quality=95):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_sizes_are_those_of_pillow_to_the_byte(height, width, quality, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert jpeg_sizes([Image.fromarray(picture)], quality=quality) == [len(saved(picture, quality))]


def test_the_scratch_file_receives_the_very_bytes(pictures):
    with _scratch_file() as file:
        Image.fromarray(pictures[0]).save(file, "JPEG", quality=95)
        import os

        assert os.pread(file.fileno(), file.tell(), 0) == saved(pictures[0])


def test_a_real_picture_has_the_size_that_pillow_saves(test_data):
    picture = np.asarray(Image.open(test_data / "astronaut.png").convert("RGB"))
    batch = [picture, picture[:300], picture[:, :200]] * 8
    assert jpeg_sizes([Image.fromarray(p) for p in batch]) == [len(saved(p)) for p in batch]


def test_scores_are_signed_kilobytes_of_one_thousand_bytes(pictures):
    kilobytes = [len(saved(picture)) / 1000 for picture in pictures]
    assert get_reward("jpeg_incompressibility")(pictures).scores == pytest.approx(kilobytes)
    scores, info = get_reward("jpeg_compressibility")(pictures)
    assert scores == pytest.approx([-size for size in kilobytes])
    assert info["kilobytes"] == kilobytes
    # 32 x 32 pixels are 0.001024 megapixels.
    assert info["kilobytes_per_megapixel"] == pytest.approx([size / 0.001024 for size in kilobytes])


def test_floats_are_rounded_and_not_truncated():
    # 0.6 / 255 is nearer to 1 / 255 than to 0.
    almost_one = torch.full((1, 3, 16, 16), 0.6 / 255)
    one = [np.full((16, 16, 3), 1, np.uint8)]
    reward = get_reward("jpeg_compressibility")
    assert reward(almost_one).scores == reward(one).scores


def test_a_comment_in_a_jpeg_file_is_not_counted(tmp_path, pictures):
    plain, commented = tmp_path / "plain.jpg", tmp_path / "commented.jpg"
    Image.fromarray(pictures[0]).save(plain)
    Image.fromarray(pictures[0]).save(commented, comment=b"x" * 100)
    scores = get_reward("jpeg_compressibility")([plain, commented]).scores
    assert scores[0] == scores[1]


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(RewardError, match=f"quality={quality}"):
        get_reward(f"jpeg_compressibility?quality={quality}")
