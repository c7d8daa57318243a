"""Convolutions in the form that is fast on the platform they run on.

XLA's grouped convolution is an order of magnitude slower on CPUs than a sum over
kernel taps, and faster than it on GPUs and TPUs; dense ones are matrix products on CPUs
and NVIDIA GPUs. All forms compute the same sum.
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

# Images whose products are summed at a time in the kernel's gradient on CPUs: few
# enough to stay in the cache (2.5 to 5 times faster than all at once, docs/log.md).
_CPU_CHUNK = 8

_READ = 16  # numbers that a piece of a kernel's gradient reads for one that it writes
_MOST_PIECES = 160  # a tile each is enough: an H100 has 132 multiprocessors

Padding = tuple[tuple[int, int], tuple[int, int]]


def same_padding(size: Sequence[int], kernel: int, stride: int) -> Padding:
    """TensorFlow's SAME rule: output is ceil(size / stride), odd zero at the end.

    Args:
      size: rows and columns of the input.
      kernel: side of the kernel.
      stride: step in both directions.
    """
    totals = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    top_bottom, left_right = ((t // 2, t - t // 2) for t in totals)
    return top_bottom, left_right


def keras_padding(size: Sequence[int], kernel: int, stride: int) -> Padding:
    """Keras' rule for inputs of unknown size: as if `size` were always even.

    The open ALIGN weights were trained with it: 289 pixels end in 9 x 9, not 10 x 10.
    """
    if stride == 1:
        return same_padding(size, kernel, stride)
    return ((kernel // 2 - 1, kernel // 2),) * 2


def output_size(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
    """Outputs of a convolution along an axis."""
    return (size + sum(padding) - kernel) // stride + 1


PADDINGS = {"same": same_padding, "keras": keras_padding}


def dense_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Convolves x (B, H, W, C) with a kernel (k, k, C, C') to (B, H', W', C')."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return _places_product(x, kernel[0, 0])
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: patch_product(x, kernel, stride, padding),
        default=lambda x, kernel: lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
    )


def patch_product(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`dense_conv` as one matrix product with what each output position sees."""
    patches, matrix = _patches(x, kernel, stride, padding)
    return _places_product(patches, matrix)


def _patches(x, kernel, stride, padding, multiple=1) -> tuple[jax.Array, jax.Array]:
    """What each output position sees, and the kernel to multiply it with.

    Both have zeros to a multiple of so many numbers.
    """
    taps = [*_shifts(_pad(x, padding), len(kernel), stride)]
    flat = kernel.reshape(-1, kernel.shape[-1])
    if lacking := -len(flat) % multiple:
        taps.append(jnp.zeros((*taps[0].shape[:-1], lacking), x.dtype))
        flat = jnp.pad(flat, ((0, lacking), (0, 0)))
    return jnp.concatenate(taps, -1), flat


def _places_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The product of x (..., C) with (C, C').

    Of two axes each: the gradient of more would be copied first.
    """
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def gpu_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`dense_conv` as NVIDIA GPUs are fast at it, see `split_product`.

    A larger kernel's is the product with what each output position sees, with zeros to
    a multiple of 8 numbers, which the tensor cores' loads want: cuDNN's convolutions
    of 3 channels take ten times as long.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return split_product(x, kernel[0, 0])
    patches, matrix = _patches(x, kernel, stride, padding, multiple=8)
    return split_product(patches, matrix)


@jax.custom_vjp
def split_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The product of x (B, H, W, C) with (C, C').

    The gradient to the matrix, a sum over every place of every image, has the few tiles
    of a small matrix, which leave most of a GPU idle. It is taken in pieces of the sum,
    each a product, which are summed after.
    """
    return _places_product(x, matrix)


def _split_product_forward(x, matrix):
    return split_product(x, matrix), (x, matrix)


def _split_product_backward(residuals, cotangent):
    x, matrix = residuals
    rows, out_rows = (v.reshape(-1, v.shape[-1]) for v in (x, cotangent))
    pieces = count_pieces(len(rows), rows.shape[1], out_rows.shape[1])
    rows, out_rows = (v.reshape(pieces, -1, v.shape[-1]) for v in (rows, out_rows))
    sums = jnp.einsum(
        "prc,prd->pcd", rows, out_rows, preferred_element_type=jnp.float32
    )
    to_x = _places_product(cotangent, matrix.T)
    return to_x, sums.sum(0).astype(matrix.dtype)


split_product.defvjp(_split_product_forward, _split_product_backward)


def count_pieces(rows: int, columns: int, other_columns: int) -> int:
    """Pieces of a product (columns, rows) x (rows, other columns), of equal rows.

    As many as read far more than they write. Their rows are a multiple of 8 where there
    is a choice: XLA has others copied, with zeros behind them.
    """
    written = _READ * columns * other_columns
    most = min(rows * (columns + other_columns) // written, _MOST_PIECES)
    units = rows // 8 if rows % 8 == 0 else rows
    return next(n for n in range(max(most, 1), 0, -1) if units % n == 0)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Convolves every channel with its own kernel.

    Args:
      x: (B, H, W, C) input.
      kernel: (k, k, 1, C) weights.
      stride: step in both directions.
      padding: ((top, bottom), (left, right)) zeros.

    Returns:
      (B, H', W', C) with H' = (H + top + bottom - k) // stride + 1.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: tap_sum(x, kernel, stride, padding),
        default=lambda x, kernel: grouped_conv(x, kernel, stride, padding),
    )


def grouped_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`depthwise_conv` as XLA's convolution with one group a channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def tap_sum(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`depthwise_conv` as a sum over kernel taps of shifted, scaled inputs."""
    return _tap_sum_forward(x, kernel, stride, padding)[0]


def _shifts(padded: jax.Array, k: int, stride: int):
    """Yields the input that each output position sees under tap (0, 0), (0, 1), ..."""
    batch, *sizes, channels = padded.shape
    # Of the first tap. Plain operations of `lax`: a large tower has thousands of taps.
    height, width = ((n - k) // stride * stride + 1 for n in sizes)
    for i in range(k):
        for j in range(k):
            last = (batch, i + height, j + width, channels)
            yield lax.slice(padded, (0, i, j, 0), last, (1, stride, stride, 1))


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _tap_sum_forward(x, kernel, stride, padding):
    # With zeros around it x is kept, too: without them it would be written once more.
    padded, k = _pad(x, padding), len(kernel)
    weights = (kernel[divmod(tap, k)][None, None] for tap in range(k * k))
    taps = zip(_shifts(padded, k, stride), weights, strict=True)
    scaled = (shifted * weight for shifted, weight in taps)
    return reduce(lax.add, scaled), (padded, kernel)


def _tap_sum_backward(stride, padding, residuals, cotangent):
    padded, kernel = residuals
    k = kernel.shape[0]
    size = [n - sum(p) for n, p in zip(padded.shape[1:3], padding, strict=True)]
    to_x = _scatter(cotangent, kernel, stride, padding, size)

    # Chunks take every n-th image, so a batch split over devices stays split. Their
    # images are summed at the end: in the loop that would be a collective a turn. So
    # are their columns: a sum of rows alone is over whole vectors.
    batch = len(padded)
    chunk = _CPU_CHUNK if batch % _CPU_CHUNK == 0 else batch
    padded_chunks = padded.reshape(chunk, -1, *padded.shape[1:])
    out_chunks = cotangent.reshape(chunk, -1, *cotangent.shape[1:])

    def add_chunk(i, total):
        x_i = lax.dynamic_index_in_dim(padded_chunks, i, 1, keepdims=False)
        out_i = lax.dynamic_index_in_dim(out_chunks, i, 1, keepdims=False)
        taps = [jnp.sum(shifted * out_i, 1) for shifted in _shifts(x_i, k, stride)]
        return total + jnp.stack(taps, 1)  # (chunk, k * k, W', C)

    zeros = jnp.zeros((chunk, k * k, *cotangent.shape[2:]), kernel.dtype)
    to_kernel = lax.fori_loop(0, padded_chunks.shape[1], add_chunk, zeros)
    return to_x, to_kernel.sum((0, 2)).reshape(kernel.shape)


def _scatter(cotangent, kernel, stride, padding, size):
    """Gradient to the input (B, *size, C): taps of the mirrored kernel, stride 1."""
    k = kernel.shape[0]
    config = [(0, 0, 0)]
    for n, n_out, (low, _) in zip(size, cotangent.shape[1:3], padding, strict=True):
        span = (n_out - 1) * stride + 1
        first = k - 1 - low
        config.append((first, n + k - 1 - first - span, stride - 1))
    spread = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [*config, (0, 0, 0)])
    return tap_sum(spread, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))


tap_sum.defvjp(_tap_sum_forward, _tap_sum_backward)
