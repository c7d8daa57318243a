"""EfficientNet's building blocks and its convolutions.

MBConv is that of EfficientNet (arXiv 1905.11946), and its fused form is that of
EfficientNetV2 (arXiv 2104.00298, figure 2).
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from align_jax.devices.kernel_choice import (
    INTERPRET,
    MOSAIC,
    MOSAIC_INTERPRET,
    TRITON,
    Kernels,
)
from align_jax.errors import InputError
from align_jax.kernels.convolution import (
    PADDINGS,
    Padding,
    dense_conv,
    depthwise_conv,
    gpu_conv,
)
from align_jax.kernels.depthwise_kernel import depthwise
from align_jax.kernels.mosaic_blocks import IMAGES
from align_jax.kernels.mosaic_bottleneck import fits, pays
from align_jax.models.batch_norm import BatchNorm
from align_jax.models.bottleneck import Shape, Weights, bottleneck

SQUEEZE_RATIO = 0.25

# Variance 2 / fan_out, as the published implementation initialises convolutions. A
# depthwise kernel (k, k, 1, C) has one output per channel, so its fan_out is k * k.
dense_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
depthwise_init = nn.initializers.variance_scaling(
    2.0, "fan_out", "truncated_normal", in_axis=-1, out_axis=-2
)


@dataclasses.dataclass(frozen=True)
class Block:
    """Shape of one MBConv block.

    Attributes:
      kernel: side of the depthwise kernel, or of the fused block's dense one.
      stride: stride of that convolution.
      expansion: factor of the channels in the block; 1 has no "expand" convolution.
      channels_in: channels of the input.
      channels_out: channels of the output.
      residual: whether the input is added to the output; their shapes must be equal.
      fused: whether one dense convolution replaces "expand" and the depthwise one, see
        `MBConv`.
    """

    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int
    residual: bool
    fused: bool = False

    @property
    def expanded(self) -> int:
        """Channels of the depthwise convolution."""
        return self.channels_in * self.expansion

    @property
    def reduced(self) -> int:
        """Channels of the hidden layer of the squeeze-excite gate."""
        return max(1, int(self.channels_in * SQUEEZE_RATIO))


class Convolution(nn.Module):
    """Dense convolution, or a depthwise one.

    Attributes:
      features: number of output channels; for a depthwise convolution, the input's.
      kernel: side of the kernel.
      stride: input pixels per output pixel, in both directions.
      depthwise: whether each channel has a separate kernel.
      padding: a key of `PADDINGS`.
      dtype: number type of the computation.
      kernels: choice between the forms for NVIDIA GPUs and plain XLA.
      kernel_init: initializer of the kernel; None for EfficientNet's.
      bias: whether a bias per channel is added; it starts at 0.
    """

    features: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    padding: str = "same"
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = Kernels()
    kernel_init: Callable[..., jax.Array] | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x (B, H, W, C) to (B, H', W', features)."""
        _, height, width, channels = x.shape
        channels_in = 1 if self.depthwise else channels
        shape = (self.kernel, self.kernel, channels_in, self.features)  # HWIO
        init = self.kernel_init or (depthwise_init if self.depthwise else dense_init)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        padding = PADDINGS[self.padding]((height, width), self.kernel, self.stride)
        out = checkpoint_name(self._convolve(x, kernel, padding), "convolution")
        if not self.bias:
            return out
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return out + bias.astype(self.dtype)[None, None, None]

    def _convolve(self, x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
        kind, stride = self.kernels.kind, self.stride
        if kind not in (TRITON, INTERPRET):
            plain = depthwise_conv if self.depthwise else dense_conv
            return plain(x, kernel, stride, padding)

        def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
            if self.depthwise:
                return depthwise(x, kernel, stride, padding, kind == INTERPRET)
            return gpu_conv(x, kernel, stride, padding)

        return self.kernels.by_batch(convolve, x, kernel)


class SqueezeExcite(nn.Module):
    """Weights of the gate that scales channels, see `gate_of`.

    Attributes:
      channels: number of gated channels.
      reduced: channels of the gate's hidden layer.
    """

    channels: int
    reduced: int

    @nn.compact
    def __call__(self) -> dict:
        """Returns {"reduce", "expand"}: {"kernel", "bias"} of its two dense layers."""
        return {
            "reduce": DenseWeights(self.channels, self.reduced, name="reduce")(),
            "expand": DenseWeights(self.reduced, self.channels, name="expand")(),
        }


class DenseWeights(nn.Module):
    """Kernel and bias of a dense layer that is applied elsewhere."""

    features_in: int
    features: int

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        """Returns {"kernel", "bias"}: (features_in, features) and (features,)."""
        shape = (self.features_in, self.features)
        return {
            "kernel": self.param("kernel", dense_init, shape),
            "bias": self.param("bias", nn.initializers.zeros, shape[1:]),
        }


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze-excite, project.

    A fused block (arXiv 2104.00298) expands by a dense convolution instead of a
    pointwise and a depthwise one, and has no squeeze-excite. With expansion 1, its
    "project" is that dense convolution.

    Attributes:
      block: shape of the block.
      norm: constructor of BatchNorm, which takes its fields `swish` and `name`.
      padding: a key of `PADDINGS`.
      dtype: number type of the computation.
      kernels: choice between the forms for NVIDIA GPUs, those for TPUs and plain XLA.
    """

    block: Block
    norm: Callable[..., BatchNorm]
    padding: str = "same"
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = Kernels()

    @nn.compact
    def __call__(
        self, x: jax.Array, survival: jax.Array | None, train: bool
    ) -> jax.Array:
        """Maps x (B, H, W, channels_in) to (B, H', W', channels_out).

        Args:
          x: (B, H, W, channels_in) input.
          survival: (B,) factors of the output that a residual block adds to its input
            (stochastic depth, see `survival_scales`); None for ones.
          train: whether to use batch statistics, see `BatchNorm`.
        """
        block = self.block
        hidden = (self._fused if block.fused else self._separable)(x, train)
        if not block.residual:
            return hidden
        if survival is not None:
            hidden = (hidden * survival[:, None, None, None]).astype(self.dtype)
        return x + hidden

    @property
    def _convolution(self) -> Callable[..., Convolution]:
        """Constructor of a convolution with the block's fields set."""
        return partial(
            Convolution, padding=self.padding, dtype=self.dtype, kernels=self.kernels
        )

    def _separable(self, x: jax.Array, train: bool) -> jax.Array:
        block, convolution = self.block, self._convolution
        norm = self.norm(parent=None)
        own = train and not norm.frozen and not self.is_initializing()
        if own and self._runs_as_bottleneck(x):
            x = self._as_bottleneck(x, norm)
            return self.norm(name="project_norm")(x, train)
        if block.expansion != 1:
            x = convolution(block.expanded, 1, name="expand")(x)
            x = self.norm(swish=True, name="expand_norm")(x, train)
        x = convolution(
            block.expanded, block.kernel, block.stride, depthwise=True, name="depthwise"
        )(x)
        excite = SqueezeExcite(block.expanded, block.reduced, name="squeeze_excite")()
        x = self.norm(swish=True, name="depthwise_norm")(x, train, excite)
        x = convolution(block.channels_out, 1, name="project")(x)
        return self.norm(name="project_norm")(x, train)

    def _runs_as_bottleneck(self, x: jax.Array) -> bool:
        """Returns whether the block runs by kernels for TPUs when it trains on x."""
        block, kernels = self.block, self.kernels
        width = block.channels_in + block.channels_out
        if block.expansion == 1 or kernels.kind not in (MOSAIC, MOSAIC_INTERPRET):
            return False
        if kernels.kind == MOSAIC_INTERPRET:
            return True
        return fits(width, block.expanded, self.dtype) and pays(x, kernels.devices)

    def _as_bottleneck(self, x: jax.Array, norm: BatchNorm) -> jax.Array:
        """Runs the block up to "project" by kernels for TPUs, see `bottleneck`."""
        kernels, local = self.kernels, len(x) // self.kernels.devices
        group = norm.group_size
        if local % group or (kernels.kind == MOSAIC and group % IMAGES):
            raise InputError(
                f"config.model.image_tower.kernels is {MOSAIC!r}, which needs groups of"
                f" {IMAGES}, {2 * IMAGES}, ... pictures that share BatchNorm's"
                f" statistics, and whole groups on a device; they are of {group}, and a"
                f" device has {local} pictures"
            )
        variables = self.variables
        params, running = variables["params"], variables["batch_stats"]

        def kernel(name: str) -> jax.Array:
            return params[name]["kernel"].astype(self.dtype)

        weights = Weights(
            expand=kernel("expand")[0, 0],
            scale=params["expand_norm"]["scale"],
            bias=params["expand_norm"]["bias"],
            depthwise=kernel("depthwise"),
            second_scale=params["depthwise_norm"]["scale"],
            second_bias=params["depthwise_norm"]["bias"],
            excite=params["squeeze_excite"],
            project=kernel("project")[0, 0],
        )
        block = self.block
        padding = PADDINGS[self.padding](x.shape[1:3], block.kernel, block.stride)
        shape = Shape(block.stride, padding, group, kernels)
        out, *statistics = kernels.by_batch(
            lambda x, weights: bottleneck(x, weights, shape), x, weights
        )
        names = "expand_norm", "depthwise_norm"
        for name, batch in zip(names, statistics, strict=True):
            mean, var = norm.moved((running[name]["mean"], running[name]["var"]), batch)
            self.put_variable("batch_stats", name, {"mean": mean, "var": var})
        return out

    def _fused(self, x: jax.Array, train: bool) -> jax.Array:
        block, convolution = self.block, self._convolution
        dense = (block.kernel, block.stride)
        if block.expansion == 1:
            x = convolution(block.channels_out, *dense, name="project")(x)
            return self.norm(swish=True, name="project_norm")(x, train)
        x = convolution(block.expanded, *dense, name="expand")(x)
        x = self.norm(swish=True, name="expand_norm")(x, train)
        x = convolution(block.channels_out, 1, name="project")(x)
        return self.norm(name="project_norm")(x, train)
