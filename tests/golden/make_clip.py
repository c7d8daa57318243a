"""Writes clip.json.gz: the results and the formats of CLIP and SigLIP in transformers.

    python tests/golden/make_clip.py

Needs torch and transformers, which the tests do not need.
"""

import gzip
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.golden import clip_arrays

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WIDE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
WORDS: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 8}

# name -> (class, picture's side, fields of the config, text_config, vision_config, ids
# of the end of a text and of padding). The first CLIP says eos_token_id 2, as OpenAI's.
MODELS: dict[str, tuple] = {
    "clip_small": (
        "CLIP",
        32,
        {"projection_dim": 20},
        {**SMALL, **WORDS, "eos_token_id": 2, "bos_token_id": 0},
        {**SMALL, "image_size": 32, "patch_size": 8},
        (39, 39),
    ),
    "clip_wide": (
        "CLIP",
        45,
        {"projection_dim": 24},
        {**WIDE, **WORDS, "eos_token_id": 7, "hidden_act": "gelu"},
        {**WIDE, "image_size": 45, "patch_size": 14, "hidden_act": "gelu"},
        (7, 0),
    ),
    "siglip_small": (
        "Siglip",
        32,
        {},
        {**SMALL, **WORDS},
        {**SMALL, "image_size": 32, "patch_size": 8},
        (1, 1),
    ),
    "siglip_wide": (
        "Siglip",
        45,
        {},
        {**SMALL, **WORDS, "projection_size": 48},
        {**WIDE, "image_size": 45, "patch_size": 14},
        (1, 0),
    ),
    "siglip2_small": (
        "Siglip2",
        32,
        {},
        {**SMALL, **WORDS},
        {**SMALL, "num_patches": 16, "patch_size": 8},
        (1, 0),
    ),
    "siglip2_wide": (
        "Siglip2",
        42,
        {},
        {**WIDE, **WORDS},
        {**WIDE, "num_patches": 9, "patch_size": 14},
        (1, 0),
    ),
}


def make_model(name: str) -> Any:
    """Makes a model of transformers with the weights of `clip_arrays`."""
    kind, _, fields, text, vision, _ = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, **fields
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    weights = {
        tensor: torch.tensor(clip_arrays.weight(tensor, tuple(array.shape)))
        for tensor, array in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model


def model_inputs(name: str) -> dict[str, Any]:
    """Returns the arguments of a model: pictures, or their patches, and token ids."""
    kind, size, _, text, vision, (end, pad) = MODELS[name]
    ids = clip_arrays.tokens(
        text["vocab_size"], text["max_position_embeddings"], end, pad
    )
    images, side = clip_arrays.pixels(size), vision["patch_size"]
    inputs = {"input_ids": torch.tensor(ids.astype(np.int64))}
    if kind != "Siglip2":
        images = images.transpose(0, 3, 1, 2).copy()
        return inputs | {"pixel_values": torch.tensor(images)}
    grid = size // side
    patches = images.reshape(3, grid, side, grid, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return inputs | {
        "pixel_values": torch.tensor(patches.reshape(3, grid**2, -1).copy()),
        "pixel_attention_mask": torch.ones((3, grid**2), dtype=torch.int64),
        "spatial_shapes": torch.full((3, 2), grid),
    }


def compute(name: str) -> dict[str, Any]:
    """Returns a model's embeddings, logits, config.json and tensor shapes."""
    model = make_model(name)
    with torch.no_grad():
        out = model(**model_inputs(name))
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        written = json.loads((pathlib.Path(folder) / "config.json").read_text())
    _, size, _, text, _, (end, pad) = MODELS[name]
    return {
        "size": size,
        "end": end,
        "pad": pad,
        "length": text["max_position_embeddings"],
        "config": written,
        "image": out.image_embeds.tolist(),
        "text": out.text_embeds.tolist(),
        "logits": out.logits_per_image.tolist(),
        "shapes": {n: list(a.shape) for n, a in model.state_dict().items()},
    }


def main() -> None:
    """Computes every model and writes the file."""
    content = json.dumps({name: compute(name) for name in MODELS}).encode()
    path = pathlib.Path(__file__).with_name("clip.json.gz")
    path.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    main()
