"""OpenCLIP's CLIPs with a ConvNeXt, whose image tower is timm's: config and tensors."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.convnext import EXPANSION, KERNEL, SIZES, ConvNeXtConfig
from align_jax.ranges import Count
from align_jax.weights.clip_tensors import CONVOLUTION, IMAGE, dense, norm
from align_jax.weights.tensors import Tensor

Four = tuple[Count, Count, Count, Count]

# Sizes of timm (https://github.com/huggingface/pytorch-image-models, convnext.py) and
# their keys in `convnext.SIZES`.
NAME = re.compile(r"convnext_(tiny|small|base|large|xlarge|xxlarge)")
KEYS = {
    "tiny": "t",
    "small": "s",
    "base": "b",
    "large": "l",
    "xlarge": "xl",
    "xxlarge": "xxl",
}
EPSILON, LARGEST_EPSILON = 1e-6, 1e-5  # of the layer norms; of xxlarge's
PROJECTION = "linear"
# Fields of other networks, with the values that leave ours.
CONVNEXT_OTHERS: dict[str, tuple] = {
    "timm_pool": ("", "avg"),
    "timm_proj": (PROJECTION,),
}
TRUNK = "visual.trunk"


@dataclasses.dataclass(frozen=True)
class StageFields:
    """Arguments of timm's ConvNeXt that we support: blocks and channels of stages."""

    depths: Four
    dims: Four


def is_convnext(name: Any) -> bool:
    """Returns whether a JSON value names one of timm's ConvNeXts that we have."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def read_convnext(
    found: Mapping[str, Any], arguments: Mapping[str, Any] | None, where: str
) -> ConvNeXtConfig:
    """Translates a `vision_cfg` whose `timm_model_name` `is_convnext` accepts.

    Args:
      found: the fields.
      arguments: the field `timm_model_kwargs`.
      where: path of the fields, for messages.

    Raises:
      InputError: another projection than one linear layer, or other arguments of timm.
    """
    if found.get("timm_proj") != PROJECTION:
        raise InputError(
            f"{where}.timm_proj is {found.get('timm_proj')!r}; ours is {PROJECTION!r}"
        )
    size = found["timm_model_name"].rpartition("_")[2]
    depths, dims = zip(*SIZES[KEYS[size]], strict=True)
    changed = {"depths": depths, "dims": dims, **(arguments or {})}
    stages = read_config(StageFields, changed, f"{where}.timm_model_kwargs")
    drop_rate = found.get("timm_drop_path")
    fields = {
        "stages": tuple(zip(stages.depths, stages.dims, strict=True)),
        "norm_epsilon": LARGEST_EPSILON if size == "xxlarge" else EPSILON,
        "drop_rate": 0.0 if drop_rate is None else drop_rate,
    }
    return read_config(ConvNeXtConfig, fields, where)


def write_convnext(config: ConvNeXtConfig) -> dict[str, Any]:
    """Returns the fields of a `vision_cfg`; the inverse of `read_convnext`.

    A size that timm has no name for is written with the arguments of timm, which
    OpenCLIP's releases up to 3.3 do not read.

    Raises:
      InputError: the tower is not one of timm's.
    """
    largest = config.norm_epsilon == LARGEST_EPSILON
    if len(config.stages) != 4 or config.patch != 4:
        raise InputError(
            "timm's ConvNeXt has 4 stages and a stem of 4 pixels; this model has"
            f" {len(config.stages)} and {config.patch}"
        )
    if config.norm_epsilon not in (EPSILON, LARGEST_EPSILON):
        raise InputError(
            f"timm's ConvNeXts have model.image_tower.norm_epsilon {EPSILON} or"
            f" {LARGEST_EPSILON}; this model has {config.norm_epsilon}"
        )
    names = {
        SIZES[key]: name for name, key in KEYS.items() if (name == "xxlarge") == largest
    }
    name = names.get(config.stages, "xxlarge" if largest else "tiny")
    fields: dict[str, Any] = {
        "timm_model_name": f"convnext_{name}",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": PROJECTION,
        "timm_drop": 0.0,
        "timm_drop_path": config.drop_rate,
    }
    if config.stages not in names:
        depths, dims = zip(*config.stages, strict=True)
        fields["timm_model_kwargs"] = {"depths": [*depths], "dims": [*dims]}
    return fields


def convnext_tensors(config: ConvNeXtConfig, width: int) -> list[Tensor]:
    """Lists the tensors of the image tower and of its projection to `width`."""
    names, found = iter(config.block_names()), []
    before = config.stages[0][1]
    found += _convolution(f"{TRUNK}.stem.0", "stem", (before, 3), config.patch)
    found += norm(f"{TRUNK}.stem.1", (*IMAGE, "stem_norm"), before)
    for index, (blocks, channels) in enumerate(config.stages):
        stage = f"{TRUNK}.stages.{index}"
        if index:
            theirs, ours = f"{stage}.downsample", f"down_{index}"
            found += norm(f"{theirs}.0", (*IMAGE, f"{ours}_norm"), before)
            found += _convolution(f"{theirs}.1", ours, (channels, before), 2)
        for block in range(blocks):
            found += _block_tensors(f"{stage}.blocks.{block}", next(names), channels)
        before = channels
    projection = ("params", "image_projection")
    return [
        *found,
        *norm(f"{TRUNK}.head.norm", (*IMAGE, "final_norm"), before),
        *dense("visual.head.proj", projection, width, before)[:1],
    ]


def _block_tensors(theirs: str, block: str, channels: int) -> list[Tensor]:
    """Lists the tensors of a block; a 1 x 1 convolution is a dense layer there."""
    ours, wide = (*IMAGE, block), EXPANSION * channels
    layers = {"fc1": ("expand", wide, channels), "fc2": ("project", channels, wide)}
    found = [
        Tensor(f"{theirs}.gamma", (*ours, "layer_scale"), (channels,), (0,)),
        *_convolution(f"{theirs}.conv_dw", f"{block}/depthwise", (channels, 1), KERNEL),
        *norm(f"{theirs}.norm", (*ours, "norm"), channels),
    ]
    for name, (own, out, entering) in layers.items():
        found += dense(f"{theirs}.mlp.{name}", (*ours, own), out, entering)
    return found


def _convolution(
    name: str, ours: str, channels: tuple[int, int], kernel: int
) -> list[Tensor]:
    """Lists the weight and the bias of a convolution; `channels` are (out, in)."""
    path, shape = (*IMAGE, *ours.split("/")), (*channels, kernel, kernel)
    return [
        Tensor(f"{name}.weight", (*path, "kernel"), shape, CONVOLUTION),
        Tensor(f"{name}.bias", (*path, "bias"), channels[:1], (0,)),
    ]
