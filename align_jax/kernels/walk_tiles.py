"""Division of images into strips, one for each program, and of strips into tiles.

Images are cut into slabs of channels. A slab's pixels are cut into strips of
consecutive pixels. A program computes one strip, tile by tile.
"""

from typing import NamedTuple

from jax.experimental import pallas as pl

FILLED = 0.85  # minimum share of a tile's lanes in use, where possible


class Workload(NamedTuple):
    """Amount of work per program; `benchmarks.normalise --choices` tried other values.

    Attributes:
      lanes: numbers per tile.
      warps: warps per program.
      abreast: tiles that are loaded at once.
      programs: approximate minimum number of programs; `rounds` has priority.
      rounds: minimum number of tiles per program, if a slab of an image has that many.
        Fewer would cost more, because each program's sums are written and read again.
    """

    lanes: int = 1024
    warps: int = 8
    abreast: int = 2
    programs: int = 2048
    rounds: int = 16


WORKLOAD = Workload()


class WalkTile(NamedTuple):
    """Block of numbers that a program computes at a time, nearly adjacent in memory.

    Attributes:
      channels: number of channels of a slab: all channels or a multiple of 8.
      pixels: number of consecutive pixels; channels * pixels is at most the number of
        lanes.
    """

    channels: int
    pixels: int


class Cut(NamedTuple):
    """Division of images into programs.

    Attributes:
      workload: amount of work per program.
      pixels: number of pixels of an image.
      channels: channels of an image.
      tile: block of numbers that a program computes at a time.
      slabs: number of slabs of channels.
      strips: number of strips of an image's pixels.
      rounds: maximum number of tiles per strip.
    """

    workload: Workload
    pixels: int
    channels: int
    tile: WalkTile
    slabs: int
    strips: int
    rounds: int

    @classmethod
    def of(cls, shape: tuple[int, ...], workload: Workload) -> "Cut":
        """Returns the division of arrays (B, H, W, C)."""
        batch, height, width, channels = shape
        pixels, tile = height * width, choose_tile(channels, workload.lanes)
        slabs = pl.cdiv(channels, tile.channels)
        tiles = pl.cdiv(pixels, tile.pixels)
        rounds = pl.cdiv(tiles, pl.cdiv(workload.programs, batch * slabs))
        rounds = max(rounds, min(tiles, workload.rounds))
        return cls(
            workload=workload,
            pixels=pixels,
            channels=channels,
            tile=tile,
            slabs=slabs,
            strips=pl.cdiv(tiles, rounds),
            rounds=rounds,
        )


def choose_tile(channels: int, lanes: int) -> WalkTile:
    """Returns the tile with the widest slab that fills a share `FILLED` of the lanes.

    If no slab does, it is the tile that fills the most lanes.

    Args:
      channels: channels of the image.
      lanes: number of lanes of a tile.
    """
    units = pl.cdiv(channels, 8)
    best, most = WalkTile(1, lanes), 0.0
    for slabs in range(1, units + 1):
        width = min(8 * pl.cdiv(units, slabs), channels)
        filled = channels * (lanes // width) / (slabs * lanes)
        if filled > most:
            best, most = WalkTile(width, lanes // width), filled
        if most >= FILLED:
            break
    return best
