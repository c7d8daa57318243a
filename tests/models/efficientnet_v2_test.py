import jax
import numpy as np
import pytest
from jax import lax

from align_jax.config import read_config, stored_fields
from align_jax.errors import InputError
from align_jax.models.batch_norm import EPSILON, BatchNorm
from align_jax.models.bert import BertConfig
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import EfficientNetConfig, expand_stages
from align_jax.models.efficientnet_v2 import SIZES, EfficientNetV2Config
from align_jax.models.mbconv import Block, MBConv
from align_jax.models.parameters import tower_shapes
from align_jax.models.towers import read_image_tower
from align_jax.weights.huggingface_config import align_towers


def convolve(x, kernel, stride):
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return np.asarray(
        lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)
    )


def normalise(x, weights):
    """Batch normalisation by the statistics of all images."""
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + EPSILON) * weights["scale"] + weights["bias"]


def swish(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("seed", range(4))
def test_a_fused_block_is_that_of_the_paper(seed):
    """Figure 2 of arXiv 2104.00298, without the squeeze-excite that no size has."""
    rng = np.random.default_rng(seed)
    expansion = (1, 4)[seed % 2]
    stride = int(rng.integers(1, 3))
    channels = int(rng.integers(2, 7))
    out = channels if stride == 1 else int(rng.integers(2, 7))
    block = Block(
        kernel=3,
        stride=stride,
        expansion=expansion,
        channels_in=channels,
        channels_out=out,
        residual=stride == 1,
        fused=True,
    )
    layer = MBConv(block, lambda **fields: BatchNorm(group_size=3, **fields))
    x = rng.normal(size=(3, *rng.integers(3, 9, 2), channels)).astype(np.float32)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, None, True))
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"]
    )
    statistics = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), shapes["batch_stats"]
    )
    found, _ = layer.apply(
        {"params": params, "batch_stats": statistics}, x, None, True, mutable=True
    )
    hidden = x
    if expansion == 4:
        assert params["expand"]["kernel"].shape == (3, 3, channels, 4 * channels)
        hidden = convolve(hidden, params["expand"]["kernel"], stride)
        hidden = swish(normalise(hidden, params["expand_norm"]))
        hidden = convolve(hidden, params["project"]["kernel"], 1)
        hidden = normalise(hidden, params["project_norm"])
    else:
        hidden = convolve(hidden, params["project"]["kernel"], stride)
        hidden = swish(normalise(hidden, params["project_norm"]))
    wanted = x + hidden if stride == 1 else hidden
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert {*params} == {"project", "project_norm"} | (
        {"expand", "expand_norm"} if expansion == 4 else set()
    )


def test_the_stages_are_those_of_the_paper():
    stages = expand_stages(EfficientNetV2Config())
    blocks = [block for stage in stages for block in stage]
    assert [len(stage) for stage in stages] == [2, 4, 4, 6, 9, 15]
    assert [block.fused for block in blocks] == [True] * 10 + [False] * 30
    # Equal shapes are added, in the first block of the first stage, too.
    assert [block.residual for block in blocks[:4]] == [True, True, False, True]
    assert blocks[0].channels_in == 24
    assert (blocks[10].expanded, blocks[10].reduced) == (256, 16)
    assert EfficientNetV2Config().output_width == 256
    assert EfficientNetV2Config(top_conv=True).output_width == 1280
    sums = {name: sum(row[0] for row in rows) for name, rows in SIZES.items()}
    assert sums == {"s": 40, "m": 57, "l": 79, "xl": 100}


def test_the_smallest_has_all_that_larger_ones_have():
    config = EfficientNetV2Config.smallest()
    blocks = [block for stage in expand_stages(config) for block in stage]
    assert [block.fused for block in blocks] == [True, True, True, False, False]
    assert [block.expansion for block in blocks] == [1, 1, 4, 4, 4]
    assert [block.residual for block in blocks] == [True, True, False, False, True]
    large = tower_shapes("image_tower", EfficientNetV2Config())
    small = tower_shapes("image_tower", config)
    assert {path[3:] for path in small} == {path[3:] for path in large}


def test_a_config_is_read_and_stored_with_its_kind():
    fields = {"kind": "efficientnet_v2", "stages": [[1, 3, 2, 1, 8]], "width": 2.0}
    config = read_image_tower(fields, "config.model.image_tower")
    assert isinstance(config, EfficientNetV2Config)
    assert config.stages == ((1, 3, 2, 1, 8),)
    stored = stored_fields(ClassifierConfig(config, 3))["image_tower"]
    assert read_image_tower(stored, "config.model.image_tower") == config
    with pytest.raises(InputError, match=r"stages is \(\); wanted one row or more"):
        read_config(EfficientNetV2Config, {"stages": ()}, "image_tower")


def test_an_align_model_has_no_such_tower():
    text = BertConfig.smallest()
    model = ModelConfig(EfficientNetConfig(), text)
    assert align_towers(model) == (EfficientNetConfig(), text)
    with pytest.raises(InputError, match="this model has 'efficientnet_v2' and 'bert'"):
        align_towers(ModelConfig(EfficientNetV2Config(), text))
