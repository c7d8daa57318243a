"""Parameters and operations of the published sizes, counted by hand and by the tower.

The counts by hand follow the papers' tables: a layer after the other, with no part of
the towers' code. Multiplications with additions are half of our operations.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from align_jax.models import convnext
from align_jax.models.convnext import ConvNeXtConfig
from align_jax.models.efficientnet_v2 import SIZES, EfficientNetV2Config
from align_jax.models.parameters import FIRST_INPUTS, key_shape
from align_jax.models.towers import build_tower
from align_jax.training.flops import count_flops


@dataclasses.dataclass
class Count:
    """Counts parameters, running statistics and multiplications of a network.

    `side` is that of the current picture.
    """

    side: int
    parameters: int = 0
    statistics: int = 0
    products: int = 0

    def convolve(self, kernel, wide_in, wide_out, stride=1, groups=1, bias=False):
        self.side //= stride
        weights = kernel**2 * wide_in // groups * wide_out
        self.parameters += weights + bias * wide_out
        self.products += weights * self.side**2
        return wide_out

    def dense(self, wide_in, wide_out, bias=True):
        """Counts a layer whose input is one vector."""
        self.parameters += (wide_in + bias) * wide_out
        self.products += wide_in * wide_out

    def normalise(self, channels, running=True):
        self.parameters += 2 * channels
        self.statistics += 2 * channels * running


def count_convnext(stages, side):
    """Counts a ConvNeXt (arXiv 2201.03545, figure 4 and table 9)."""
    count, before = Count(side), 3
    for index, (blocks, wide) in enumerate(stages):
        if index == 0:
            count.convolve(4, 3, wide, stride=4, bias=True)
            count.normalise(wide, running=False)
        else:
            count.normalise(before, running=False)
            count.convolve(2, before, wide, stride=2, bias=True)
        for _ in range(blocks):
            count.convolve(7, wide, wide, groups=wide, bias=True)
            count.normalise(wide, running=False)
            count.convolve(1, wide, 4 * wide, bias=True)
            count.convolve(1, 4 * wide, wide, bias=True)
            count.parameters += wide  # the layer scale
        before = wide
    count.normalise(before, running=False)
    return count


# (blocks, stride, expansion, channels) of each stage; the first three are fused.
V2_ROWS = {
    "s": "2,1,1,24 4,2,4,48 4,2,4,64 6,2,4,128 9,1,6,160 15,2,6,256",
    "m": "3,1,1,24 5,2,4,48 5,2,4,80 7,2,4,160 14,1,6,176 18,2,6,304 5,1,6,512",
    "l": "4,1,1,32 7,2,4,64 7,2,4,96 10,2,4,192 19,1,6,224 25,2,6,384 7,1,6,640",
    "xl": "4,1,1,32 8,2,4,64 8,2,4,96 16,2,4,192 24,1,6,256 32,2,6,512 8,1,6,640",
}


def read_rows(text):
    return [tuple(int(n) for n in row.split(",")) for row in text.split()]


def count_efficientnet_v2(rows, side):
    """Counts an EfficientNetV2 (arXiv 2104.00298, figure 2) to its last block."""
    rows, count = read_rows(rows), Count(side)
    wide = count.convolve(3, 3, rows[0][3], stride=2)
    count.normalise(wide)
    for index, (blocks, first_stride, expansion, out) in enumerate(rows):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            inner = wide * expansion
            if index < 3 and expansion == 1:
                count.convolve(3, wide, out, stride)
            elif index < 3:
                count.normalise(count.convolve(3, wide, inner, stride))
                count.convolve(1, inner, out)
            else:
                count.normalise(count.convolve(1, wide, inner))
                count.convolve(3, inner, inner, stride, groups=inner)
                count.normalise(inner)
                count.dense(inner, wide // 4)
                count.dense(wide // 4, inner)
                count.convolve(1, inner, out)
            count.normalise(out)
            wide = out
    return count


class Published(NamedTuple):
    """Published figures of a network.

    Attributes:
      parameters: number of parameters; with running statistics for EfficientNetV2.
      rounding: largest difference from `parameters` that its rounding explains.
      billions: number of multiplications with additions, in 1e9.
      within: largest difference from `billions` that its rounding explains.
      outputs: outputs of the last dense layer, which our towers lack.
      bias: whether that layer has a bias.
    """

    parameters: int
    rounding: int
    billions: float
    within: float
    outputs: int = 1000
    bias: bool = True


def with_projection(millions, operations, outputs):
    """Returns a row of docs/model_profile.csv of OpenCLIP."""
    return Published(
        round(millions * 1e6), 5_000, operations / 2, 0.0025, outputs, False
    )


# ConvNeXt T to L: torchvision, models/convnext.py (num_params, _ops). At 256 pixels,
# OpenCLIP's docs/model_profile.csv has convnext_base_w, convnext_xlarge and
# convnext_xxlarge. EfficientNetV2: google/automl, efficientnetv2/effnetv2_model_test.py
# has the parameters, torchvision, models/efficientnet.py, the operations of S to L. For
# XL, timm's results/benchmark-infer-*.csv have 52.81, with those of the normalisations.
PUBLISHED = {
    ("convnext", "t", 224): Published(28_589_128, 0, 4.456, 0.0005),
    ("convnext", "s", 224): Published(50_223_688, 0, 8.684, 0.0005),
    ("convnext", "b", 224): Published(88_591_464, 0, 15.355, 0.0005),
    ("convnext", "l", 224): Published(197_767_336, 0, 34.361, 0.0005),
    ("convnext", "b", 256): with_projection(88.22, 40.11, 640),
    ("convnext", "xl", 256): with_projection(350.25, 159.14, 1024),
    ("convnext", "xxl", 256): with_projection(846.54, 395.94, 1024),
    ("efficientnet_v2", "s", 384): Published(21_612_360, 0, 8.366, 0.0005),
    ("efficientnet_v2", "m", 480): Published(54_431_388, 0, 24.582, 0.0005),
    ("efficientnet_v2", "l", 480): Published(119_027_848, 0, 56.08, 0.0005),
    ("efficientnet_v2", "xl", 384): Published(208_896_832, 0, 52.81, 0.3),
}


def config_of(kind, name):
    if kind == "convnext":
        return ConvNeXtConfig(stages=convnext.SIZES[name], scan=True)
    stages = SIZES[name]
    return EfficientNetV2Config(stages=stages, top_conv=True, scan=True)


def count_by_hand(kind, name, side):
    if kind == "convnext":
        return count_convnext(convnext.SIZES[name], side)
    count, last = count_efficientnet_v2(V2_ROWS[name], side), SIZES[name][-1][-1]
    count.normalise(count.convolve(1, last, 1280))
    return count


@pytest.mark.parametrize(("kind", "name", "side"), PUBLISHED)
def test_a_count_by_hand_is_the_published_one(kind, name, side):
    published = PUBLISHED[kind, name, side]
    count = count_by_hand(kind, name, side)
    count.dense(config_of(kind, name).output_width, published.outputs, published.bias)
    found = count.parameters + count.statistics * (kind == "efficientnet_v2")
    assert abs(found - published.parameters) <= published.rounding
    assert abs(count.products / 1e9 - published.billions) <= published.within


def check_tower(tower, images, count):
    """Checks the size and the operations of a tower on one picture."""

    def create(key):
        return tower.init(key, FIRST_INPUTS["images"], None, False)

    variables = jax.eval_shape(create, key_shape())
    sizes = {
        kind: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for kind, tree in variables.items()
    }
    assert sizes["params"] == count.parameters
    assert sizes.get("batch_stats", 0) == count.statistics
    encode = lambda variables, x: tower.apply(variables, x, None, False)  # noqa: E731
    assert count_flops(encode, variables, images) == 2 * count.products


SMALL = (("convnext", "t", 224), ("efficientnet_v2", "s", 384))


@pytest.mark.parametrize(
    ("kind", "name", "side"),
    [
        pytest.param(*case, marks=[] if case in SMALL else [pytest.mark.pods])
        for case in PUBLISHED
    ],
)
def test_a_tower_has_the_parameters_and_operations_counted_by_hand(kind, name, side):
    tower = build_tower("image_tower", config_of(kind, name), jnp.float32)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    check_tower(tower, images, count_by_hand(kind, name, side))


def test_the_rows_counted_by_hand_are_the_configs():
    for name, rows in V2_ROWS.items():
        found = [
            (blocks, stride, expansion, out)
            for blocks, _, stride, expansion, out in SIZES[name]
        ]
        assert found == read_rows(rows)
