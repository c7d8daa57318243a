"""The pre-layer-norm transformer block of image and text towers.

y = x + Attention(LN(x)) and z = y + MLP(LN(y)) (ViT, arXiv 2010.11929, equations 2 and
3; CLIP's text encoder is built of the same block, arXiv 2103.00020, section 2.4).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.config import check_choices
from align_jax.models.attention import ATTENTIONS, XLA, dot_product
from align_jax.models.layers import (
    dropout,
    gathered,
    gelu,
    layer_norm,
    rows,
    run_equal_blocks,
    survival_scales,
)
from align_jax.models.positions import Rotation

PREFIX = "layer_"  # of the names of blocks' parameters
REMATERIALISATIONS = ("none", "blocks")
EXECUTION_FIELDS = ("scan", "rematerialise", "attention")  # of towers of blocks


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Applies the tanh form of `gelu` in float32, as SigLIP does."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Applies x * sigmoid(1.702 x) in float32 (arXiv 1606.08415), as CLIP."""
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


class Deviations(NamedTuple):
    """Standard deviations of the normal distributions from which kernels start.

    Attributes:
      attention: deviation of the kernels of queries, keys and values.
      intermediate: deviation of the MLP's first kernel.
      output: deviation of the last kernels of the attention and of the MLP.
    """

    attention: float
    intermediate: float
    output: float


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Size and form of a block.

    Attributes:
      width: width W of the input and output, a multiple of `heads`.
      heads: number of attention heads.
      mlp_width: width between the two layers of the MLP.
      activation: a key of `ACTIVATIONS`.
      norm_epsilon: number that layer norms add to the variance.
      causal: whether a token attends to itself and earlier tokens only.
      layer_scale: initial factor of each channel of the attention's and the MLP's
        output (CaiT, arXiv 2103.17239, section 2); None for no factors.
      qk_norm: whether queries and keys are normalised by head (ViT-22B, arXiv
        2302.05442, section 2).
      attention: "xla", or "cudnn" for cuDNN's flash attention on NVIDIA GPUs.
      dropout: dropout rate after the attention and after the MLP.
      deviations: distributions from which kernels start; None for Xavier's uniform one,
        as in ViT's published code. Biases start at 0.
    """

    width: int
    heads: int
    mlp_width: int
    activation: str
    norm_epsilon: float
    causal: bool = False
    layer_scale: float | None = None
    qk_norm: bool = False
    attention: str = XLA
    dropout: float = 0.0
    deviations: Deviations | None = None

    def initializer(self, kernel: str) -> nn.initializers.Initializer:
        """Returns the distribution of a kernel's start; a field of `Deviations`."""
        if self.deviations is None:
            return nn.initializers.xavier_uniform()
        return nn.initializers.normal(getattr(self.deviations, kernel))


class Randomness(NamedTuple):
    """Random numbers of a block in training.

    Attributes:
      survival: factors (B,) of the attention's and of the MLP's output, float32, see
        `layers.survival_scales`; None for no stochastic depth.
      key: random key of the masks of dropout; None for no dropout.
    """

    survival: tuple[jax.Array, jax.Array] | None = None
    key: jax.Array | None = None


def draw_depth(
    key: jax.Array,
    core_ids: jax.Array | None,
    batch: int,
    layers: int,
    drop_rate: float,
) -> list[Randomness]:
    """Draws the stochastic depth of a tower's blocks.

    The attention and the MLP of block b = 1, 2, ... of n are each left out with
    probability drop_rate * b / n (arXiv 1603.09382, equation 4).

    Args:
      key: random key of this step.
      core_ids: (V,) global indices of the batch's virtual cores.
      batch: number of examples B, a multiple of V.
      layers: number n of blocks.
      drop_rate: probability of the last block, in [0, 1).
    """
    rates = [drop_rate * b / layers for b in range(1, layers + 1) for _ in range(2)]
    scales = survival_scales(key, core_ids, batch, rates)
    pairs = zip(scales[::2], scales[1::2], strict=True)
    return [Randomness(survival=pair) for pair in pairs]


class TransformerBlock(nn.Module):
    """One pre-layer-norm transformer block.

    Attributes:
      shape: size and form.
      dtype: number type of the computation; layer norms are float32.
    """

    shape: BlockShape
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        randomness: Randomness,
        core_ids: jax.Array | None = None,
        mask: jax.Array | None = None,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        """Maps x (B, L, W) to the same shape.

        Args:
          x: (B, L, W) input.
          randomness: random numbers of the block.
          core_ids: (V,) global indices of the batch's virtual cores; None if
            `randomness.key` is.
          mask: (B, L) bool, false on tokens that are not attended to; None for none.
          rotation: rotary positions; None for none.
        """
        shape = self.shape
        survival = randomness.survival or (None, None)
        key = randomness.key
        keys = (None, None) if key is None else jax.random.split(key)
        norm = partial(layer_norm, dtype=self.dtype, epsilon=shape.norm_epsilon)

        def add(x: jax.Array, branch: jax.Array, number: int) -> jax.Array:
            """Adds the attention's output, number 0, or the MLP's, number 1."""
            if shape.layer_scale is not None:
                start = nn.initializers.constant(shape.layer_scale)
                name = f"layer_scale_{number + 1}"
                factors = self.param(name, start, (shape.width,))
                branch = branch * factors.astype(self.dtype)[None, None]
            branch = dropout(branch, keys[number], core_ids, shape.dropout)
            if (scale := survival[number]) is not None:
                branch = branch * scale.astype(self.dtype)[:, None, None]
            return x + branch

        normed = norm("attention_norm", x)
        attended = attend(
            shape, normed, normed, self.dtype, mask=mask, rotation=rotation
        )
        x = add(x, attended, 0)
        return add(x, feed_forward(shape, norm("mlp_norm", x), self.dtype), 1)


def attend(
    shape: BlockShape,
    queries: jax.Array,
    inputs: jax.Array,
    dtype: Any,
    *,
    mask: jax.Array | None = None,
    rotation: Rotation | None = None,
) -> jax.Array:
    """Applies attention with several heads inside a module's compact method.

    Args:
      shape: size and form; `mlp_width` and what follows the attention are not used.
      queries: (B, Q, W) input of the queries.
      inputs: (B, L, W) input of the keys and values.
      dtype: number type of the computation.
      mask: (B, L) bool, false on inputs that are not attended to; None for none.
      rotation: rotary positions of queries and inputs; None for none.

    Returns:
      (B, Q, W).

    Raises:
      InputError: the devices or the sizes do not suit `shape.attention`.
    """
    by_head = partial(nn.DenseGeneral, dtype=dtype)
    start, size = shape.initializer("attention"), shape.width // shape.heads
    query, key, value = (
        by_head((shape.heads, size), kernel_init=start, name=name)(rows(x)).reshape(
            *x.shape[:2], shape.heads, size
        )
        for name, x in (("query", queries), ("key", inputs), ("value", inputs))
    )  # (B, Q or L, heads, W / heads)
    if shape.qk_norm:
        norm = partial(layer_norm, dtype=dtype, epsilon=shape.norm_epsilon)
        query, key = norm("query_norm", query), norm("key_norm", key)
    if rotation is not None:
        query, key = rotation.rotate(query), rotation.rotate(key)
    attended = dot_product(
        query,
        key,
        value,
        mask,
        causal=shape.causal,
        implementation=shape.attention,
    )
    start = shape.initializer("output")
    output = by_head(
        shape.width, axis=(-2, -1), kernel_init=start, name="attention_output"
    )
    return output(rows(attended)).reshape(queries.shape)


def feed_forward(shape: BlockShape, x: jax.Array, dtype: Any) -> jax.Array:
    """Applies the MLP to x (B, L, W) inside a module's compact method."""
    dense = partial(nn.Dense, dtype=dtype)
    start = shape.initializer("intermediate")
    hidden = dense(shape.mlp_width, kernel_init=start, name="intermediate")(rows(x))
    activation = ACTIVATIONS[shape.activation]
    hidden = jax.checkpoint(activation)(hidden)  # recomputed in the backward pass
    start = shape.initializer("output")
    return dense(shape.width, kernel_init=start, name="output")(hidden).reshape(x.shape)


def check_blocks(config: Any, where: str) -> None:
    """Checks the fields of a tower's config that describe its blocks.

    Args:
      config: config with `activation`, `attention`, `rematerialise`, `width` and
        `heads`.
      where: text before a field's name in the message, as in "image_tower.".

    Raises:
      ValueError: an unknown choice, or a width that the heads do not divide.
    """
    choices = {
        "activation": ACTIVATIONS,
        "attention": ATTENTIONS,
        "rematerialise": REMATERIALISATIONS,
    }
    check_choices(config, choices, where)
    if config.width % config.heads:
        raise ValueError(
            f"{where}width is {config.width}; it must be a multiple of {where}heads,"
            f" {config.heads}"
        )


def run_blocks(
    tower: nn.Module,
    shape: BlockShape,
    x: jax.Array,
    randomness: Sequence[Randomness],
    *,
    core_ids: jax.Array | None,
    mask: jax.Array | None = None,
    rotation: Rotation | None = None,
) -> jax.Array:
    """Runs a tower's blocks one after the other inside its compact method.

    Args:
      tower: module with `config`, `dtype` and `placement`; the config has `scan`,
        `rematerialise` and `block_names`.
      shape: size and form of every block.
      x: (B, L, W) input of the first block.
      randomness: random numbers of each block.
      core_ids: (V,) global indices of the batch's virtual cores; None if not training.
      mask: (B, L) bool, false on tokens that are not attended to; None for none.
      rotation: rotary positions; None for none.

    Returns:
      (B, L, W) output of the last block.
    """
    block = gathered(TransformerBlock, tower)
    if tower.config.rematerialise == "blocks":
        block = nn.remat(block)
    make_block = partial(block, shape, tower.dtype)
    shared = (core_ids, mask, rotation)
    names = tower.config.block_names()
    return run_equal_blocks(tower, names, make_block, x, randomness, *shared)
