"""EfficientNet image tower (arXiv 1905.11946) without the head's 1x1 convolution.

ALIGN (arXiv 2102.05918, section 4.1) takes the global average of the last block's
output as the image's features, so the classification head is never built.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.config import LATE, check_choices
from align_jax.devices.kernel_choice import CHOICES, MOSAIC, Kernels
from align_jax.devices.mesh import Placement
from align_jax.kernels.convolution import PADDINGS
from align_jax.models.batch_norm import BatchNorm
from align_jax.models.layers import (
    REMATERIALISATIONS,
    block_names,
    draw_survival,
    gathered,
    rematerialised,
    scan_blocks,
    split_batch,
)
from align_jax.models.mbconv import Block, Convolution, MBConv
from align_jax.ranges import Count, Positive, Share

# Blocks, kernel, stride, expansion, output channels.
StageRow = tuple[Count, Count, Count, Count, Count]

# B0's stages.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

STEM_CHANNELS = 32
TOP_CHANNELS = 1280

# Width and depth multipliers of the published variants.
VARIANTS = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "l2": (4.3, 5.3),
}


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Size, regularisation and execution of an EfficientNet.

    Attributes:
      width: channel multiplier (B0: 1.0, B7: 2.0; `VARIANTS` has all variants).
      depth: block multiplier (B0: 1.0, B7: 3.1).
      drop_rate: stochastic-depth rate; block b = 0, 1, ... of n has b / n of it.
      batch_norm_momentum: decay of BatchNorm's running statistics.
      frozen_statistics: whether to normalise by the running statistics in training too,
        and to leave them as they are.
      padding: "same" (TensorFlow's rule) or "keras" (the rule of the open ALIGN
        weights).
      top_conv: whether to add the head's 1x1 convolution to 1280 channels times width,
        which ALIGN leaves out and ImageNet checkpoints have.
      scan: whether to compile the repeated blocks of a stage as one body; the
        parameters are the same.
      rematerialise: arrays that the backward pass computes again instead of keeping:
        "none", "pointwise" (all but the results of convolutions and of sums over
        pixels), "blocks" (all but each block's input; the "mosaic" kernels keep sums
        over pixels, too) or "stages" (all but each stage's input).
      kernels: "auto" (Pallas kernels on NVIDIA GPUs, XLA elsewhere), "plain" (XLA) or
        "mosaic" (Pallas kernels for blocks with an expansion, on TPU v5e and v6e).
      stages: rows in the form of `STAGES`, which they replace; () for `STAGES`.
      kind: "efficientnet".
    """

    # The contract of a tower, see `models.towers`.
    execution_fields: ClassVar[tuple[str, ...]] = ("scan", "rematerialise", "kernels")
    memory_choices: ClassVar[Mapping[str, tuple]] = {
        "rematerialise": REMATERIALISATIONS
    }
    form_fields: ClassVar[tuple[str, ...]] = ("padding", "strides")
    module_options: ClassVar[tuple[str, ...]] = ("batch_norm_group", "kernels")
    block_prefix: ClassVar[str] = "block_"
    undecayed: ClassVar[tuple[str, ...]] = (".*_norm/",)
    optional_modules: ClassVar[tuple[str, ...]] = ("top", "top_norm")

    width: Positive = 1.0
    depth: Positive = 1.0
    drop_rate: Share = 0.2
    batch_norm_momentum: Share = 0.99
    frozen_statistics: bool = False
    padding: str = "same"
    top_conv: bool = False
    scan: bool = False
    rematerialise: str = "none"
    kernels: str = "auto"
    stages: tuple[StageRow, ...] = dataclasses.field(default=(), metadata=LATE)
    kind: str = dataclasses.field(default="efficientnet", metadata=LATE)

    @property
    def output_width(self) -> int:
        """Width of the pooled features: 320 for B0, 640 for B7 (without top_conv)."""
        last = TOP_CHANNELS if self.top_conv else self.rows[-1][-1]
        return round_channels(last, self.width)

    @property
    def rows(self) -> tuple[StageRow, ...]:
        """Stages before scaling, in the form of `STAGES`."""
        return self.stages or STAGES

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of the first block of each stage."""
        return tuple(stride for _, _, stride, _, _ in self.rows)

    @property
    def stem_channels(self) -> int:
        """Channels of the stem before scaling."""
        return STEM_CHANNELS

    @property
    def fused_stages(self) -> int:
        """Number of first stages whose blocks are fused, as in EfficientNetV2."""
        return 0

    @property
    def freezing_field(self) -> str:
        """Name of the field that stops BatchNorm's statistics; "" if it is set."""
        return "" if self.frozen_statistics else "frozen_statistics"

    def block_names(self) -> list[str]:
        """Returns the names of the blocks' parameters, in order."""
        return block_names(self.block_prefix, sum(map(len, expand_stages(self))))

    def computed_once(self) -> Self:
        """Returns the same tower without rematerialisation and with `scan`."""
        return dataclasses.replace(self, rematerialise="none", scan=True)

    @classmethod
    def smallest(cls) -> Self:
        """Returns a tower of three blocks with all the parts of larger towers.

        The first block has expansion 1. The second has expansion 6 and a 5 x 5 kernel.
        Both have stride 2. The third adds to its input, with stochastic depth.
        """
        return cls(width=0.25, stages=((1, 3, 2, 1, 16), (2, 5, 2, 6, 64)))

    def __post_init__(self) -> None:
        choices = {
            "padding": PADDINGS,
            "rematerialise": REMATERIALISATIONS,
            "kernels": (*CHOICES, MOSAIC),
        }
        check_choices(self, choices, "image_tower.")


def round_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Returns channels * width, rounded to a multiple of `divisor`.

    The result is at least `divisor` and never below 90 % of the product.
    """
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def expand_stages(config: EfficientNetConfig) -> list[list[Block]]:
    """Lists the blocks of each stage of a scaled network, in order."""
    channels = round_channels(config.stem_channels, config.width)
    stages = []
    for index, (count, kernel, stride, expansion, out) in enumerate(config.rows):
        fused = index < config.fused_stages
        channels_out = round_channels(out, config.width)
        first = Block(
            kernel=kernel,
            stride=stride,
            expansion=expansion,
            channels_in=channels,
            channels_out=channels_out,
            residual=fused and stride == 1 and channels == channels_out,
            fused=fused,
        )
        repeated = dataclasses.replace(
            first, stride=1, channels_in=channels_out, residual=True
        )
        stages.append([first] + [repeated] * (math.ceil(config.depth * count) - 1))
        channels = channels_out
    return stages


def drop_rates(config: EfficientNetConfig) -> list[float]:
    """Returns the stochastic-depth rate of every block: `drop_rate` * b / blocks."""
    count = len(config.block_names())
    return [config.drop_rate * block / count for block in range(count)]


class EfficientNet(nn.Module):
    """The image encoder.

    Attributes:
      config: size, regularisation and execution.
      batch_norm_group: number of images that share BatchNorm statistics in training.
      dtype: number type of the computation; parameters and statistics stay float32.
      placement: sharding by which each block gathers its parameters; None if parameters
        are not sharded.
      kernels: choice between Pallas kernels and XLA for the convolutions and, in
        training, the normalisations.
    """

    config: EfficientNetConfig
    batch_norm_group: int
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
          train: whether to use stochastic depth and, unless `frozen_statistics` is set,
            batch statistics.

        Returns:
          (B, config.output_width) mean over the last block's pixels, float32.
        """
        config = self.config
        rates = drop_rates(config)
        survival = draw_survival(self, rates, core_ids, images.shape[0], train)

        x = images.astype(self.dtype)
        stem = round_channels(config.stem_channels, config.width)
        x = self._normalised_conv(
            x, "stem", features=stem, kernel=3, stride=2, train=train
        )
        run_stage = EfficientNet._run_stage
        if config.rematerialise == "stages":
            run_stage = nn.remat(run_stage, static_argnums=(2, 4))
        names, first = config.block_names(), 0
        for stage in expand_stages(config):
            last = first + len(stage)
            named = tuple(zip(names[first:last], stage, strict=True))
            x = run_stage(self, x, named, survival[first:last], train)
            first = last
        if config.top_conv:
            x = self._normalised_conv(
                x, "top", features=config.output_width, kernel=1, stride=1, train=train
            )
        return x.mean((1, 2), dtype=jnp.float32)  # (B, C)

    def _normalised_conv(
        self,
        x: jax.Array,
        name: str,
        features: int,
        kernel: int,
        stride: int,
        train: bool,
    ) -> jax.Array:
        """Applies convolution, BatchNorm and swish: the stem and the top."""
        config = self.config
        x = Convolution(
            features,
            kernel,
            stride,
            padding=config.padding,
            dtype=self.dtype,
            kernels=self.kernels,
            name=name,
        )(x)
        return self._norm(swish=True, name=f"{name}_norm")(x, train)

    @property
    def _norm(self) -> Callable[..., BatchNorm]:
        """Constructor of BatchNorm with the tower's fields set."""
        return partial(
            BatchNorm,
            group_size=self.batch_norm_group,
            momentum=self.config.batch_norm_momentum,
            frozen=self.config.frozen_statistics,
            kernels=self.kernels,
        )

    def _run_stage(
        self,
        x: jax.Array,
        stage: tuple[tuple[str, Block], ...],
        survival: Sequence[jax.Array | None],
        train: bool,
    ) -> jax.Array:
        """Runs a stage of n blocks.

        Args:
          x: (B, H, W, C) input.
          stage: name of each block's parameters, and the block's shape.
          survival: n arrays (B,) that scale the blocks' outputs (stochastic depth), or
            None for each block.
          train: whether to use batch statistics.

        Returns:
          (B, H', W', C').
        """
        make_block = partial(
            rematerialised(
                gathered(MBConv, self), self.config.rematerialise, static_argnums=3
            ),
            norm=self._norm,
            padding=self.config.padding,
            dtype=self.dtype,
            kernels=self.kernels,
        )
        alone = len(stage)
        if self.config.scan and not self.is_initializing():
            alone = 1
        for (name, block), scale in zip(stage[:alone], survival, strict=False):
            x = make_block(block, name=name)(x, scale, train)
            x = split_batch(x, self)
        if stage[alone:]:
            names = [name for name, _ in stage[alone:]]
            body = make_block(stage[alone][1], parent=None)

            def run_block(variables: dict, x: jax.Array, scale: Any) -> Any:
                return body.apply(variables, x, scale, train, mutable=["batch_stats"])

            x = scan_blocks(self, names, run_block, x, survival[alone:])
        return x
