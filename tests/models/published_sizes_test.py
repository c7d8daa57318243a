"""Parameters and operations of the published sizes, counted by hand and by the tower.

The counts by hand follow the papers' tables: a layer after the other, with no part of
the towers' code. Published figures include a classifier of 1000 classes, and numbers of
multiplications with additions, which are half of our operations.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from align_jax.models import convnext, efficientnet_v2
from align_jax.models.convnext import ConvNeXtConfig
from align_jax.models.efficientnet_v2 import EfficientNetV2Config
from align_jax.models.towers import build_tower
from align_jax.training.flops import count_flops

CLASSES = 1000


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

    def dense(self, wide_in, wide_out):
        """Counts a layer whose input is one vector."""
        self.parameters += (wide_in + 1) * wide_out
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


def count_efficientnet_v2(name, side):
    """Counts an EfficientNetV2 (arXiv 2104.00298, figure 2 and table 4)."""
    rows = [[int(n) for n in row.split(",")] for row in V2_ROWS[name].split()]
    count = Count(side)
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
    count.normalise(count.convolve(1, wide, 1280))
    return count


@dataclasses.dataclass(frozen=True)
class Published:
    """A published network.

    Attributes:
      config: config of its tower.
      side: side of its pictures.
      count: its parts, counted by hand, without the classifier.
      parameters: published number of parameters; with running statistics for
        EfficientNetV2.
      billions: published multiplications with additions, in 1e9.
      within: largest difference from `billions` that its rounding explains.
    """

    config: object
    side: int
    count: Count
    parameters: int
    billions: float
    within: float


def convnext_of(name, side, parameters, billions, within):
    stages = convnext.SIZES[name]
    config = ConvNeXtConfig(stages=stages, scan=True)
    count = count_convnext(stages, side)
    return Published(config, side, count, parameters, billions, within)


def v2_of(name, side, parameters, billions, within):
    stages = efficientnet_v2.SIZES[name]
    config = EfficientNetV2Config(stages=stages, top_conv=True, scan=True)
    count = count_efficientnet_v2(name, side)
    return Published(config, side, count, parameters, billions, within)


# ConvNeXt T to L: torchvision, models/convnext.py (num_params, _ops). XL: the table of
# facebookresearch/ConvNeXt has 60.9, timm 350.20 million. XXL: timm, convnext.py, has
# 846.47 million and 198.09, which counts the layer norms, too. EfficientNetV2: the
# parameters and statistics of google/automl, efficientnetv2/effnetv2_model_test.py; the
# operations of S to L of torchvision, models/efficientnet.py; XL of timm's
# results/benchmark-infer-*.csv (52.81), which counts the normalisations, too.
PUBLISHED = {
    "convnext_t": convnext_of("t", 224, 28_589_128, 4.456, 0.0005),
    "convnext_s": convnext_of("s", 224, 50_223_688, 8.684, 0.0005),
    "convnext_b": convnext_of("b", 224, 88_591_464, 15.355, 0.0005),
    "convnext_l": convnext_of("l", 224, 197_767_336, 34.361, 0.0005),
    "convnext_xl": convnext_of("xl", 224, 350_196_968, 60.9, 0.05),
    "convnext_xxl": convnext_of("xxl", 256, 846_471_040, 198.09, 0.4),
    "v2_s": v2_of("s", 384, 21_612_360, 8.366, 0.0005),
    "v2_m": v2_of("m", 480, 54_431_388, 24.582, 0.0005),
    "v2_l": v2_of("l", 480, 119_027_848, 56.08, 0.0005),
    "v2_xl": v2_of("xl", 384, 208_896_832, 52.81, 0.3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_its_parameters_and_operations(name):
    published = PUBLISHED[name]
    config, side, count = published.config, published.side, published.count
    tower = build_tower("image_tower", config, jnp.float32)

    def create(key):
        return tower.init(key, jnp.zeros((1, 32, 32, 3)), None, False)

    variables = jax.eval_shape(create, jax.random.key(0))
    sizes = {
        kind: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for kind, tree in variables.items()
    }
    assert sizes["params"] == count.parameters
    assert sizes.get("batch_stats", 0) == count.statistics
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    encode = lambda variables, x: tower.apply(variables, x, None, False)  # noqa: E731
    found = count_flops(encode, variables, images)
    assert found == 2 * count.products

    count.dense(config.output_width, CLASSES)
    assert count.parameters + count.statistics == published.parameters
    assert abs(count.products / 1e9 - published.billions) <= published.within
