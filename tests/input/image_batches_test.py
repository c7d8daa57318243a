import io

import numpy as np
import pytest
from PIL import Image

from align_jax.input.image_batches import augment_batches
from align_jax.input.preprocess import PreprocessConfig, train_image

CONFIG = PreprocessConfig(20, 16, colour_jitter=0.2, max_pixels=10_000)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def encode(kind, pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def draw_batches(count, rows=10):
    pictures = [encode("JPEG"), encode("PNG"), encode("WEBP"), b"", encode("GIF")]
    for step in range(count):
        encoded = [pictures[(step + row) % len(pictures)] for row in range(rows)]
        keys = np.array([(step, row) for row in range(rows)])
        yield encoded, keys, CONFIG, f"batch {step}"


def test_batches_come_in_order_with_what_came_with_them():
    found = list(augment_batches(draw_batches(7), threads=3))
    assert [rest for _, _, rest in found] == [f"batch {step}" for step in range(7)]
    for (images, reasons, _), (encoded, keys, _, _) in zip(
        found, draw_batches(7), strict=True
    ):
        assert images.dtype == np.uint8
        assert images.shape == (10, 16, 16, 3)
        for image, reason, content, key in zip(
            images, reasons, encoded, keys, strict=True
        ):
            expected, expected_reason = train_image(content, tuple(key), CONFIG)
            np.testing.assert_array_equal(image, expected)
            assert reason == expected_reason == ("" if content else "empty")


def test_the_number_of_threads_changes_no_bit():
    alone = list(augment_batches(draw_batches(3, rows=70), threads=1, ahead=1))
    many = list(augment_batches(draw_batches(3, rows=70), threads=7, ahead=4))
    for (images, reasons, _), (others, other_reasons, _) in zip(
        alone, many, strict=True
    ):
        np.testing.assert_array_equal(images, others)
        assert reasons == other_reasons


def test_batches_are_drawn_no_further_ahead_than_asked():
    drawn = []

    def watched():
        for batch in draw_batches(9):
            drawn.append(batch[3])
            yield batch

    batches = augment_batches(watched(), threads=2, ahead=2)
    next(batches)
    assert len(drawn) == 3
    batches.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not a picture"),
        (encode("JPEG")[:-400], "cut short"),
        (encode("PNG")[:-400], "cut short"),
        (encode("GIF")[:-400], "cut short"),
        (encode("PNG", np.zeros((200, 200, 3), np.uint8)), "too large"),
        (encode("JPEG", np.zeros((200, 200, 3), np.uint8)), "too large"),
        (encode("TIFF", np.zeros((4, 4), np.float32)), "unsupported"),
        (b"\xff\xd8\xff" + bytes(50), "not a picture"),
    ],
)
def test_a_bad_picture_is_black_and_says_why(content, reason):
    image, found = train_image(content, (0, 0), CONFIG)
    assert found == reason
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    assert not image.any()


@pytest.mark.parametrize(
    "content",
    [
        encode("PNG", PIXELS[..., 0].astype(np.uint16) * 257),
        encode("JPEG", PIXELS[..., 0]),
        encode("JPEG", np.zeros((30, 30, 4), np.uint8)[..., :3], progressive=True),
        encode("PNG", np.zeros((1, 1, 3), np.uint8)),
        encode("PNG", np.zeros((9, 1, 4), np.uint8)),
        encode("GIF", save_all=True, append_images=[Image.new("RGB", (50, 40))]),
    ],
)
def test_odd_pictures_are_good_ones(content):
    image, reason = train_image(content, (0, 0), CONFIG)
    assert reason == ""
    assert image.shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_no_damaged_file_raises(kind):
    draw = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    content = np.frombuffer(encode(kind, **options), np.uint8)
    reasons = set()
    for key in range(300):
        damaged = content.copy()
        places = draw.integers(0, len(content) if key % 2 else 200, 6)
        damaged[places] = draw.integers(0, 256, 6)
        damaged = damaged[: draw.integers(1, len(content))] if key % 3 == 0 else damaged
        image, reason = train_image(damaged.tobytes(), (0, key), CONFIG)
        assert image.shape == (16, 16, 3)
        assert not (reason and image.any())
        reasons.add(reason)
    assert len(reasons) > 1
