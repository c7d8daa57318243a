"""How a walk cuts images into programs, and a program's part into tiles."""

from typing import NamedTuple

from jax.experimental import pallas as pl

FILLED = 0.85  # of a tile's lanes, at least, where that can be


class Workload(NamedTuple):
    """How much is done at a time; `benchmarks.normalise --choices` has tried others.

    Attributes:
      lanes: numbers of a tile.
      warps: of a program.
      abreast: tiles that are loaded at once.
      programs: minimum number of programs, if the images are large enough to split.
      rounds: minimum number of tiles of a program, whose sums are written and read
        again.
    """

    lanes: int = 1024
    warps: int = 8
    abreast: int = 2
    programs: int = 2048
    rounds: int = 16


WORKLOAD = Workload()


class WalkTile(NamedTuple):
    """Numbers that a program computes at a time, adjacent or nearly so in memory.

    Attributes:
      channels: of a slab, which divides the channels or is 8 times a number.
      places: consecutive pixels; with the slab's channels they fill at most the lanes.
    """

    channels: int
    places: int


class Cut(NamedTuple):
    """How images are cut into programs.

    Attributes:
      workload: how much a program does at a time.
      places: pixels of an image.
      channels: of an image.
      tile: a program goes through its part by tiles.
      slabs: of channels.
      strips: of pixels.
      rounds: maximum number of tiles of a strip.
    """

    workload: Workload
    places: int
    channels: int
    tile: WalkTile
    slabs: int
    strips: int
    rounds: int

    @classmethod
    def of(cls, shape: tuple[int, ...], workload: Workload) -> "Cut":
        """The cut of arrays (B, H, W, C)."""
        batch, height, width, channels = shape
        places, tile = height * width, choose_tile(channels, workload.lanes)
        slabs = pl.cdiv(channels, tile.channels)
        tiles = pl.cdiv(places, tile.places)
        rounds = pl.cdiv(tiles, pl.cdiv(workload.programs, batch * slabs))
        rounds = max(rounds, min(tiles, workload.rounds))
        return cls(
            workload=workload,
            places=places,
            channels=channels,
            tile=tile,
            slabs=slabs,
            strips=pl.cdiv(tiles, rounds),
            rounds=rounds,
        )


def choose_tile(channels: int, lanes: int) -> WalkTile:
    """The tile of the widest slab that fills its lanes well enough, or best.

    Args:
      channels: of the image.
      lanes: numbers that a tile may have.
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
