"""The programs that embed batches of pictures and texts with a model."""

import concurrent.futures
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from align_jax.devices.compiling import tracing
from align_jax.devices.mesh import batch_split, replicated
from align_jax.models.classifier import Classifier
from align_jax.models.dual_encoder import DualEncoder

OF_IMAGES = ("encode_images", "image_features", "classify_images")
OF_TEXTS = ("encode_texts", "project_texts", "text_features")


class EmbedPrograms:
    """A program for each method of a model; it compiles at its first use, or before.

    A program is a function (variables, images (B, H, W, 3), readable (B,)) or
    (variables, tokens (B, L)). The arrays are split over the devices, and the result is
    whole on each of them. Rows of pictures that are not readable are NaN.

    Attributes:
      jitted: the programs as jitted functions, by method.
    """

    def __init__(self, model: DualEncoder | Classifier, mesh: Mesh) -> None:
        """Prepares the functions; traces and compiles nothing."""
        self._split = batch_split(mesh)

        def of_images(
            variables: dict, images: jax.Array, readable: jax.Array, method: str
        ) -> jax.Array:
            found: Any = model.apply(variables, images, method=method)
            return jnp.where(readable[:, None], found, jnp.nan)

        def jitted(function: Callable, method: str, arrays: int) -> jax.stages.Wrapped:
            return jax.jit(
                partial(function, method=method),
                in_shardings=(None, *[self._split] * arrays),
                out_shardings=replicated(mesh),
            )

        self.jitted = {name: jitted(of_images, name, 2) for name in OF_IMAGES}
        self.jitted |= {name: jitted(model.apply, name, 1) for name in OF_TEXTS}
        self._prepared: dict[str, concurrent.futures.Future] = {}

    def prepare(
        self, variables: dict, inputs: Mapping[str, tuple[jax.ShapeDtypeStruct, ...]]
    ) -> None:
        """Begins to compile some programs, each in a thread.

        Args:
          variables: the variables that they will be called with.
          inputs: shapes of the arrays of a batch, by method.
        """

        def compile_one(method: str) -> jax.stages.Compiled:
            arrays = (
                jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._split)
                for x in inputs[method]
            )
            with tracing():
                lowered = self.jitted[method].lower(variables, *arrays)
            return lowered.compile()

        pool = concurrent.futures.ThreadPoolExecutor()
        self._prepared = {name: pool.submit(compile_one, name) for name in inputs}
        pool.shutdown(wait=False)

    def forget(self) -> None:
        """Drops what was prepared, since the variables change."""
        self._prepared = {}

    def get(self, method: str) -> Callable[..., jax.Array]:
        """Returns a program; waits for it if it was prepared."""
        if method in self._prepared:
            return self._prepared[method].result()
        return self.jitted[method]
