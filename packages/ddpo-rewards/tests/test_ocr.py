import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ddpo_rewards import RewardError
from ddpo_rewards.models.ocr import blur_text, load_reader, read_text, text_area


def written(word, size=64, height=14, ground="steelblue", at=None):
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(height)
    draw.text(at or (size / 2, size / 2), word, font=font, anchor="mm", fill="white")
    return image


def rectangle(left, top, right, bottom):
    return ((left, top), (right, top), (right, bottom), (left, bottom))


@pytest.fixture(scope="module")
def reader():
    return load_reader()


@pytest.mark.parametrize("size", [64, 256])
def test_a_word_is_read_where_it_stands(reader, size):
    (reading,) = read_text([written("tiger", size, height=size // 5, at=(size / 2, size / 4))], reader=reader)
    assert reading.text.lower() == "tiger"
    assert 0.5 <= reading.confidence <= 1
    ((*corners,),) = reading.boxes
    middle = np.mean(corners, axis=0)
    assert middle == pytest.approx((size / 2, size / 4), abs=size / 16)


def test_an_image_without_text_reads_as_nothing(reader, pictures):
    assert [reading.text for reading in read_text(pictures, reader=reader)] == [""] * 4
    assert read_text([Image.new("RGB", (64, 64), "olive")], reader=reader) == [("", (), 0.0)]


def test_a_single_character_is_a_picture_and_no_writing(reader):
    assert read_text([written("O", height=50)], reader=reader) == [("", (), 0.0)]


def test_readings_follow_their_images_and_do_not_depend_on_the_batch(reader):
    images = [written("tiger"), Image.new("RGB", (40, 90), "white"), written("horse", 128), written("lion")]
    readings = read_text(images, reader=reader)
    assert [reading.text.lower() for reading in readings] == ["tiger", "", "horse", "lion"]
    assert readings == [read_text([image], reader=reader)[0] for image in images]
    assert readings[::-1] == read_text(images[::-1], reader=reader)


def test_a_tensor_reads_as_the_arrays_it_was_made_of(reader):
    import torch

    arrays = [np.asarray(written(word)) for word in ("tiger", "horse")]
    tensor = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    assert read_text(tensor, reader=reader) == read_text(arrays, reader=reader)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (5000, 3)])
def test_an_odd_shape_is_read_without_an_error(reader, shape):
    assert read_text([np.full((*shape, 3), 200, np.uint8)], reader=reader)[0].text == ""


def test_boxes_that_overlap_are_counted_once():
    # 4 x 2 and 2 x 4 pixels that share 2 x 2: 8 + 8 - 4 = 12 of 100.
    boxes = [rectangle(1.0, 1.0, 5.0, 3.0), rectangle(1.0, 1.0, 3.0, 5.0)]
    assert text_area(boxes, height=10, width=10) == pytest.approx(0.12)
    assert text_area([], height=10, width=10) == 0


def test_half_of_a_square_lies_in_its_triangle():
    # Pixel centres (x + 1/2, y + 1/2) with x + y + 1 <= 100: 5,050 of 10,000, the diagonal included.
    assert text_area([((0.0, 0.0), (100.0, 0.0), (0.0, 100.0))], height=100, width=100) == pytest.approx(0.505)


@given(*[st.floats(-20, 20) for _ in range(4)])
def test_an_area_is_a_share_whatever_the_direction_of_the_corners(left, top, width, height):
    corners = rectangle(left, top, left + abs(width), top + abs(height))
    area = text_area([corners], height=10, width=10)
    assert 0 <= area <= 1
    assert text_area([corners[::-1]], height=10, width=10) == pytest.approx(area, abs=0.2)


def test_blurred_text_cannot_be_read_and_the_rest_stays(reader):
    images = [np.asarray(written("tiger", at=(32, 16))), np.asarray(written("horse", at=(32, 48)))]
    boxes = [reading.boxes for reading in read_text(images, reader=reader)]
    blurred = blur_text(images, boxes)
    assert [reading.text for reading in read_text(blurred, reader=reader)] == ["", ""]
    assert np.array_equal(blurred[0][32:], images[0][32:])
    assert np.array_equal(blurred[1][:32], images[1][:32])
    assert not np.array_equal(blurred[0][:32], images[0][:32])


def test_blurring_leaves_images_without_boxes_as_they_are(pictures):
    before = [picture.copy() for picture in pictures]
    assert np.array_equal(blur_text(pictures, [[]] * 4), before)
    blur_text(pictures, [[rectangle(4.0, 4.0, 20.0, 12.0)]] * 4)
    assert np.array_equal(pictures, before)


def test_bad_input_is_refused_in_words(reader, pictures):
    with pytest.raises(RewardError, match="got 3 lists of boxes for 4 images"):
        blur_text(pictures, [[]] * 3)
    with pytest.raises(RewardError, match="pass a list"):
        read_text(Image.new("RGB", (8, 8)), reader=reader)
    with pytest.raises(RewardError, match="convert it to uint8"):
        read_text([np.zeros((8, 8, 3))], reader=reader)
    with pytest.raises(RewardError, match="shortest_side=0"):
        load_reader(shortest_side=0)
    with pytest.raises(RewardError, match="threads=0"):
        load_reader(threads=0)


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime"])
def test_without_the_extra_one_line_says_what_to_install(monkeypatch, pictures, missing):
    for module in [name for name in sys.modules if name.split(".")[0] in ("rapidocr", "onnxruntime")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RewardError, match=r"^reading text needs .*: pip install 'ddpo-rewards\[ocr\]'$"):
        read_text(pictures)
