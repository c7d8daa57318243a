"""Writes folders of CLIP and SigLIP as transformers does, from golden/clip.json.gz."""

import gzip
import json
import pathlib

import numpy as np
import safetensors.numpy

from tests.golden import clip_arrays

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/clip.json.gz"
MODELS = json.loads(gzip.decompress(GOLDEN.read_bytes()))
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def vocabulary(size: int, end: int) -> list[str]:
    """Makes a vocabulary of WordPiece whose texts end with the id `end`."""
    words = ["[PAD]", *(f"w{i}" for i in range(1, size))]
    words[size // 2], words[size // 2 + 1] = "[UNK]", "[CLS]"
    words[end] = "[SEP]"
    return words


def processor(name: str) -> dict:
    """Returns a preprocessor_config.json as CLIP's or SigLIP's."""
    size = MODELS[name]["size"]
    square = {"height": size, "width": size}
    shared = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    if name.startswith("clip"):
        return shared | {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": square,
            "resample": 3,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        }
    return shared | {
        "image_processor_type": "SiglipImageProcessor",
        "size": square,
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def write_tensors(golden: dict, path: pathlib.Path) -> None:
    """Writes the tensors of a golden model."""
    arrays = {
        tensor: clip_arrays.weight(tensor, tuple(shape))
        for tensor, shape in golden["shapes"].items()
    }
    safetensors.numpy.save_file(arrays, path)


def write_folder(folder: pathlib.Path, name: str) -> str:
    """Writes a golden model's folder as transformers does; returns its path."""
    golden = MODELS[name]
    folder.mkdir()
    write_tensors(golden, folder / "model.safetensors")
    files = {
        "config.json": golden["config"],
        "preprocessor_config.json": processor(name),
        "tokenizer_config.json": {"model_max_length": 10**30},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    words = vocabulary(golden["config"]["text_config"]["vocab_size"], golden["end"])
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder)


def edit(path: pathlib.Path, part: str | None = None, **fields) -> None:
    """Sets fields of a JSON file, or of one of its parts."""
    described = json.loads(path.read_text())
    (described if part is None else described[part]).update(fields)
    path.write_text(json.dumps(described))


def tensors_of(folder: pathlib.Path, file: str = "model.safetensors") -> dict:
    return safetensors.numpy.load_file(folder / file)


def assert_same(before: dict, after: dict) -> None:
    """Checks that tensors have the same names, types and bits."""
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array, after[name], strict=True)
