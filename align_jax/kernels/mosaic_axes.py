"""Pixels that a depthwise convolution and its gradient see, for TPU kernels.

A program walks down the rows of some images and channels, one strip of rows after the
other. The rows that it has read stay in a ring of rows in vector memory, so each row is
read once from the device's memory.
"""

from typing import NamedTuple

from align_jax.kernels.convolution import output_size


class Axis(NamedTuple):
    """How the pixels of a result see the pixels of a source along one axis.

    Pixels of the result come in units of `factor`. Pixel `factor * u + phase` sees the
    source's pixel `stride * u + offset - low` for each (offset, tap) of the phase.

    Attributes:
      units: number of units of the result; the last one may have fewer pixels.
      factor: pixels of a unit.
      stride: pixels of the source from a unit to the next.
      low: zeros before the source's first pixel.
      taps: pairs (offset, tap) of each phase; a tap is a position of the kernel.
      pixels: number of pixels of the result.
      source: number of pixels of the source.
    """

    units: int
    factor: int
    stride: int
    low: int
    taps: tuple[tuple[tuple[int, int], ...], ...]
    pixels: int
    source: int

    @property
    def last_offset(self) -> int:
        """Largest offset that a unit sees."""
        return max(offset for phase in self.taps for offset, _ in phase)

    @property
    def seen(self) -> int:
        """Number of the source's pixels that are seen, with the zeros around them."""
        return self.stride * (self.units - 1) + self.last_offset + 1


def forward_axis(k: int, stride: int, size: int, padding: tuple[int, int]) -> Axis:
    """Returns the axis of a convolution of `size` pixels with k taps."""
    pixels = output_size(size, k, stride, padding)
    taps = tuple((tap, tap) for tap in range(k))
    return Axis(pixels, 1, stride, padding[0], (taps,), pixels, size)


def gradient_axis(k: int, stride: int, size: int, padding: tuple[int, int]) -> Axis:
    """Returns the axis of the gradient to `size` pixels, from the output's gradient."""
    seen = [
        [
            ((phase + padding[0] - tap) // stride, tap)
            for tap in range(k)
            if (phase + padding[0] - tap) % stride == 0
        ]
        for phase in range(stride)
    ]
    low = max(0, -min(offset for phase in seen for offset, _ in phase))
    taps = tuple(tuple((offset + low, tap) for offset, tap in phase) for phase in seen)
    source = output_size(size, k, stride, padding)
    return Axis(-(-size // stride), stride, 1, low, taps, size, source)


class Strips(NamedTuple):
    """How a program walks down the rows of an axis.

    In step t it reads strip t of the source, if there is one, and computes strip t - 1
    of the result. The source's row r is at index `r % ring` of the ring.

    Attributes:
      rows: axis of the rows.
      units: units of the result in a strip.
    """

    rows: Axis
    units: int

    @property
    def read(self) -> int:
        """Rows of the source in a strip."""
        return self.rows.stride * self.units

    @property
    def written(self) -> int:
        """Rows of the result in a strip."""
        return self.rows.factor * self.units

    @property
    def ring(self) -> int:
        """Rows that are held at a time."""
        return 2 * self.read + self.rows.low

    @property
    def steps(self) -> int:
        """Number of steps of a walk."""
        return -(-self.rows.units // self.units) + 1

    @property
    def last_read(self) -> int:
        """Number of the last strip of the source."""
        return -(-self.rows.source // self.read) - 1

    @property
    def fits(self) -> bool:
        """Whether the strip that is read last has all rows that a result needs."""
        rows = self.rows
        return rows.last_offset - rows.low - rows.stride < self.read
