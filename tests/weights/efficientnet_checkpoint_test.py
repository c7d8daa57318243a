import pathlib

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.kernels.convolution import dense_conv
from align_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from align_jax.models.parameters import unflatten
from align_jax.weights import efficientnet_checkpoint
from align_jax.weights.efficientnet_checkpoint import (
    DEVIATION,
    MEAN,
    read_keras,
    read_tensorflow,
)


@pytest.fixture(scope="module")
def network():
    """Makes Keras' B0 with random changes to the initial values of BatchNorm."""
    keras.utils.set_random_seed(0)
    built = keras.applications.EfficientNetB0(weights=None, classes=7)
    draw = np.random.default_rng(0)
    for layer in built.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            arrays = layer.get_weights()
            layer.set_weights([a + draw.uniform(0, 0.3, a.shape) for a in arrays])
    return built


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("keras") / "b0.weights.h5")
    network.save_weights(path)
    return path


@pytest.fixture
def stem_as_it_was(monkeypatch):
    monkeypatch.setattr(efficientnet_checkpoint, "_adapt_stem", lambda v: v)


def test_features_are_keras(network, checkpoint, stem_as_it_was):
    weights = read_keras(checkpoint)
    assert weights.config == EfficientNetConfig(1.0, 1.0, top_conv=True)
    variables = unflatten(weights.variables)
    tower = {kind: tree["image_tower"] for kind, tree in variables.items()}
    # Keras pads for the size that it was built for, which is our rule `same`.
    scaled = np.random.default_rng(1).normal(size=(2, 224, 224, 3)).astype(np.float32)
    theirs = keras.Model(
        network.get_layer("stem_conv_pad").input,
        network.get_layer("top_activation").output,
    )
    expected = np.asarray(theirs(scaled)).mean((1, 2))
    encode = jax.jit(EfficientNet(weights.config, 1).apply, static_argnums=3)
    found = encode(tower, scaled, None, False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_stem_takes_our_pixels(checkpoint, monkeypatch):
    kernel = ("params", "image_tower", "stem", "kernel")
    mean = ("batch_stats", "image_tower", "stem_norm", "mean")
    adapted = read_keras(checkpoint).variables
    monkeypatch.setattr(efficientnet_checkpoint, "_adapt_stem", lambda v: v)
    before = read_keras(checkpoint).variables
    pixels = np.random.default_rng(2).uniform(0, 255, (1, 9, 9, 3)).astype(np.float32)
    inside = ((0, 0), (0, 0))
    ours = dense_conv(pixels / 127.5 - 1, adapted[kernel], 2, inside)
    theirs = dense_conv((pixels / 255 - MEAN) / DEVIATION, before[kernel], 2, inside)
    np.testing.assert_allclose(
        np.subtract(ours, adapted[mean]),
        np.subtract(theirs, before[mean]),
        rtol=1e-4,
        atol=1e-5,
    )
    changed = {
        path for path in before if not np.array_equal(before[path], adapted[path])
    }
    assert changed == {kernel, mean}


def tensorflow_name(layer: str, part: str) -> str:
    """Returns the TPU models' name of a Keras B0 variable."""
    norm = "tpu_batch_normalization"
    known = {
        "stem_conv": "stem/conv2d",
        "stem_bn": f"stem/{norm}",
        "top_conv": "head/conv2d",
        "top_bn": f"head/{norm}",
        "predictions": "head/dense",
    }
    if layer in known:
        return f"{known[layer]}/{part}"
    block, _, rest = layer.partition("_")
    order = "1a 2a 2b 3a 3b 4a 4b 4c 5a 5b 5c 6a 6b 6c 6d 7a".split()
    first = block == "block1a"  # the only block without an expanding layer
    names = {
        "expand_conv": "conv2d",
        "expand_bn": norm,
        "dwconv": "depthwise_conv2d",
        "bn": norm if first else f"{norm}_1",
        "se_reduce": "se/conv2d",
        "se_expand": "se/conv2d_1",
        "project_conv": "conv2d" if first else "conv2d_1",
        "project_bn": f"{norm}_1" if first else f"{norm}_2",
    }
    part = "depthwise_kernel" if rest == "dwconv" else part
    return f"blocks_{order.index(block.removeprefix('block'))}/{names[rest]}/{part}"


def test_tensorflow_checkpoints_give_their_averages(network, checkpoint, tmp_path):
    saved = {}
    for layer in network.layers:
        if layer.name == "normalization":
            continue
        for variable in layer.weights:
            name = f"efficientnet-b0/{tensorflow_name(layer.name, variable.name)}"
            array = variable.numpy()
            saved[name] = tf.Variable(array * 2)
            saved[f"{name}/ExponentialMovingAverage"] = tf.Variable(array)
    saved["global_step"] = tf.Variable(5, dtype=tf.int64)
    prefix = tf.compat.v1.train.Saver(saved).save(None, str(tmp_path / "model.ckpt"))
    found, expected = read_tensorflow(prefix), read_keras(checkpoint)
    assert found.config == expected.config
    assert found.variables.keys() == expected.variables.keys()
    for path, array in expected.variables.items():
        np.testing.assert_array_equal(found.variables[path], array)


def test_another_network_is_refused(tmp_path):
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    path = str(tmp_path / "other.weights.h5")
    other.save_weights(path)
    with pytest.raises(InputError, match="has 0 depthwise kernels, as none of b0, b1"):
        read_keras(path)


def test_a_damaged_checkpoint_is_named(checkpoint, tmp_path):
    content = pathlib.Path(checkpoint).read_bytes()
    for name, damaged in (("half", content[: len(content) // 2]), ("text", b"a text")):
        path = tmp_path / f"{name}.h5"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{path} is no readable HDF5 file: "):
            read_keras(str(path))
    prefix = tmp_path / "model"
    for name in ("model.index", "model.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"a text")
    with pytest.raises(InputError, match=f"{prefix} cannot be read: "):
        read_tensorflow(str(prefix))
