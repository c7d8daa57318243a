import io

import numpy as np
import pytest
from PIL import Image

from align_jax.errors import InputError
from benchmarks.calibration import AUGMENTATIONS, calibrate, least_score


def picture(seed: int) -> bytes:
    """Draws smooth noise from a seed; every third picture is half transparent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 4), np.uint8)
    pixels[..., 3] = 255 if seed % 3 else np.tri(6) * 255
    file = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def test_least_score_is_the_loosest_of_the_precision():
    scores = np.array([9, 8, 7, 6, 5, 5, 4])
    positive = np.array([1, 1, 0, 1, 1, 1, 0], bool)
    assert least_score(scores, positive, 1.0) == 8
    assert least_score(scores, positive, 0.75) == 5
    assert least_score(scores, positive, 0.7) == 4
    # Equal scores are marked together or not at all.
    assert least_score(np.array([5, 5]), np.array([True, False]), 0.9) is None


def test_augmentations_change_the_picture_and_depend_on_the_seed_alone():
    with Image.open(io.BytesIO(picture(1))) as file:
        plain = file.convert("RGB")
    for name, augment in AUGMENTATIONS.items():
        first, again = (augment(plain, np.random.default_rng(4)) for _ in range(2))
        assert first.tobytes() == again.tobytes(), name
        assert (first.size, first.tobytes()) != (plain.size, plain.tobytes()), name
    assert plain.size == (64, 64)


def mean_colours(images: list[bytes]) -> np.ndarray:
    """Embeds the colours of 4 x 4 patches, plus their mirror: flips change nothing."""
    small = []
    for image in images:
        with Image.open(io.BytesIO(image)) as file:
            assert file.mode == "RGB"
            pixels = np.asarray(file.resize((4, 4), Image.Resampling.BOX), float)
        small.append((pixels + pixels[:, ::-1]).ravel() - 255)
    vectors = np.array(small)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def test_calibration_finds_copies_and_reports_both_detectors():
    images = [picture(seed) for seed in range(80)]
    rows = calibrate(mean_colours, images)
    assert rows == calibrate(mean_colours, images)
    found = {(row["detector"], row["augmentation"]): row for row in rows}
    assert len(rows) == len(found) == 2 * 7
    for detector in ("hash", "embedding"):
        every = found[detector, "all"]
        # 20 of 40 evaluation images and 20 of 40 others serve to measure.
        assert (every["positives"], every["negatives"]) == (120, 140)
        assert found[detector, "crop"]["negatives"] == 20
        assert every["precision"] > 0.95
        assert every["recall"] > 0.5
        assert found[detector, "jpeg"]["recall"] == 1
    assert isinstance(found["hash", "all"]["threshold"], int)
    assert found["hash", "flip"]["recall"] < 0.5
    assert found["embedding", "flip"]["recall"] == 1
    assert calibrate(None, images) == rows[:7]


def test_a_detector_that_sees_no_difference_marks_nothing():
    def same(images):
        return np.ones((len(images), 1), np.float32)

    rows = calibrate(same, [picture(seed) for seed in range(24)])
    assert [row["threshold"] for row in rows[7:]] == [None] * 7
    assert all(row["recall"] == 0 and row["precision"] is None for row in rows[7:])


def test_calibration_refuses_what_it_cannot_read():
    with pytest.raises(InputError, match="at least 8"):
        calibrate(None, [picture(0)] * 7)
    with pytest.raises(InputError, match="picture 3"):
        calibrate(None, [picture(i) if i != 3 else b"broken" for i in range(9)])
