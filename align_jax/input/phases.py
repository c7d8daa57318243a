"""Phases of a run: the sizes of pictures, texts and batches by step."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from align_jax.input.preprocess import PreprocessConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """The form of the global batches from a step on.

    Attributes:
      start: number of steps before the phase.
      pairs: number of pairs in a global batch.
      preprocess: sizes and augmentations of the pictures.
      max_tokens: length of the token sequences; None for that of the tokenizer.
      batches: number of global batches that a step reads, to train on one.
    """

    start: int
    pairs: int
    preprocess: PreprocessConfig
    max_tokens: int | None = None
    batches: int = 1

    @property
    def pairs_read(self) -> int:
        """Number of pairs that a step reads."""
        return self.pairs * self.batches

    @property
    def batch_read(self) -> str:
        """Name of the pairs that a step reads, for messages."""
        return "batch" if self.batches == 1 else "super-batch"


def check_starts(field: str, steps: Sequence[int]) -> None:
    """Checks the first steps of the phases of a config's field; there may be none.

    Raises:
      ValueError: the steps do not ascend from 0.
    """
    ascend = all(a < b for a, b in itertools.pairwise(steps))
    if not ascend or any(steps[:1]):
        raise ValueError(
            f"{field} begins phases at steps {[*steps]}; wanted 0 first and then later"
            " ones"
        )


def find_phase(phases: Sequence[Phase], step: int) -> int:
    """Returns the index of the phase that batch `step`, counted from 0, belongs to.

    Args:
      phases: phases in order; the first one starts at 0.
      step: number of a batch.
    """
    return bisect.bisect_right([phase.start for phase in phases], step) - 1


def count_pairs(phases: Sequence[Phase], steps: int) -> int:
    """Returns the number of pairs that the first `steps` steps read.

    Args:
      phases: phases in order; the first one starts at 0.
      steps: number of steps.
    """
    starts = [min(phase.start, steps) for phase in phases]
    spans = itertools.pairwise([*starts, steps])
    return sum(
        phase.pairs_read * (last - first)
        for phase, (first, last) in zip(phases, spans, strict=True)
    )
