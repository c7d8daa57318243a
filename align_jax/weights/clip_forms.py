"""Fields of the configs of Hugging Face's CLIP and SigLIP, and what they mean to us."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from align_jax.ranges import Count, Natural, Positive, Range, Side
from align_jax.weights.described_fields import Layers

CLIP, SIGLIP, SIGLIP2 = "clip", "siglip", "siglip2"


@dataclasses.dataclass(frozen=True)
class ClipTextFields:
    """Fields of `CLIPTextConfig` and `SiglipTextConfig`; the defaults are CLIP's."""

    vocab_size: Count = 49408
    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Count = 8
    max_position_embeddings: Annotated[int, Range(least=3)] = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    attention_dropout: float = 0.0
    eos_token_id: Natural = 49407
    projection_size: Count | None = None


@dataclasses.dataclass(frozen=True)
class ClipVisionFields:
    """Fields of the configs of image towers; the defaults are CLIP's.

    Only CLIP and SigLIP have `image_size`, and only SigLIP 2 has `num_patches`.
    """

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Count = 12
    num_channels: int = 3
    image_size: Side = 224
    patch_size: Count = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    attention_dropout: float = 0.0
    vision_use_head: bool = True
    num_patches: Count = 256


@dataclasses.dataclass(frozen=True)
class Form:
    """One class of models of transformers.

    Attributes:
      architecture: name of the class.
      text: fields of its text tower with their defaults.
      vision: fields of its image tower with their defaults.
      image_fields: fields of our image tower that all models of the class have.
      text_fields: fields of our text tower that they have.
      model_fields: fields of our model that they have.
    """

    architecture: str
    text: ClipTextFields
    vision: ClipVisionFields
    image_fields: Mapping[str, Any]
    text_fields: Mapping[str, Any]
    model_fields: Mapping[str, Any]


IMAGE_FIELDS = {
    "positions": "learned",
    "registers": 0,
    "layer_scale": None,
    "qk_norm": False,
    "final_norm": True,
}
TANH: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIGLIP_FORM = Form(
    "SiglipModel",
    ClipTextFields(32000, 768, 3072, 12, 12, 64, **TANH),
    ClipVisionFields(patch_size=16, **TANH),
    {**IMAGE_FIELDS, "pooling": "attention", "pre_norm": False, "patch_bias": True},
    {"causal": False, "pooling": "last", "mask_padding": False},
    {"projection_bias": True, "embedding_size": None},
)
FORMS = {
    CLIP: Form(
        "CLIPModel",
        ClipTextFields(),
        ClipVisionFields(),
        {**IMAGE_FIELDS, "pooling": "cls", "pre_norm": True, "patch_bias": False},
        {"causal": True, "pooling": "end"},
        {"projection_bias": False, "logit_bias_init": None},
    ),
    SIGLIP: SIGLIP_FORM,
    SIGLIP2: dataclasses.replace(SIGLIP_FORM, architecture="Siglip2Model"),
}

# Fields that our towers support with this value only.
FIXED = ("attention_dropout",)
VISION_FIXED = (*FIXED, "num_channels", "vision_use_head")
# Fields of other networks of the same classes, with the value that leaves ours.
OTHERS = {
    "dropout": 0.0,
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",  # another name of the next one
    "gelu_pytorch_tanh": "gelu_tanh",
}
OUR_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
