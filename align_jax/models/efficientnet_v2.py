"""EfficientNetV2 image tower (arXiv 2104.00298): EfficientNet with fused first stages.

Its module is `EfficientNet`. The head's 1x1 convolution is built if `top_conv` asks for
it, as for EfficientNet.
"""

import dataclasses
from typing import Self

from align_jax.models.efficientnet import EfficientNetConfig, StageRow
from align_jax.ranges import Natural

# Stages of the published sizes (S: table 4; all: google/automl, efficientnetv2). The
# first three are fused. A row is that of `efficientnet.STAGES`.
SIZES: dict[str, tuple[StageRow, ...]] = {
    "s": (
        (2, 3, 1, 1, 24),
        (4, 3, 2, 4, 48),
        (4, 3, 2, 4, 64),
        (6, 3, 2, 4, 128),
        (9, 3, 1, 6, 160),
        (15, 3, 2, 6, 256),
    ),
    "m": (
        (3, 3, 1, 1, 24),
        (5, 3, 2, 4, 48),
        (5, 3, 2, 4, 80),
        (7, 3, 2, 4, 160),
        (14, 3, 1, 6, 176),
        (18, 3, 2, 6, 304),
        (5, 3, 1, 6, 512),
    ),
    "l": (
        (4, 3, 1, 1, 32),
        (7, 3, 2, 4, 64),
        (7, 3, 2, 4, 96),
        (10, 3, 2, 4, 192),
        (19, 3, 1, 6, 224),
        (25, 3, 2, 6, 384),
        (7, 3, 1, 6, 640),
    ),
    "xl": (
        (4, 3, 1, 1, 32),
        (8, 3, 2, 4, 64),
        (8, 3, 2, 4, 96),
        (16, 3, 2, 4, 192),
        (24, 3, 1, 6, 256),
        (32, 3, 2, 6, 512),
        (8, 3, 1, 6, 640),
    ),
}


@dataclasses.dataclass(frozen=True)
class EfficientNetV2Config(EfficientNetConfig):
    """Size, regularisation and execution of an EfficientNetV2.

    Its fields are those of `EfficientNetConfig` and one more. `width` and `depth`
    multiply the channels and blocks of `stages`; the published sizes have 1.0.

    Attributes:
      stages: rows in the form of `efficientnet.STAGES` (S; `SIZES` has all sizes). The
        stem has the channels of the first row.
      fused_stages: number of first stages whose blocks are fused, see `MBConv`.
      kind: "efficientnet_v2".
    """

    stages: tuple[StageRow, ...] = SIZES["s"]
    fused_stages: Natural = 3
    kind: str = "efficientnet_v2"

    @property
    def stem_channels(self) -> int:
        """Channels of the stem before scaling: those of the first stage."""
        return self.rows[0][-1]

    @classmethod
    def smallest(cls) -> Self:
        """Returns a tower of five blocks with all the parts of larger towers.

        The first two blocks are fused with expansion 1; the second of them adds to its
        input, as the first does. The third is fused with expansion 4 and stride 2. The
        last two are not fused.
        """
        stages = ((2, 3, 1, 1, 8), (1, 3, 2, 4, 8), (2, 3, 2, 4, 16))
        return cls(stages=stages, fused_stages=2)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("image_tower.stages is (); wanted one row or more")
        super().__post_init__()
