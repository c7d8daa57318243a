"""Writes align.json.gz: the results and the formats of Hugging Face's `AlignModel`.

    python tests/golden/make_align.py

Needs torch and transformers, which the tests do not need.
"""

import gzip
import json
import pathlib
import sys
import tempfile

import torch
from transformers import AlignConfig, AlignModel

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.golden import align_arrays

TEXT = {
    "vocab_size": 12,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 256,
    "max_position_embeddings": 16,
}
SMALL = {"width_coefficient": 0.25, "depth_coefficient": 0.5}

# name -> (picture's side, projection_dim, text_config, vision_config)
MODELS = {
    "odd": (65, 80, TEXT, SMALL),
    "even": (96, 80, TEXT, SMALL | {"drop_connect_rate": 0.0}),
    "wide": (
        77,
        240,
        TEXT | {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
        {"width_coefficient": 0.75, "depth_coefficient": 0.3},
    ),
    # Padded as TensorFlow pads 66 pixels: the listed blocks get an odd side.
    "square": (66, 80, TEXT, SMALL | {"depthwise_padding": [1, 2, 3, 7]}),
    "published": (289, 640, {}, {}),
}
GAIN = 1.6  # of convolutions, see `align_arrays.weight`
GAINS = {"published": 1.3}  # others than GAIN, by model


def compute(gain: float, size: int, width: int, text: dict, vision: dict) -> dict:
    """Returns a model's embeddings, logits, config.json, tensor shapes and gain."""
    vision = vision | {"image_size": size}
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=width)
    model = AlignModel(config).eval()
    weights = {
        name: torch.tensor(align_arrays.weight(name, tuple(tensor.shape), gain))
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(weights)
    tokens = torch.tensor(align_arrays.TOKENS)
    with torch.no_grad():
        out = model(
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            pixel_values=torch.tensor(
                align_arrays.pixels(size).transpose(0, 3, 1, 2).copy()
            ),
        )
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        written = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return {
        "gain": gain,
        "size": size,
        "config": written,
        "image": out.image_embeds.tolist(),
        "text": out.text_embeds.tolist(),
        "logits": out.logits_per_image.tolist(),
        "shapes": {name: list(tensor.shape) for name, tensor in weights.items()},
    }


def main() -> None:
    """Computes every model and writes the file."""
    golden = {
        name: compute(GAINS.get(name, GAIN), *fields) for name, fields in MODELS.items()
    }
    content = json.dumps(golden).encode()
    path = pathlib.Path(__file__).with_name("align.json.gz")
    path.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    main()
