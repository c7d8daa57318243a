"""Fields of OpenCLIP's model configs, with the values that our towers can have."""

import dataclasses
import math
import re
from typing import Annotated

from align_jax.ranges import Count, Natural, ProperShare, Range, Side
from align_jax.weights.described_fields import Layers

Ratio = Annotated[float, Range(above=0, most=100)]


@dataclasses.dataclass(frozen=True)
class OpenClipTextFields:
    """Fields of OpenCLIP's `CLIPTextCfg` that we support, with their defaults there."""

    context_length: Annotated[int, Range(least=3)] = 77
    vocab_size: Count = 49408
    width: Count = 512
    heads: Count = 8
    layers: Layers = 12
    mlp_ratio: Ratio = 4.0
    no_causal_mask: bool = False
    pool_type: str = "argmax"
    proj_bias: bool = False
    eos_id: Natural | None = None
    norm_kwargs: dict | None = None
    act_kwargs: dict | None = None


@dataclasses.dataclass(frozen=True)
class OpenClipVisionFields:
    """Fields of OpenCLIP's `CLIPVisionCfg` that we support, with their defaults."""

    layers: Layers = 12
    width: Count = 768
    head_width: Count = 64
    mlp_ratio: Ratio = 4.0
    patch_size: Count = 16
    image_size: Side = 224
    patch_dropout: ProperShare = 0.0
    norm_kwargs: dict | None = None
    act_kwargs: dict | None = None
    timm_model_name: str | None = None
    timm_model_kwargs: dict | None = None


# Fields of other networks, with the values that leave ours.
BLOCKS: dict[str, tuple] = {
    "ls_init_value": (None,),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "final_ln_after_pool": (False,),
}
TEXT_OTHERS = BLOCKS | {
    "text_arch": ("clip",),
    "embed_cls": (False,),
    "proj_type": ("linear",),
    "hf_model_name": (None,),
}
VISION_OTHERS = BLOCKS | {
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok",),
}
TIMM_OTHERS: dict[str, tuple] = {"timm_pool": ("map",), "timm_proj": ("none", "", None)}
MODEL_OTHERS: dict[str, tuple] = {"multimodal_cfg": (None,)}
# Fields that are read apart from these, or that do not change the network.
TEXT_IGNORED = """hf_tokenizer_name tokenizer_kwargs tokenizer_mode tokenizer_type
    tiktoken_name pad_id bos_id variable_text output_tokens hf_model_pretrained
    hf_proj_type hf_pooler_type hf_model_config""".split()
VISION_IGNORED = """output_tokens image_seq_len attn_pooler_queries attn_pooler_heads
    timm_model_pretrained timm_drop timm_drop_path timm_proj_bias timm_pool
    timm_proj""".split()
MODEL_IGNORED = """embed_dim quick_gelu custom_text init_logit_scale init_logit_bias
    vision_cfg text_cfg nonscalar_logit_scale output_dict cast_dtype""".split()

# SigLIP's image towers in timm (https://github.com/huggingface/pytorch-image-models,
# vision_transformer.py): their names; by a name's first part, the size in `vit.SIZES`
# and the ratio of the MLP's width to the tower's; and the (first part, patch) of those
# with the tanh form of GELU.
TIMM_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_\d+")
TIMM_SIZES = {"base": "b", "large": "l", "so400m": "so400m", "giantopt": "g_opt"}
TIMM_TANH = (("so400m", 16), ("giantopt", 16))
TIMM_RATIOS = {"so400m": 3.7362, "giantopt": 4.0, "base": 4.0, "large": 4.0}
# Fields of timm_model_kwargs, with the names of ours.
TIMM_FIELDS = {
    "embed_dim": "width",
    "depth": "layers",
    "num_heads": "heads",
    "patch_size": "patch",
}
EPSILON, TIMM_EPSILON = 1e-5, 1e-6  # of PyTorch's layer norms and of timm's
LOGIT_SCALE = math.log(1 / 0.07)
POOLINGS = {"argmax": "end", "eos": "end", "last": "last", "first": "first"}
