"""Writes open_clip.json.gz: the results and the formats of OpenCLIP's models.

    python tests/golden/make_open_clip.py

Needs torch and open_clip_torch, which the tests do not need.
"""

import gzip
import json
import pathlib
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from open_clip import timm_model
from open_clip.model import CLIP, CustomTextCLIP
from timm import create_model

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.golden import clip_arrays

TEXT = {"context_length": 8, "vocab_size": 40, "width": 24, "heads": 2, "layers": 2}
SIGLIP_TEXT = TEXT | {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
# timm's name says the form of the tower; the other fields make it small.
SIGLIP_VISION = {
    "image_size": 32,
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
    "timm_model_kwargs": {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 1.5,
        "patch_size": 8,
    },
}
SQUASH = {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

# name -> (model_cfg, preprocess_cfg, ids of the end of a text and of padding)
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "clip_small": (
        {
            "embed_dim": 20,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 32,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": TEXT,
        },
        {"interpolation": "bicubic", "resize_mode": "shortest"},
        (39, 0),
    ),
    "clip_wide": (
        {
            "embed_dim": 24,
            "init_logit_bias": -10,
            "vision_cfg": {
                "image_size": 45,
                "layers": 3,
                "width": 48,
                "head_width": 24,
                "patch_size": 14,
                "mlp_ratio": 2.26,
            },
            "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 7},
        },
        SQUASH | {"interpolation": "bilinear"},
        (7, 0),
    ),
    "convnext_small": (
        {
            "embed_dim": 20,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 64,
                "timm_model_name": "convnext_tiny",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_drop": 0.0,
                "timm_drop_path": 0.1,
                "timm_model_kwargs": {"depths": [1, 2, 1, 1], "dims": [8, 12, 16, 24]},
            },
            "text_cfg": TEXT,
        },
        {"interpolation": "bicubic", "resize_mode": "shortest"},
        (39, 0),
    ),
    "siglip_small": (
        {
            "embed_dim": 32,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": SIGLIP_VISION,
            "text_cfg": SIGLIP_TEXT,
        },
        SQUASH | {"interpolation": "bicubic"},
        (1, 0),
    ),
    "siglip2_small": (
        {
            "embed_dim": 32,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": SIGLIP_VISION
            | {"timm_model_name": "vit_so400m_patch16_siglip_256"},
            "text_cfg": SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}},
        },
        SQUASH | {"interpolation": "bilinear"},
        (1, 0),
    ),
}


def compute(name: str) -> dict[str, Any]:
    """Returns a model's embeddings, logits, configs and tensor shapes."""
    config, pictures, (end, pad) = MODELS[name]
    fields = json.loads(json.dumps(config))
    kind = CustomTextCLIP if fields.pop("custom_text", False) else CLIP
    # Releases up to 3.3 do not know this field, so timm gets the arguments here.
    sizes = fields["vision_cfg"].pop("timm_model_kwargs", {})
    if "embed_dim" in sizes:
        sizes["img_size"] = fields["vision_cfg"]["image_size"]  # for ViT's positions
    timm_model.timm.create_model = partial(create_model, **sizes)
    model = kind(**fields).eval()
    weights = {
        tensor: torch.tensor(clip_arrays.weight(tensor, tuple(array.shape)))
        for tensor, array in model.state_dict().items()
    }
    model.load_state_dict(weights)
    text, size = config["text_cfg"], config["vision_cfg"]["image_size"]
    ids = clip_arrays.tokens(text["vocab_size"], text["context_length"], end, pad)
    images = clip_arrays.pixels(size).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        image = model.encode_image(torch.tensor(images), normalize=True)
        words = model.encode_text(torch.tensor(ids.astype(np.int64)), normalize=True)
        logits, _ = model.get_logits(
            torch.tensor(images), torch.tensor(ids.astype(np.int64))
        )
    return {
        "size": size,
        "end": end,
        "pad": pad,
        "config": config,
        "pictures": pictures,
        "image": image.tolist(),
        "text": words.tolist(),
        "logits": logits.tolist(),
        "shapes": {n: list(a.shape) for n, a in weights.items()},
    }


def main() -> None:
    """Computes every model and writes the file."""
    content = json.dumps({name: compute(name) for name in MODELS}).encode()
    path = pathlib.Path(__file__).with_name("open_clip.json.gz")
    path.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    main()
