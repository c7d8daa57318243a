"""Writes a tiny dataset and makes a tiny run on it, for tests of `align_jax`."""

import dataclasses
import functools
import io
import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.models.bert import BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.models.parameters import variable_shapes
from align_jax.pictures import MAX_PIXELS
from align_jax.weights.folder import Weights, write_weights

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
SHAPES = ("left", "right", "top", "bottom")
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, *SHAPES]

# Two blocks with expansion and squeeze-excite. The first has stride 2, the second a
# residual connection and therefore stochastic depth.
IMAGE_TOWER = {"width": 0.25, "stages": ((2, 3, 2, 6, 320),)}


@functools.cache
def draw(name: str, shade: int) -> bytes:
    """Draws a 12 x 12 PNG file with one half coloured and the other transparent."""
    colour, shape = name.split()
    pixels = np.zeros((12, 12, 4), np.uint8)
    half = {
        "left": np.s_[:, :6],
        "right": np.s_[:, 6:],
        "top": np.s_[:6],
        "bottom": np.s_[6:],
    }[shape]
    pixels[half] = (*(c // 2 + shade for c in COLOURS[colour]), 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PAIR_FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "text": tfds.features.Text(),
}
TEXTS = tfds.features.Sequence(tfds.features.Text())


def picture(number: int) -> tf.train.Feature:
    """Makes a drawing, different for each of some hundred numbers, for a record."""
    return _bytes(draw(NAMES[number % len(NAMES)], number % 100))


def text(*values: str | bytes) -> tf.train.Feature:
    """Converts texts, or a file's bytes, to the form that a record holds."""
    return _bytes(*(v.encode() if isinstance(v, str) else v for v in values))


def _bytes(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def whole(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def write_dataset(
    folder: pathlib.Path, split: str, shards: list[list[dict]], features: dict
) -> str:
    """Writes records (dicts of tf.train.Feature) in TFDS's layout."""
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder),
        dataset_name="tiny",
        split=split,
        filetype_suffix="tfrecord",
    )
    for index, rows in enumerate(shards):
        name = f"tiny-{split}.tfrecord-{index:05}-of-{len(shards):05}"
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for row in rows:
                example = tf.train.Example(features=tf.train.Features(feature=row))
                writer.write(example.SerializeToString())
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(rows) for rows in shards],
        num_bytes=0,
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=tfds.features.FeaturesDict(features),
        split_infos=[info],
        filename_template=None,
    )
    return str(folder)


def write_training(folder: pathlib.Path, lengths: list[int]) -> str:
    """Writes shards of pairs whose texts are '<colour> <shape> <i>', i their number."""
    numbers = iter(range(sum(lengths)))
    shards = [
        [
            {
                "image": picture(i),
                "text": text(f"{NAMES[i % len(NAMES)]} {i}"),
            }
            for i in [next(numbers) for _ in range(length)]
        ]
        for length in lengths
    ]
    return write_dataset(folder, "train", shards, PAIR_FEATURES)


def write_evaluation(folder: pathlib.Path) -> str:
    """Writes one labelled picture a name, in a shade not in training, and prompts."""
    rows = [
        {
            "image": _bytes(draw(name, 110)),
            "texts": _bytes(name.encode()),
            "query": whole(int(i % 3 != 0)),
            "label": whole(list(COLOURS).index(name.split()[0])),
        }
        for i, name in enumerate(NAMES)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "texts": tfds.features.Sequence(tfds.features.Text()),
        "query": tf.bool,
        "label": tfds.features.ClassLabel(names=list(COLOURS)),
    }
    path = write_dataset(folder, "test", [rows], features)
    prompts = {
        "templates": ["{}", "{} left"],
        "categories": [{"name": c, "prompts": [c]} for c in COLOURS],
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return path


def make_tokenizer(config: ModelConfig) -> WordPiece:
    return WordPiece(WORDS, config.text_tower.max_tokens)


def write_vocabulary(path: pathlib.Path) -> str:
    """Writes the vocabulary of the tiny datasets."""
    path.write_text("\n".join(WORDS) + "\n")
    return str(path)


def write_model(
    folder: pathlib.Path,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    config: ModelConfig | None = None,
    image_size: int = 16,
    tokenizer: Tokenizer | None = None,
) -> str:
    """Writes a random dual encoder as a folder that `align_jax.load` reads."""
    if config is None:
        config = ModelConfig(EfficientNetConfig(**IMAGE_TOWER), BertConfig.smallest())

    random, arrays = np.random.default_rng(seed), {}
    for path, shape in variable_shapes(config).items():
        constant = 0.0 if path[-1] in ("bias", "mean") else 1.0
        arrays[path] = np.full(shape, constant, np.float32)
        if path[-1] in ("kernel", "embedding"):
            spread = np.sqrt(2 / np.prod(shape[:-1]))
            arrays[path] = random.normal(0, spread, shape).astype(np.float32)
    sizes = PreprocessConfig(
        resize=image_size + 2, image_size=image_size, max_pixels=max_pixels
    )
    tokenizer = tokenizer or make_tokenizer(config)
    weights = Weights("dual_encoder", config, arrays, sizes, tokenizer)
    write_weights(weights, str(folder))
    return str(folder)


def make_run(root: pathlib.Path, **changes) -> dict:
    """Makes the literal config of a run of seconds; writes its data to `root` once."""
    train, test = root / "train", root / "test"
    if not train.exists():
        write_training(train, [30, 20, 25, 21])
        write_evaluation(test)
        write_vocabulary(root / "vocabulary.txt")
    fields = {
        "run": "pretrain",
        "seed": 0,
        "total_steps": 4,
        "virtual_cores": 8,
        "pairs_per_core": 2,
        "batch_norm_cores": 4,
        "vocabulary": str(root / "vocabulary.txt"),
        "input": {
            "datasets": {"tiny": {"directory": str(train)}},
            "streams": 4,
            "shuffle_window": 8,
            "preprocess": {"resize": 18, "image_size": 16, "flip": False},
        },
        "model": {
            "image_tower": {**IMAGE_TOWER},
            "text_tower": dataclasses.asdict(BertConfig.smallest()),
        },
        # Adam's quotient turns the rounding errors of zero gradients into steps. With a
        # large epsilon, runs on different numbers of devices stay comparable.
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1, "epsilon": 1e-3},
        "loss": {"label_smoothing": 0.1, "temperature_floor": 0.01},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "log_every_steps": 1,
        "evaluate_every_steps": 4,
        "evaluators": {
            "pairs": {"kind": "retrieval", "directory": str(test), "split": "test"},
            "colour": {
                "kind": "zero_shot",
                "directory": str(test),
                "split": "test",
                "prompts": str(test / "prompts.json"),
            },
        },
    }
    return fields | changes
