"""Vision transformer image tower (ViT, arXiv 2010.11929).

Its fields cover the image encoders of CLIP (arXiv 2103.00020) and SigLIP (arXiv
2303.15343), too. The output is the pooled feature before any projection.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from align_jax.config import LATE, check_choices
from align_jax.devices.mesh import Placement
from align_jax.errors import InputError
from align_jax.models.attention import XLA
from align_jax.models.attention_pool import AttentionPool
from align_jax.models.block import (
    EXECUTION_FIELDS,
    PREFIX,
    REMATERIALISATIONS,
    BlockShape,
    Randomness,
    check_blocks,
    draw_depth,
    run_blocks,
)
from align_jax.models.layers import (
    block_names,
    layer_norm,
)
from align_jax.models.patch_dropout import drop_patches
from align_jax.models.positions import (
    Rotation,
    resize_grid,
    rotary_positions,
    sincos_positions,
)
from align_jax.ranges import Count, Natural, Positive, ProperShare, Range

# Width, layers, heads and MLP width of the published sizes: arXiv 2010.11929, table 1
# (B, L, H); 2106.04560, table 2 (Ti, S, g, G); 2305.13035 (So400m); and 2502.14786
# (SigLIP 2's g-opt).
SIZES = {
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "h": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "g_opt": (1536, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}

POOLINGS = ("cls", "mean", "attention")
POSITIONS = ("learned", "sincos", "rope")
START = nn.initializers.truncated_normal(0.02)  # of tokens and learned positions


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Size, regularisation and execution of a vision transformer.

    `SIZES` has the published sizes. The defaults are those of ViT-B/16.

    Attributes:
      patch: side of a patch in pixels (published: 14, 16 or 32). Pixels on the right
        and at the bottom that fill no patch are left out.
      width: width of the tokens (B: 768), a multiple of `heads`.
      layers: number of transformer blocks (B: 12).
      heads: number of attention heads (B: 12).
      mlp_width: width between the two layers of an MLP (B: 3072).
      pooling: output of the tower: that of a class token ("cls", as in ViT and CLIP),
        the mean over patches ("mean"), or that of attention with one learned query over
        patches and an MLP ("attention", as in SigLIP).
      positions: "learned", "sincos" (sines and cosines of the coordinates, added to
        patches) or "rope" (rotations of queries and keys).
      position_grid: side of the grid of positions in patches (224 pixels by 16: 14). At
        another size of pictures, learned positions are resized, and the coordinates of
        the other forms are scaled to this grid.
      registers: number of learned tokens that the output leaves out (arXiv 2309.16588).
      pre_norm: whether to normalise the tokens before the first block (CLIP).
      patch_bias: whether the patch embedding has a bias (CLIP: no).
      activation: "gelu", "gelu_tanh" (SigLIP) or "quick_gelu" (OpenAI's CLIP).
      norm_epsilon: number that layer norms add to the variance (ViT and SigLIP: 1e-6,
        CLIP: 1e-5).
      layer_scale: initial factor of each block's two outputs; None for no factors.
      qk_norm: whether to normalise queries and keys by head.
      patch_dropout: share of patches that are left out in training (FLIP, arXiv
        2212.00794); the others are those of each example's random draw.
      drop_rate: stochastic-depth rate; block b = 1, 2, ... of n has b / n of it (arXiv
        1603.09382, equation 4).
      final_norm: whether to normalise the output of the last block.
      scan: whether to compile the blocks as one body; parameters and result are the
        same.
      rematerialise: "none", or "blocks" to keep only each block's input for the
        backward pass, which computes the rest again.
      kind: "vit".
      attention: "xla", or "cudnn" for cuDNN's flash attention on NVIDIA GPUs, in
        bfloat16.
    """

    # The contract of a tower, see `models.towers`.
    execution_fields: ClassVar[tuple[str, ...]] = EXECUTION_FIELDS
    memory_choices: ClassVar[Mapping[str, tuple]] = {
        "rematerialise": REMATERIALISATIONS
    }
    form_fields: ClassVar[tuple[str, ...]] = (
        "pooling",
        "positions",
        "position_grid",
        "activation",
        "norm_epsilon",
    )
    module_options: ClassVar[tuple[str, ...]] = ()
    block_prefix: ClassVar[str] = PREFIX
    # Gains and biases (CLIP, section 2.5), and learned tokens and positions (DeiT,
    # arXiv 2012.12877, in its published code).
    undecayed: ClassVar[tuple[str, ...]] = (
        ".*norm/scale$",
        ".*bias$",
        "(class_token|registers|position_embeddings|pool/probe|.*/layer_scale_[12])$",
    )
    optional_modules: ClassVar[tuple[str, ...]] = ("pool", "class_token", "registers")
    freezing_field: ClassVar[str] = ""
    kernels: ClassVar[str] = "plain"

    patch: Count = 16
    width: Count = 768
    layers: Annotated[int, Range(least=1, most=99)] = 12
    heads: Count = 12
    mlp_width: Count = 3072
    pooling: str = "cls"
    positions: str = "learned"
    position_grid: Count = 14
    registers: Natural = 0
    pre_norm: bool = False
    patch_bias: bool = True
    activation: str = "gelu"
    norm_epsilon: Positive = 1e-6
    layer_scale: Positive | None = None
    qk_norm: bool = False
    patch_dropout: ProperShare = 0.0
    drop_rate: ProperShare = 0.0
    final_norm: bool = True
    scan: bool = False
    rematerialise: str = "none"
    kind: str = "vit"
    attention: str = dataclasses.field(default=XLA, metadata=LATE)

    @property
    def output_width(self) -> int:
        """Width of the pooled features."""
        return self.width

    @property
    def block_shape(self) -> BlockShape:
        """Size and form of a block."""
        return BlockShape(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            layer_scale=self.layer_scale,
            qk_norm=self.qk_norm,
        )

    @property
    def leading_tokens(self) -> int:
        """Number of tokens before the patches: the class token and the registers."""
        return (self.pooling == "cls") + self.registers

    def block_names(self) -> list[str]:
        """Returns the names of the blocks' parameters, in order."""
        return block_names(self.block_prefix, self.layers)

    def computed_once(self) -> Self:
        """Returns the same tower without rematerialisation, scanned, by XLA."""
        return dataclasses.replace(self, rematerialise="none", scan=True, attention=XLA)

    @classmethod
    def smallest(cls) -> Self:
        """Returns a tower of one block with all parts but a class token.

        It has two heads and a register, and pools by attention.
        """
        return cls(
            patch=8,
            width=16,
            layers=1,
            heads=2,
            mlp_width=24,
            pooling="attention",
            position_grid=2,
            registers=1,
            pre_norm=True,
            layer_scale=0.5,
            qk_norm=True,
            patch_dropout=0.25,
            drop_rate=0.2,
        )

    def __post_init__(self) -> None:
        choices = {"pooling": POOLINGS, "positions": POSITIONS}
        check_choices(self, choices, "image_tower.")
        check_blocks(self, "image_tower.")
        if self.positions == "sincos" and (self.width % 4 or self.width < 8):
            raise ValueError(
                f"image_tower.positions is 'sincos' and image_tower.width {self.width};"
                " wanted a multiple of 4, at least 8"
            )
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ValueError(
                "image_tower.positions is 'rope' and a head's width"
                f" {self.width // self.heads} (width {self.width}, heads {self.heads});"
                " wanted a multiple of 4"
            )


class Vit(nn.Module):
    """The image encoder.

    Attributes:
      config: size, regularisation and execution.
      dtype: number type of the computation; parameters stay float32.
      placement: sharding by which each block gathers its parameters; None if parameters
        are not sharded.
    """

    config: VitConfig
    dtype: Any = jnp.float32
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, core_ids: jax.Array | None, train: bool
    ) -> jax.Array:
        """Encodes images.

        Args:
          images: (B, H, W, 3) pixels, scaled as the model's `pixel_mean` says.
          core_ids: (V,) global indices of the batch's virtual cores; None if not
            `train`.
          train: whether to use patch dropout and stochastic depth.

        Returns:
          (B, width) pooled features, float32.

        Raises:
          InputError: a picture is smaller than a patch.
        """
        config = self.config
        patch_key, randomness = self._draw(images.shape[0], core_ids, train)
        norm = partial(layer_norm, dtype=self.dtype, epsilon=config.norm_epsilon)
        x, rotation, learned = self._add_positions(self._embed_patches(images))
        x = x.reshape(x.shape[0], -1, config.width).astype(self.dtype)  # (B, L, W)
        if patch_key is not None:
            x, rotation = drop_patches(
                x, rotation, patch_key, core_ids, config.patch_dropout
            )
        x = self._add_leading_tokens(x, learned)
        if config.pre_norm:
            x = norm("pre_norm", x)
        shape = config.block_shape
        x = run_blocks(self, shape, x, randomness, core_ids=core_ids, rotation=rotation)
        first, last = config.leading_tokens, x.shape[1]
        if config.pooling == "cls":
            first, last = 0, 1
        x = lax.slice_in_dim(x, first, last, axis=1)
        if config.final_norm:
            x = norm("final_norm", x)
        if config.pooling == "attention":
            pool = AttentionPool(shape, self.dtype, name="pool")
            return pool(x).astype(jnp.float32)
        return x.mean(1, dtype=jnp.float32)  # (B, W); of one token if it is the class's

    def _draw(
        self, batch: int, core_ids: jax.Array | None, train: bool
    ) -> tuple[jax.Array | None, list[Randomness]]:
        """Returns patch dropout's key, or None, and random numbers of each block."""
        config, patch_key = self.config, None
        randomness = [Randomness()] * config.layers
        if train and (config.patch_dropout or config.drop_rate):
            patch_key, depth_key = jax.random.split(self.make_rng("dropout"))
            if config.drop_rate:
                layers, rate = config.layers, config.drop_rate
                randomness = draw_depth(depth_key, core_ids, batch, layers, rate)
        return patch_key if config.patch_dropout else None, randomness

    def _embed_patches(self, images: jax.Array) -> jax.Array:
        """Embeds images (B, H, W, 3) as patches (B, h, w, width), float32."""
        config, size = self.config, (self.config.patch, self.config.patch)
        if min(images.shape[1:3]) < config.patch:
            height, width = images.shape[1:3]
            raise InputError(
                f"pictures have {height} x {width} pixels and model.image_tower.patch"
                f" is {config.patch}; wanted pictures of one patch or more"
            )
        return nn.Conv(
            config.width,
            size,
            strides=size,
            padding="VALID",
            use_bias=config.patch_bias,
            dtype=self.dtype,
            name="patches",
        )(images).astype(jnp.float32)

    def _add_positions(
        self, x: jax.Array
    ) -> tuple[jax.Array, Rotation | None, jax.Array | None]:
        """Adds positions to patches x (B, h, w, W), or returns their rotations.

        Returns:
          The patches, the rotations of "rope", and the rows (N, W) of "learned"
          positions, of which a class token has the first.
        """
        config, side = self.config, self.config.position_grid
        height, width = x.shape[1:3]
        if config.positions == "rope":
            channels, before = config.width // config.heads, config.leading_tokens
            return x, rotary_positions(height, width, side, channels, before), None
        if config.positions == "sincos":
            waves = sincos_positions(height, width, side, config.width)
            return x + waves.reshape(1, height, width, config.width), None, None
        rows = side * side + (config.pooling == "cls")
        learned = self.param("position_embeddings", START, (rows, config.width))
        grid = learned[rows - side * side :].reshape(side, side, config.width)
        return x + resize_grid(grid, height, width)[None], None, learned

    def _add_leading_tokens(self, x: jax.Array, learned: jax.Array | None) -> jax.Array:
        """Puts the class token and the registers before the patches x (B, L, W).

        The first row of `learned` (N, W) is the position of the class token; it is None
        if positions are not learned.
        """
        config, leading = self.config, []
        if config.pooling == "cls":
            start = nn.initializers.zeros
            token = self.param("class_token", start, (config.width,))
            leading.append((token if learned is None else token + learned[0])[None])
        if config.registers:
            shape = (config.registers, config.width)
            leading.append(self.param("registers", START, shape))
        if not leading:
            return x
        tokens = jnp.concatenate(leading).astype(self.dtype)
        tokens = jnp.broadcast_to(tokens[None], (x.shape[0], *tokens.shape))
        return jnp.concatenate([tokens, x], axis=1)
