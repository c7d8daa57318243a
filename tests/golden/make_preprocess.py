"""Writes preprocess.npz: photographs and the output of Hugging Face's image processor.

    python tests/golden/make_preprocess.py

Needs scikit-learn, and transformers and scikit-image, which the tests do not need.
"""

import io
import pathlib

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)

# name -> (photograph, size that it is reduced to, resize, crop)
CASES = {
    "china_289": (load_sample_image("china.jpg"), (213, 320), 346, 289),
    "coffee_odd": (data.coffee(), (161, 243), 98, 65),
    "cat_enlarged": (data.chelsea(), (60, 91), 120, 96),
    "rocket_tall": (data.rocket()[:, 200:400], (300, 101), 128, 112),
    "grey": (data.camera(), (128, 127), 84, 64),
}


def process(picture: Image.Image, resize: int, crop: int) -> np.ndarray:
    """Runs the published model's processor at other sizes; returns (crop, crop, 3)."""
    processor = EfficientNetImageProcessorPil(
        size={"height": resize, "width": resize},
        crop_size={"height": crop, "width": crop},
        resample=2,
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )
    found = processor(picture.convert("RGB"), return_tensors="np")["pixel_values"][0]
    return found.transpose(1, 2, 0)


def main() -> None:
    """Reduces each photograph, stores it as JPEG or PNG, and processes it."""
    golden = {}
    for index, (name, (pixels, size, resize, crop)) in enumerate(CASES.items()):
        file = io.BytesIO()
        small = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS)
        small.save(file, "PNG" if index == 2 else "JPEG", quality=85)
        golden[f"{name}/file"] = np.frombuffer(file.getvalue(), np.uint8)
        found = process(Image.open(file), resize, crop)
        levels = np.rint((found + 1) * 127.5)
        assert np.abs(levels - (found + 1) * 127.5).max() < 1e-3
        golden[f"{name}/levels"] = levels.astype(np.uint8)
        golden[f"{name}/sizes"] = np.array([resize, crop])
    path = pathlib.Path(__file__).with_name("preprocess.npz")
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main()
