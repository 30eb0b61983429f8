"""Read the text in images with RapidOCR, measure how much of an image it covers, and blur it away.

Needs `pip install 'ddpo-rewards[ocr]'`; the models are in the installed package, so no network is needed.

Measured with `python benchmarks/ocr_reading.py` on words over emoji of 64 x 64 pixels, enlarged to 256: of a font of 10
pixels and more all letters are read, of 8 pixels two thirds, of 6 pixels a sixth; of 12 and 16 pixels at an opacity of
0.6 all, of 0.3 nineteen in twenty, of 0.15 a quarter. Writing on a large flat shape that itself passes for a character
can escape it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8

from ddpo_rewards.compute import usable_cores
from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import as_arrays, count_images

Box: TypeAlias = tuple[tuple[float, float], ...]  # four corners (x, y) in pixels of the image, clockwise

SHORTEST_SIDE = 256
_LONGEST_SIDE = 2000  # RapidOCR shrinks what is larger
_GRAIN = 32  # of the sizes that its detector takes
_LEAST_CONFIDENCE = 0.5  # RapidOCR's own bound; below it letters are guesses
_FEWEST_CHARACTERS = 2


class Reading(NamedTuple):
    """What is written in one image, line by line from the top.

    `boxes` has every line that was found, also those that nobody can read; `text` joins the lines that were read
    with a confidence of 0.5 or more, and `confidence` is the mean of theirs (0 where there is no text).
    """

    text: str
    boxes: tuple[Box, ...]
    confidence: float


@dataclass(frozen=True, eq=False)
class TextReader:
    """Loaded OCR models; `shortest_side` (pixels) is what smaller images are enlarged to."""

    engine: Any
    shortest_side: int


def load_reader(*, shortest_side: int = SHORTEST_SIDE, threads: int | None = None) -> TextReader:
    """Load the OCR models, on all usable cores unless told otherwise; takes two seconds the first time.

    Raises:
        RewardError: the extra `ocr` is not installed, or a size or number of threads below 1.
    """
    if shortest_side < 1:
        raise RewardError(f"shortest_side={shortest_side!r} is no size; want 1 pixel or more")
    if threads is not None and threads < 1:
        raise RewardError(f"threads={threads!r} is not positive; want 1 or more, or None for all cores")
    try:
        from rapidocr import RapidOCR

        engine = RapidOCR(params=_settings(shortest_side, threads or usable_cores()))
        engine(np.zeros((shortest_side, shortest_side, 3), np.uint8))  # the models are loaded at the first image
    except ImportError as error:
        raise RewardError(f"reading text needs {error.name or 'rapidocr'}: pip install 'ddpo-rewards[ocr]'") from error
    return TextReader(engine, shortest_side)


def read_text(images: Any, *, reader: TextReader | None = None) -> list[Reading]:
    """Read the text in each image; without a reader, one is loaded for this call.

    Args:
        images: as in `Reward.__call__`.
        reader: what `load_reader` returned.

    Raises:
        RewardError: images of a wrong kind or range, or the extra `ocr` is not installed.

    Example:
        >>> from PIL import Image
        >>> read_text([Image.new("RGB", (64, 64), "white")])
        [Reading(text='', boxes=(), confidence=0.0)]
    """
    count_images(images)
    arrays = as_arrays(images)
    loaded = reader or load_reader()
    return [_read(array, loaded) for array in arrays]


def text_area(boxes: Sequence[Box], *, height: int, width: int) -> float:
    """Share of an image of this size (pixels) that the boxes cover together, 0 to 1.

    Example:
        >>> text_area([((0.0, 0.0), (4.0, 0.0), (4.0, 1.0), (0.0, 1.0))], height=10, width=5)
        0.08
    """
    return float(_covered(boxes, height, width).mean())


def blur_text(images: Any, boxes: Sequence[Sequence[Box]]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Blur what lies in each image's boxes, by half the height of its tallest line; colours stay, letters go.

    Raises:
        RewardError: images of a wrong kind or range, or not one list of boxes per image.
    """
    if len(boxes) != count_images(images):
        raise RewardError(f"got {len(boxes)} lists of boxes for {len(images)} images; want one per image")
    return [_blur(array, own) for array, own in zip(as_arrays(images), boxes, strict=True)]


def _settings(shortest_side: int, threads: int) -> dict[str, Any]:
    return {
        "Global.log_level": "critical",  # an image without text is no news
        "Global.text_score": 0.0,  # boxes that cannot be read are wanted too
        "Global.use_cls": False,  # text upside down stays unread, but is found
        # Enlarging the image here and not in the detector gives the recogniser larger letters as well.
        "Det.limit_side_len": shortest_side,
        "Det.limit_type": "min",
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }


def _read(array: UInt8[np.ndarray, "_ _ 3"], reader: TextReader) -> Reading:
    scale, enlarged = _enlarge(array, reader.shortest_side)
    found = reader.engine(np.ascontiguousarray(enlarged[:, :, ::-1]))  # RapidOCR wants blue first, as OpenCV does
    if found.txts is None:
        return Reading("", (), 0.0)
    lines = [line for line in zip(found.txts, found.boxes, found.scores, strict=True) if _is_writing(line[0])]
    boxes = tuple(tuple((float(x / scale), float(y / scale)) for x, y in box) for _, box, _ in lines)
    legible = [(text, score) for text, _, score in lines if score >= _LEAST_CONFIDENCE]
    confidence = float(np.mean([score for _, score in legible])) if legible else 0.0
    return Reading(" ".join(text for text, _ in legible), boxes, confidence)


def _is_writing(text: str) -> bool:
    """A picture of one subject passes for one character as large as the image, mostly a Chinese one."""
    return sum(character.isalnum() for character in text) >= _FEWEST_CHARACTERS


def _enlarge(array: UInt8[np.ndarray, "_ _ 3"], shortest_side: int) -> tuple[float, UInt8[np.ndarray, "_ _ 3"]]:
    from PIL import Image

    height, width = array.shape[:2]
    scale = min(shortest_side / min(height, width), _LONGEST_SIDE / max(height, width))
    if scale <= 1:
        return 1.0, _thicken(array)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return scale, _thicken(np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)))


def _thicken(array: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Repeat the edge of a strip: RapidOCR brings the longest side to 2000 and rounds the other, which may be to 0."""
    least = max(_GRAIN, -(-max(array.shape) * 2 * _GRAIN // _LONGEST_SIDE))
    height, width = array.shape[:2]
    return np.pad(array, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)), mode="edge")


def _covered(boxes: Sequence[Box], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Whether a pixel's centre lies in a box: on the same side of all its edges."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    covered = np.zeros((height, width), bool)
    for box in boxes:
        edges = zip(box, (*box[1:], box[0]), strict=True)
        sides = np.stack([(b[0] - a[0]) * (rows - a[1]) - (b[1] - a[1]) * (columns - a[0]) for a, b in edges])
        covered |= (sides >= 0).all(0) | (sides <= 0).all(0)
    return covered


def _blur(array: UInt8[np.ndarray, "_ _ 3"], boxes: Sequence[Box]) -> UInt8[np.ndarray, "_ _ 3"]:
    from PIL import Image, ImageFilter

    if not boxes:
        return array
    image = Image.fromarray(array)
    blurred = image.filter(ImageFilter.GaussianBlur(max(map(_line_height, boxes)) / 2))
    return np.where(_covered(boxes, *array.shape[:2])[..., None], np.asarray(blurred), array)


def _line_height(box: Box) -> float:
    corners = np.asarray(box)
    return float(np.linalg.norm(corners[1:] - corners[:-1], axis=1).min())
