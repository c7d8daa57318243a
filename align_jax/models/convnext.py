"""ConvNeXt image tower (arXiv 2201.03545) without the classification layer.

The features are the layer norm of the mean over the last stage's pixels, which the
published networks give to their classification layer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.config import check_choices
from align_jax.devices.kernel_choice import CHOICES, Kernels
from align_jax.devices.mesh import Placement
from align_jax.models.layers import (
    REMATERIALISATIONS,
    block_names,
    draw_survival,
    gathered,
    gelu,
    layer_norm,
    rematerialised,
    run_equal_blocks,
)
from align_jax.models.mbconv import Convolution
from align_jax.ranges import Count, Positive, ProperShare

KERNEL = 7  # side of the depthwise kernel
EXPANSION = 4  # factor of the channels in a block

StageRow = tuple[Count, Count]  # blocks, channels

# Stages of the published sizes T to XL (arXiv 2201.03545, section 3), and of OpenCLIP's
# "convnext_xxlarge" (https://github.com/mlfoundations/open_clip), whose `norm_epsilon`
# is 1e-5. OpenCLIP's convnext_base_w and convnext_large_d are B and L with other text
# towers and projections.
SIZES: dict[str, tuple[StageRow, ...]] = {
    "t": ((3, 96), (3, 192), (9, 384), (3, 768)),
    "s": ((3, 96), (3, 192), (27, 384), (3, 768)),
    "b": ((3, 128), (3, 256), (27, 512), (3, 1024)),
    "l": ((3, 192), (3, 384), (27, 768), (3, 1536)),
    "xl": ((3, 256), (3, 512), (27, 1024), (3, 2048)),
    "xxl": ((3, 384), (4, 768), (30, 1536), (3, 3072)),
}


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Size, regularisation and execution of a ConvNeXt.

    Attributes:
      stages: blocks and channels of each stage (T; `SIZES` has all sizes). Each stage
        but the first halves the picture's side.
      patch: side and stride of the stem's convolution in pixels.
      drop_rate: stochastic-depth rate of the last block; it grows linearly from 0 at
        the first block (for ImageNet T had 0.1, S 0.4, B and L 0.5; appendix A).
      layer_scale: first value of the scales by which a block multiplies its output.
      norm_epsilon: number that layer norms add to the variance.
      init_std: standard deviation of the normal distribution, truncated at two of them,
        from which kernels start.
      scan: whether to compile the blocks of a stage as one body; the parameters are the
        same.
      rematerialise: "none", "pointwise", "blocks" or "stages", see
        `EfficientNetConfig`.
      kernels: "auto" (Pallas kernels if the devices support them) or "plain" (XLA). The
        7 x 7 kernels were never timed on a GPU, hence the default "plain".
      kind: "convnext".
    """

    # The contract of a tower, see `models.towers`.
    execution_fields: ClassVar[tuple[str, ...]] = ("scan", "rematerialise", "kernels")
    memory_choices: ClassVar[Mapping[str, tuple]] = {
        "rematerialise": REMATERIALISATIONS
    }
    form_fields: ClassVar[tuple[str, ...]] = ("norm_epsilon",)
    module_options: ClassVar[tuple[str, ...]] = ("kernels",)
    block_prefix: ClassVar[str] = "block_"
    undecayed: ClassVar[tuple[str, ...]] = (".*norm/", ".*/bias", ".*/layer_scale")
    optional_modules: ClassVar[tuple[str, ...]] = ()
    freezing_field: ClassVar[str] = ""

    stages: tuple[StageRow, ...] = SIZES["t"]
    patch: Count = 4
    drop_rate: ProperShare = 0.1
    layer_scale: Positive = 1e-6
    norm_epsilon: Positive = 1e-6
    init_std: Positive = 0.02
    scan: bool = False
    rematerialise: str = "none"
    kernels: str = "plain"
    kind: str = "convnext"

    @property
    def output_width(self) -> int:
        """Channels of the last stage (T and S: 768, B: 1024)."""
        return self.stages[-1][-1]

    def block_names(self) -> list[str]:
        """Returns the names of the blocks' parameters, in order."""
        return block_names(self.block_prefix, sum(blocks for blocks, _ in self.stages))

    def computed_once(self) -> Self:
        """Returns the same tower without rematerialisation and with `scan`."""
        return dataclasses.replace(self, rematerialise="none", scan=True)

    @classmethod
    def smallest(cls) -> Self:
        """Returns a tower of three blocks in two stages."""
        return cls(stages=((1, 8), (2, 16)))

    def __post_init__(self) -> None:
        choices = {"rematerialise": REMATERIALISATIONS, "kernels": CHOICES}
        check_choices(self, choices, "image_tower.")
        if not self.stages:
            raise ValueError("image_tower.stages is (); wanted one row or more")


def drop_rates(config: ConvNeXtConfig) -> list[float]:
    """Returns the stochastic-depth rate of every block: 0 to `drop_rate`, linearly."""
    count = len(config.block_names())
    return [config.drop_rate * block / max(count - 1, 1) for block in range(count)]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm and two dense layers (figure 4).

    Attributes:
      config: fields of the tower.
      dtype: number type of the computation; parameters stay float32.
      kernels: choice between the forms for NVIDIA GPUs and plain XLA.
    """

    config: ConvNeXtConfig
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = Kernels()

    @nn.compact
    def __call__(self, x: jax.Array, survival: jax.Array | None) -> jax.Array:
        """Maps x (B, H, W, C) to the same shape.

        Args:
          x: (B, H, W, C) input.
          survival: (B,) factors of the block's output before the input is added
            (stochastic depth, see `survival_scales`); None for ones.
        """
        channels = x.shape[-1]
        convolution = partial(convolution_of, self)
        hidden = convolution("depthwise", channels, KERNEL, depthwise=True)(x)
        hidden = layer_norm("norm", hidden, self.dtype, self.config.norm_epsilon)
        hidden = convolution("expand", EXPANSION * channels, 1)(hidden)
        hidden = jax.checkpoint(gelu)(hidden)  # recomputed in the backward pass
        hidden = convolution("project", channels, 1)(hidden)
        first = nn.initializers.constant(self.config.layer_scale)
        scale = self.param("layer_scale", first, (channels,))[None, None, None]
        if survival is not None:
            scale = scale * survival[:, None, None, None]
        return x + (hidden * scale).astype(self.dtype)


def convolution_of(
    module: Any, name: str, features: int, kernel: int, **fields: Any
) -> Convolution:
    """Returns a convolution with bias that has a tower's or a block's fields."""
    return Convolution(
        features,
        kernel,
        dtype=module.dtype,
        kernels=module.kernels,
        kernel_init=nn.initializers.truncated_normal(module.config.init_std),
        bias=True,
        name=name,
        **fields,
    )


class ConvNeXt(nn.Module):
    """The image encoder.

    A side that a stride does not divide is filled up with zeros, by `same_padding`; the
    published networks drop the remainder. Sides that are multiples of 32 pixels have
    none.

    Attributes:
      config: size, regularisation and execution.
      dtype: number type of the computation; parameters stay float32.
      placement: sharding by which each block gathers its parameters; None if parameters
        are not sharded.
      kernels: choice between Pallas kernels and XLA for the convolutions.
    """

    config: ConvNeXtConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement | None = None
    kernels: Kernels = Kernels()

    @nn.compact
    def __call__(
        self, images: jax.Array, core_ids: jax.Array | None, train: bool
    ) -> jax.Array:
        """Encodes images.

        Args:
          images: (B, H, W, 3) pixels, scaled as the model's `pixel_mean` says.
          core_ids: (V,) global indices of the batch's virtual cores; None if not
            `train`.
          train: whether to use stochastic depth, with the random key named "dropout".

        Returns:
          (B, config.output_width) normalised mean over the last pixels, float32.
        """
        config = self.config
        rates, names = drop_rates(config), config.block_names()
        survival = draw_survival(self, rates, core_ids, images.shape[0], train)
        norm = partial(layer_norm, epsilon=config.norm_epsilon)
        run_stage = ConvNeXt._run_stage
        if config.rematerialise == "stages":
            run_stage = nn.remat(run_stage, static_argnums=2)
        x, first = images.astype(self.dtype), 0
        for index, (blocks, channels) in enumerate(config.stages):
            if index == 0:
                stem = convolution_of(
                    self, "stem", channels, config.patch, stride=config.patch
                )
                x = norm("stem_norm", stem(x), self.dtype)
            else:
                x = norm(f"down_{index}_norm", x, self.dtype)
                x = convolution_of(self, f"down_{index}", channels, 2, stride=2)(x)
            last = first + blocks
            x = run_stage(self, x, tuple(names[first:last]), survival[first:last])
            first = last
        pooled = x.mean((1, 2), dtype=jnp.float32)  # (B, C)
        return norm("final_norm", pooled, jnp.float32)

    def _run_stage(
        self,
        x: jax.Array,
        names: tuple[str, ...],
        survival: Sequence[jax.Array | None],
    ) -> jax.Array:
        """Runs the n blocks of a stage.

        Args:
          x: (B, H, W, C) input.
          names: n names of the blocks' parameters.
          survival: n arrays (B,) that scale the blocks' outputs (stochastic depth), or
            None for each block.

        Returns:
          An array of x's shape.
        """
        block = gathered(ConvNeXtBlock, self)
        block = rematerialised(block, self.config.rematerialise)
        make_block = partial(block, self.config, self.dtype, self.kernels)
        return run_equal_blocks(self, names, make_block, x, survival)
