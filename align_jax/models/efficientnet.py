"""EfficientNet image tower (arXiv 1905.11946) without the head's 1x1 convolution.

ALIGN (arXiv 2102.05918, section 4.1) takes the global average of the last block's
output as the image's features; the classification head is never built.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.models.convolution import dense_conv, depthwise_conv, same_padding
from align_jax.models.layers import BatchNorm, Dropout

# B0's stages: (blocks, kernel, stride, expansion, output channels).
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
SQUEEZE_RATIO = 0.25

# Variance 2 / fan_out, as the published implementation initialises convolutions.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Size and regularisation of an EfficientNet.

    Attributes:
      width: channel multiplier (B0: 1.0, B7: 2.0).
      depth: block multiplier (B0: 1.0, B7: 3.1).
      drop_rate: stochastic-depth rate of the last block; block b of n has b / n of it.
      batch_norm_momentum: decay of BatchNorm's running statistics.
    """

    width: float = 1.0
    depth: float = 1.0
    drop_rate: float = 0.2
    batch_norm_momentum: float = 0.99


@dataclasses.dataclass(frozen=True)
class Block:
    """Shape of one MBConv block; channels are those entering and leaving it."""

    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int
    residual: bool
    drop_rate: float


def round_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Scales a channel count to a multiple of 8, never below 90 % of the product."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def expand_stages(config: EfficientNetConfig) -> list[Block]:
    """Lists the blocks of a scaled network in order."""
    repeats = [math.ceil(config.depth * stage[0]) for stage in STAGES]
    channels = round_channels(STEM_CHANNELS, config.width)
    blocks: list[Block] = []
    for count, (_, kernel, stride, expansion, out) in zip(repeats, STAGES, strict=True):
        channels_out = round_channels(out, config.width)
        for index in range(count):
            blocks.append(
                Block(
                    kernel=kernel,
                    stride=stride if index == 0 else 1,
                    expansion=expansion,
                    channels_in=channels,
                    channels_out=channels_out,
                    residual=index > 0,
                    drop_rate=config.drop_rate * len(blocks) / sum(repeats),
                )
            )
            channels = channels_out
    return blocks


def pooled_width(config: EfficientNetConfig) -> int:
    """Width of the pooled features: 320 for B0, 640 for B7."""
    return round_channels(STAGES[-1][-1], config.width)


class Convolution(nn.Module):
    """Dense convolution without bias, or a depthwise one.

    Attributes:
      features: output channels; those of the input for a depthwise convolution.
      kernel: side of the kernel.
      stride: step in both directions.
      depthwise: one kernel a channel.
      dtype: compute type.
    """

    features: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x (B, H, W, C) to (B, H', W', features)."""
        channels_in = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel, self.kernel, channels_in, self.features)  # HWIO
        kernel = self.param("kernel", conv_init, shape).astype(self.dtype)
        padding = same_padding(x.shape[1:3], self.kernel, self.stride)
        convolve = depthwise_conv if self.depthwise else dense_conv
        return convolve(x, kernel, self.stride, padding)


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their spatial means.

    Attributes:
      reduced: channels of the gate's hidden layer, a quarter of the block's input.
      dtype: compute type.
    """

    reduced: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates x (B, H, W, C)."""
        means = x.mean((1, 2), dtype=jnp.float32).astype(self.dtype)  # (B, C)
        dense = dict(kernel_init=conv_init, dtype=self.dtype)
        hidden = nn.swish(nn.Dense(self.reduced, name="reduce", **dense)(means))
        gate = nn.sigmoid(nn.Dense(x.shape[-1], name="expand", **dense)(hidden))
        return x * gate[:, None, None]


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze-excite, project.

    Attributes:
      block: the block's shape.
      norm: BatchNorm's fields.
      dtype: compute type.
    """

    block: Block
    norm: dict
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, core_ids: jax.Array, train: bool) -> jax.Array:
        """Maps x (B, H, W, channels_in) to (B, H', W', channels_out)."""
        block = self.block
        expanded = block.channels_in * block.expansion
        hidden = x
        if block.expansion != 1:
            hidden = Convolution(expanded, 1, dtype=self.dtype, name="expand")(hidden)
            hidden = BatchNorm(**self.norm, name="expand_norm")(hidden, train)
            hidden = nn.swish(hidden)
        hidden = Convolution(
            expanded,
            block.kernel,
            block.stride,
            depthwise=True,
            dtype=self.dtype,
            name="depthwise",
        )(hidden)
        hidden = BatchNorm(**self.norm, name="depthwise_norm")(hidden, train)
        hidden = nn.swish(hidden)
        reduced = max(1, int(block.channels_in * SQUEEZE_RATIO))
        hidden = SqueezeExcite(reduced, self.dtype, name="squeeze_excite")(hidden)
        hidden = Convolution(block.channels_out, 1, dtype=self.dtype, name="project")(
            hidden
        )
        hidden = BatchNorm(**self.norm, name="project_norm")(hidden, train)
        if not block.residual:
            return hidden
        drop = Dropout(block.drop_rate, per_example=True, name="stochastic_depth")
        return x + drop(hidden, core_ids, train)


class EfficientNet(nn.Module):
    """The image encoder.

    Attributes:
      config: size and regularisation.
      batch_norm_group: images that share BatchNorm statistics.
      dtype: compute type; parameters and statistics stay float32.
    """

    config: EfficientNetConfig
    batch_norm_group: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, core_ids: jax.Array, train: bool
    ) -> jax.Array:
        """Encodes images.

        Args:
          images: (B, H, W, 3) in [-1, 1].
          core_ids: (V,) global index of the batch's virtual cores.
          train: batch statistics and stochastic depth if true.

        Returns:
          (B, pooled_width) mean over the last grid, float32.
        """
        norm = dict(
            group_size=self.batch_norm_group, momentum=self.config.batch_norm_momentum
        )
        stem = round_channels(STEM_CHANNELS, self.config.width)
        x = images.astype(self.dtype)
        x = Convolution(stem, 3, stride=2, dtype=self.dtype, name="stem")(x)
        x = nn.swish(BatchNorm(**norm, name="stem_norm")(x, train))
        for index, block in enumerate(expand_stages(self.config)):
            x = MBConv(block, norm, self.dtype, name=f"block_{index:02}")(
                x, core_ids, train
            )
        return x.mean((1, 2), dtype=jnp.float32)  # (B, C)
