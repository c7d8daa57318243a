"""Convolutions in the form that is fastest on each platform.

XLA's grouped convolution is an order of magnitude slower on CPUs than a sum over
kernel taps (the k x k positions of a kernel), but faster than that sum on GPUs and
TPUs. Dense convolutions are matrix products on CPUs and, with `gpu_conv`, on NVIDIA
GPUs. All forms compute the same sum, up to rounding.
"""

from collections.abc import Iterator, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

# Images per turn in the kernel's gradient on CPUs. Eight images stay in the cache,
# which is 2.5 to 5 times faster than all images at once (docs/log.md).
_CPU_CHUNK = 8

_READ = 16  # numbers read per number written in a piece of a kernel's gradient
_MOST_PIECES = 160  # enough with one tile each: an H100 has 132 multiprocessors

Padding = tuple[tuple[int, int], tuple[int, int]]


def same_padding(size: Sequence[int], kernel: int, stride: int) -> Padding:
    """Returns TensorFlow's SAME padding: the output's size is ceil(size / stride).

    If an axis gets an odd number of zeros, its end gets one more than its beginning.

    Args:
      size: numbers of rows and columns of the input.
      kernel: side of the kernel.
      stride: input pixels per output pixel, in both directions.

    Returns:
      ((top, bottom), (left, right)) numbers of zeros.
    """
    totals = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    top_bottom, left_right = ((t // 2, t - t // 2) for t in totals)
    return top_bottom, left_right


def keras_padding(size: Sequence[int], kernel: int, stride: int) -> Padding:
    """Returns Keras' padding for inputs of unknown size, for strides 1 and 2.

    At stride 1 it is `same_padding`. At stride 2 it is the `same_padding` of even
    sizes, even if `size` is odd. The open ALIGN weights were trained with this padding:
    the tower's five strides of 2 reduce an image of 289 x 289 pixels to 9 x 9, not to
    10 x 10. Arguments and result are those of `same_padding`.
    """
    if stride == 1:
        return same_padding(size, kernel, stride)
    return ((kernel // 2 - 1, kernel // 2),) * 2


def output_size(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
    """Returns the number of outputs of a convolution along one axis.

    `padding` is the numbers of zeros before and after the axis's `size` inputs.
    """
    return (size + sum(padding) - kernel) // stride + 1


PADDINGS = {"same": same_padding, "keras": keras_padding}


def dense_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Convolves x (B, H, W, C) with a kernel (k, k, C, C') to (B, H', W', C').

    `stride` and `padding` are those of `depthwise_conv`. For a 1 x 1 kernel at stride
    1, the padding must be zero: it is ignored.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return _pixel_product(x, kernel[0, 0])
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
    """Computes `dense_conv` as one matrix product with the patches of x (im2col)."""
    patches, matrix = _patches(x, kernel, stride, padding)
    return _pixel_product(patches, matrix)


def _patches(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, multiple: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Returns the patch of x that each output pixel sees, and the kernel as a matrix.

    Their shapes are (B, H', W', R) and (R, C'), where R is k * k * C, rounded up to
    `multiple` with zeros.
    """
    taps = [*_shifts(_pad(x, padding), len(kernel), stride)]
    flat = kernel.reshape(-1, kernel.shape[-1])
    if lacking := -len(flat) % multiple:
        taps.append(jnp.zeros((*taps[0].shape[:-1], lacking), x.dtype))
        flat = jnp.pad(flat, ((0, lacking), (0, 0)))
    return jnp.concatenate(taps, -1), flat


def _pixel_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies x (..., C) by a matrix (C, C').

    x is flattened to two axes, because the gradient of an x with more axes would be
    copied.
    """
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def gpu_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Computes `dense_conv` in the form that is fast on NVIDIA GPUs, a `split_product`.

    For larger kernels than 1 x 1 the product takes the patches that the output pixels
    see. They are padded with zeros to a multiple of 8 numbers, which loads for the
    tensor cores need. cuDNN's convolutions of 3 channels take ten times as long.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return split_product(x, kernel[0, 0])
    patches, matrix = _patches(x, kernel, stride, padding, multiple=8)
    return split_product(patches, matrix)


@jax.custom_vjp
def split_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies x (B, H, W, C) by a matrix (C, C').

    The matrix's gradient is a sum over every pixel of every image. The matrix is small,
    so a single product for the whole sum would leave most of a GPU idle. The backward
    pass therefore splits the sum into pieces: it computes one product for each piece
    and adds these products at the end.
    """
    return _pixel_product(x, matrix)


def _split_product_forward(
    x: jax.Array, matrix: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return split_product(x, matrix), (x, matrix)


def _split_product_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    rows, out_rows = (v.reshape(-1, v.shape[-1]) for v in (x, cotangent))
    pieces = count_pieces(len(rows), rows.shape[1], out_rows.shape[1])
    rows, out_rows = (v.reshape(pieces, -1, v.shape[-1]) for v in (rows, out_rows))
    sums = jnp.einsum(
        "prc,prd->pcd", rows, out_rows, preferred_element_type=jnp.float32
    )
    to_x = _pixel_product(cotangent, matrix.T)
    return to_x, sums.sum(0).astype(matrix.dtype)


split_product.defvjp(_split_product_forward, _split_product_backward)


def count_pieces(rows: int, columns: int, other_columns: int) -> int:
    """Returns the number of pieces that the sum of a product is split into.

    The product is (columns, rows) x (rows, other_columns). All pieces have the same
    number of rows. The number of pieces is the largest, up to `_MOST_PIECES`, with
    which a piece reads at least `_READ` numbers per number that it writes. If `rows` is
    a multiple of 8, so is the number of rows of a piece, because XLA copies other
    operands to pad them with zeros.
    """
    written = _READ * columns * other_columns
    most = min(rows * (columns + other_columns) // written, _MOST_PIECES)
    units = rows // 8 if rows % 8 == 0 else rows
    return next(n for n in range(max(most, 1), 0, -1) if units % n == 0)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Convolves each channel with a separate kernel.

    Args:
      x: (B, H, W, C) input.
      kernel: (k, k, 1, C) weights.
      stride: input pixels per output pixel, in both directions.
      padding: ((top, bottom), (left, right)) numbers of zeros.

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
    """Computes `depthwise_conv` as XLA's convolution with one group per channel."""
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
    """Computes `depthwise_conv` as a sum over kernel taps of shifted, scaled inputs."""
    return _tap_sum_forward(x, kernel, stride, padding)[0]


def _shifts(padded: jax.Array, k: int, stride: int) -> Iterator[jax.Array]:
    """Yields for each tap (0, 0), (0, 1), ... the inputs under it, (B, H', W', C)."""
    batch, *sizes, channels = padded.shape
    # Rows and columns that a tap spans. Plain `lax` operations, because a large tower
    # has thousands of taps to trace.
    height, width = ((n - k) // stride * stride + 1 for n in sizes)
    for i in range(k):
        for j in range(k):
            last = (batch, i + height, j + width, channels)
            yield lax.slice(padded, (0, i, j, 0), last, (1, stride, stride, 1))


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _tap_sum_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The backward pass gets the padded x: padding x there would write it once more.
    padded, k = _pad(x, padding), len(kernel)
    weights = (kernel[divmod(tap, k)][None, None] for tap in range(k * k))
    taps = zip(_shifts(padded, k, stride), weights, strict=True)
    scaled = (shifted * weight for shifted, weight in taps)
    return reduce(lax.add, scaled), (padded, kernel)


def _tap_sum_backward(
    stride: int,
    padding: Padding,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    padded, kernel = residuals
    k = kernel.shape[0]
    size = [n - sum(p) for n, p in zip(padded.shape[1:3], padding, strict=True)]
    to_x = _scatter(cotangent, kernel, stride, padding, size)

    # A chunk takes every n-th image, so a batch split over devices stays split. The
    # loop sums over rows only. Images are summed at the end, because in the loop their
    # sum would need a collective per turn. Columns are summed at the end, too, because
    # a sum over rows alone adds whole vectors.
    batch = len(padded)
    chunk = _CPU_CHUNK if batch % _CPU_CHUNK == 0 else batch
    padded_chunks = padded.reshape(chunk, -1, *padded.shape[1:])
    out_chunks = cotangent.reshape(chunk, -1, *cotangent.shape[1:])

    def add_chunk(i: jax.Array, total: jax.Array) -> jax.Array:
        x_i = lax.dynamic_index_in_dim(padded_chunks, i, 1, keepdims=False)
        out_i = lax.dynamic_index_in_dim(out_chunks, i, 1, keepdims=False)
        taps = [jnp.sum(shifted * out_i, 1) for shifted in _shifts(x_i, k, stride)]
        return total + jnp.stack(taps, 1)  # (chunk, k * k, W', C)

    zeros = jnp.zeros((chunk, k * k, *cotangent.shape[2:]), kernel.dtype)
    to_kernel = lax.fori_loop(0, padded_chunks.shape[1], add_chunk, zeros)
    return to_x, to_kernel.sum((0, 2)).reshape(kernel.shape)


def _scatter(
    cotangent: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    size: Sequence[int],
) -> jax.Array:
    """Returns the gradient (B, *size, C) of x: a tap sum with the mirrored kernel."""
    k = kernel.shape[0]
    config = [(0, 0, 0)]
    for n, n_out, (low, _) in zip(size, cotangent.shape[1:3], padding, strict=True):
        span = (n_out - 1) * stride + 1
        first = k - 1 - low
        config.append((first, n + k - 1 - first - span, stride - 1))
    spread = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [*config, (0, 0, 0)])
    return tap_sum(spread, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))


tap_sum.defvjp(_tap_sum_forward, _tap_sum_backward)
