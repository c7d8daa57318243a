"""The config field `hard_pairs`: training on a part of the pairs that a step reads."""

import dataclasses

from align_jax.config import check_choices
from align_jax.ranges import Count, Positive, ProperShare

# Weights of the learner's and the reference's loss in a pair's score.
SCORINGS = {
    "learnable": (1.0, -1.0),
    "hard": (1.0, 0.0),
    "easy_reference": (0.0, -1.0),
}
ROUNDING = 0.0005 + 1e-9  # largest error of a ratio with three digits, and of float64


@dataclasses.dataclass(frozen=True)
class HardPairs:
    """The choice of each batch from a super-batch, see `align_jax.losses.pair_choice`.

    Attributes:
      filter_ratio: share of the pairs read that are not trained on, 1 - 1 / a whole
        number of batches in a super-batch, exact or with three digits, such as 0.5, 0.8
        or 0.667; 0 for no choice.
      chunks: number of chunks in which a batch is drawn, a divisor of the global batch.
      scoring: a key of `SCORINGS`: "learnable" for the learner's loss minus the
        reference's; "hard" for the learner's loss; "easy_reference" for minus the
        reference's loss.
      gain: factor of the scores; a larger one makes the draws less random.
      reference_temperature: temperature of the reference, whose embeddings are those of
        the teacher in `input`; None without a reference.
      reference_bias: bias of the reference's logits, for the sigmoid loss; else None.
    """

    filter_ratio: ProperShare = 0.8
    chunks: Count = 16
    scoring: str = "learnable"
    gain: Positive = 1.0
    reference_temperature: Positive | None = None
    reference_bias: float | None = None

    def __post_init__(self) -> None:
        check_choices(self, {"scoring": SCORINGS}, "hard_pairs.")
        if abs(self.filter_ratio - (1.0 - 1.0 / self.batches)) > ROUNDING:
            raise ValueError(
                f"hard_pairs.filter_ratio is {self.filter_ratio}; wanted 1 - 1 / a"
                " whole number, such as 0.5, 0.667, 0.75 or 0.8"
            )

    @property
    def batches(self) -> int:
        """Number of batches in a super-batch, of which one is trained on."""
        return round(1.0 / (1.0 - self.filter_ratio))

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the learner's and the reference's loss in a pair's score."""
        return SCORINGS[self.scoring]

    def check_reference(self, teacher_width: int, wants_bias: bool) -> None:
        """Checks that the config has exactly the reference that the scoring wants.

        Args:
          teacher_width: width of the teacher's embeddings in the records; 0 for none.
          wants_bias: whether the loss has a bias.

        Raises:
          ValueError: a part of the reference is missing or is not used.
        """
        reference = self.weights[1] != 0.0
        if reference and not teacher_width:
            raise ValueError(
                f"hard_pairs.scoring is {self.scoring!r}, which needs a reference, but"
                " input.teacher_width is 0; give the records a teacher's embeddings, or"
                " take 'hard'"
            )
        for name, wanted in (
            ("reference_temperature", reference),
            ("reference_bias", reference and wants_bias),
        ):
            value = getattr(self, name)
            if (value is not None) != wanted:
                raise ValueError(
                    f"hard_pairs.{name} is {value}; wanted"
                    f" {'a number' if wanted else 'None'} for scoring {self.scoring!r}"
                    f" with {'a' if wants_bias else 'no'} bias"
                )
