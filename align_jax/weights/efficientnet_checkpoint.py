"""Reads EfficientNet checkpoints of Keras and of TensorFlow's TPU models.

Both were trained on ImageNet with pixels normalised by channel means and deviations;
our tower takes x / 127.5 - 1. The stem's kernel absorbs the scale, and the running mean
of its BatchNorm absorbs the shift. This is exact except at the border, where the zeros
that pad the convolution stood for the mean colour and now stand for grey.
"""

import string
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from align_jax import places
from align_jax.errors import InputError, one_line
from align_jax.models.efficientnet import (
    VARIANTS,
    EfficientNetConfig,
    expand_stages,
)
from align_jax.models.mbconv import Block
from align_jax.models.parameters import Path, tower_shapes
from align_jax.weights.folder import Weights
from align_jax.weights.tensor_files import check_floats
from align_jax.weights.tensors import check_names

# ImageNet's channel means and deviations, of pixels in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

# Our name of a layer's variable -> the name in Keras.
PARTS = {
    "kernel": "kernel",
    "bias": "bias",
    "scale": "gamma",
    "shift": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}


def read_keras(path: str) -> Weights[EfficientNetConfig]:
    """Reads a weights file of `keras.applications.EfficientNetB0` to B7.

    Args:
      path: local path of a .h5 or .weights.h5 file; its classifier, if any, is ignored.

    Raises:
      InputError: the file is damaged or holds none of the eight networks, or `path` is
        a URL.
    """
    import h5py
    import keras

    path = str(places.local_path(path))
    kernels: list[tuple[int, ...]] = []
    try:
        with h5py.File(path) as file:
            file.visititems(
                # A group has no shape.
                lambda _, node: kernels.append(getattr(node, "shape", ()))
            )
    except Exception as error:  # parsers of untrusted bytes raise anything
        raise InputError(
            f"{path} is no readable HDF5 file: {one_line(error)}"
        ) from error
    variant = _recognise(kernels, path)
    classes = [shape[1] for shape in kernels if len(shape) == 2]
    build = getattr(keras.applications, f"EfficientNet{variant.upper()}")
    network = build(
        include_top=bool(classes), weights=None, classes=(*classes, 1000)[0]
    )
    try:
        network.load_weights(path)
    except Exception as error:  # parsers of untrusted bytes raise anything
        reason = one_line(error)
        raise InputError(
            f"{path} cannot be read as weights of Keras: {reason}"
        ) from error
    found = {
        f"{layer.name}/{variable.name}": variable.numpy()
        for layer in network.layers
        for variable in layer.weights
    }
    return _assemble(found, _keras_layer, variant, path)


def read_tensorflow(prefix: str) -> Weights[EfficientNetConfig]:
    """Reads a checkpoint of TensorFlow's TPU EfficientNet.

    Where a variable has an exponential moving average, the average is read instead.

    Args:
      prefix: path of the checkpoint without ".index".

    Raises:
      InputError: the checkpoint is damaged or holds none of the networks B0 to L2.
    """
    import tensorflow as tf

    average = "/ExponentialMovingAverage"
    found: dict[str, np.ndarray] = {}
    try:
        reader = tf.train.load_checkpoint(prefix)
        # An average sorts after its variable and so replaces it.
        for full in sorted(reader.get_variable_to_shape_map()):
            _, _, name = full.removesuffix(average).partition("/")
            found[name.replace("depthwise_kernel", "kernel")] = reader.get_tensor(full)
    except Exception as error:  # parsers of untrusted bytes raise anything
        raise InputError(f"{prefix} cannot be read: {one_line(error)}") from error
    variant = _recognise([array.shape for array in found.values()], prefix)
    return _assemble(found, _tensorflow_layer, variant, prefix)


def _recognise(shapes: list[tuple[int, ...]], source: str) -> str:
    """Finds the EfficientNet whose depthwise kernels are those among the shapes.

    Args:
      shapes: shapes of all arrays of a checkpoint.
      source: path of the checkpoint, for messages.

    Returns:
      A key of `VARIANTS`.

    Raises:
      InputError: the shapes are those of none of `VARIANTS`.
    """
    found = Counter(s for s in shapes if len(s) == 4 and s[0] > 1 and s[3] == 1)
    for name, (width, depth) in VARIANTS.items():
        blocks = [b for s in expand_stages(EfficientNetConfig(width, depth)) for b in s]
        kernels = [(b.kernel, b.kernel, b.expanded, 1) for b in blocks]
        if Counter(kernels) == found:
            return name
    raise InputError(
        f"{source} has {found.total()} depthwise kernels, as none of"
        f" {', '.join(VARIANTS)}"
    )


def _assemble(
    found: Mapping[str, np.ndarray],
    layer_name: Callable[[Path, list[Block]], str],
    variant: str,
    source: str,
) -> Weights[EfficientNetConfig]:
    """Turns a checkpoint's arrays into an image tower that takes our pixels.

    Args:
      found: arrays of the checkpoint by "layer/variable".
      layer_name: function from (module path below the tower, all blocks) to the
        checkpoint's name of the layer.
      variant: a key of `VARIANTS`.
      source: path of the checkpoint, for messages.

    Raises:
      InputError: an array is missing or of the wrong shape.
    """
    width, depth = VARIANTS[variant]
    config = EfficientNetConfig(width, depth, top_conv=True)
    blocks = [block for stage in expand_stages(config) for block in stage]
    shapes = tower_shapes("image_tower", config)
    wanted, names = {}, {}
    for path, shape in shapes.items():
        *module, part = path[2:]
        if part == "bias" and module[-1].endswith("_norm"):
            part = "shift"
        part, theirs = PARTS[part], shape
        if module[-1] == "depthwise":
            theirs = (*shape[:2], shape[3], 1)
        elif part == "kernel" and len(shape) == 2:  # squeeze-excite
            theirs = (1, 1, *shape)
        names[path] = f"{layer_name(tuple(module), blocks)}/{part}"
        wanted[names[path]] = theirs
    used = {name: a.shape for name, a in found.items() if name in wanted}
    check_names(used, wanted, source)
    check_floats(found, wanted, source)
    variables = {
        path: found[name].astype(np.float32).reshape(shapes[path])
        for path, name in names.items()
    }
    return Weights("image_tower", config, _adapt_stem(variables))


def _adapt_stem(variables: dict[Path, np.ndarray]) -> dict[Path, np.ndarray]:
    """Adapts a stem for (x / 255 - mean) / deviation to take x / 127.5 - 1."""
    kernel_path = ("params", "image_tower", "stem", "kernel")
    mean_path = ("batch_stats", "image_tower", "stem_norm", "mean")
    kernel = variables[kernel_path]  # (3, 3, 3, C)
    # x / 255 = (ours + 1) / 2, so theirs = ours / (2 d) + (0.5 - mean) / d.
    shift = np.einsum("hwic,i->c", kernel, (0.5 - MEAN) / DEVIATION)
    adapted = {
        kernel_path: kernel / (2 * DEVIATION)[:, None],
        mean_path: variables[mean_path] - shift,
    }
    return variables | adapted


def _keras_layer(module: Path, blocks: list[Block]) -> str:
    """Returns Keras' name of a layer: B0's block_01/expand is block2a_expand_conv.

    Keras numbers the stages from 1 and gives the blocks of a stage letters.
    """
    if module[0] in ("stem", "top", "stem_norm", "top_norm"):
        name, _, norm = module[0].partition("_")
        return f"{name}_{'bn' if norm else 'conv'}"
    index = int(module[0].removeprefix(EfficientNetConfig.block_prefix))
    firsts = [i for i, block in enumerate(blocks) if not block.residual]
    stage = max(number for number, first in enumerate(firsts) if first <= index)
    prefix = f"block{stage + 1}{string.ascii_lowercase[index - firsts[stage]]}_"
    names = {
        "expand": "expand_conv",
        "expand_norm": "expand_bn",
        "depthwise": "dwconv",
        "depthwise_norm": "bn",
        "squeeze_excite": f"se_{module[-1]}",
        "project": "project_conv",
        "project_norm": "project_bn",
    }
    return prefix + names[module[1]]


def _tensorflow_layer(module: Path, blocks: list[Block]) -> str:
    """Returns TensorFlow's name of a layer.

    Layers of one type are numbered within a block: conv2d, conv2d_1, ... So
    block_01/expand is blocks_1/conv2d.
    """
    norm = "tpu_batch_normalization"
    if module[0] in ("stem", "top", "stem_norm", "top_norm"):
        name, _, is_norm = module[0].partition("_")
        return f"{name.replace('top', 'head')}/{norm if is_norm else 'conv2d'}"
    index = int(module[0].removeprefix(EfficientNetConfig.block_prefix))
    # A block with expansion 1 has no expanding layer, so the others' numbers are lower.
    later = "" if blocks[index].expansion == 1 else "_1"
    last = "_1" if blocks[index].expansion == 1 else "_2"
    names = {
        "expand": "conv2d",
        "expand_norm": norm,
        "depthwise": "depthwise_conv2d",
        "depthwise_norm": norm + later,
        "squeeze_excite": "se/conv2d" + ("_1" if module[-1] == "expand" else ""),
        "project": "conv2d" + later,
        "project_norm": norm + last,
    }
    return f"blocks_{index}/{names[module[1]]}"
