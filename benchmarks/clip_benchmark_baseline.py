"""Runs CLIP_benchmark for `benchmarks.clip_benchmark`; needs clip-benchmark.

    pip install clip-benchmark requests 'numpy<2.4'
    python -P benchmarks/clip_benchmark_baseline.py export RAW FOLDER
    python -P benchmarks/clip_benchmark_baseline.py eval --model_type=table ...

`-P` keeps this folder, which has a module of the same name, out of the imports.
`export` writes each set of RAW by CLIP_benchmark's exporter. `eval` is CLIP_benchmark's
command with two more types of models: `table` returns the embeddings of a file
`--model=TABLE.npz` for the pictures of `tars` and the texts; `small` has random
weights, timm's smallest TinyNet and a Transformer, as `--model=JSON` describes them.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile

import numpy as np
import open_clip
import torch
import webdataset
from clip_benchmark import cli, models
from clip_benchmark.webdataset_builder import (
    convert_dataset,
    convert_retrieval_dataset,
    path_to_bytes,
)
from PIL import Image

TARS = 2  # of a set; webdataset refuses fewer tars than processes that read
PICTURES = ("webp", "png", "jpg", "jpeg")


class Pairs(list):
    """Pairs of a picture's path and its label or captions, for the exporter.

    Attributes:
      classes: class names.
      templates: templates with {c}.
    """

    def __init__(self, pairs: list, described: dict) -> None:
        super().__init__(pairs)
        self.classes, self.templates = described["classes"], described["templates"]


def export(raw: str, folder: str) -> None:
    """Writes a folder SET for each raw/SET, which has pictures and set.json."""
    for source in sorted(pathlib.Path(raw).iterdir()):
        described = json.loads((source / "set.json").read_text())
        paths = [str(source / name) for name in described["pictures"]]
        labels, out = described["labels"], os.path.join(folder, source.name)
        half = -(-len(paths) // TARS)
        fields = {"transform": path_to_bytes, "verbose": False, "max_count": half}
        if described["type"] == "retrieval":
            pairs = Pairs(list(zip(paths, labels, strict=True)), described)
            convert_retrieval_dataset(pairs, "test", out, **fields)
            continue
        multilabel = described["type"] == "multilabel"
        rows = [torch.tensor(label) for label in labels]
        pairs = Pairs(list(zip(paths, rows, strict=True)), described)
        convert_dataset(pairs, "test", out, multilabel=multilabel, **fields)
        if described["metadata"]:
            add_metadata(out, described["metadata"])


def add_metadata(out: str, rows: list) -> None:
    """Writes a set's tars again with a member npy, as DataComp's sets have one."""
    shards = int(pathlib.Path(out, "test", "nshards.txt").read_text())
    waiting = iter(rows)
    for shard in range(shards):
        path = os.path.join(out, "test", f"{shard}.tar")
        samples = list(webdataset.WebDataset(path, shardshuffle=False))
        with webdataset.TarWriter(path) as writer:
            for sample in samples:
                kept = {k: v for k, v in sample.items() if k in (*PICTURES, "cls")}
                row = np.array(next(waiting))
                writer.write({"__key__": sample["__key__"], "npy": row, **kept})


def pixels_id(picture: Image.Image) -> str:
    """Returns a hash of a decoded picture."""
    rgb = picture.convert("RGB")
    return hashlib.blake2b(rgb.tobytes() + repr(rgb.size).encode()).hexdigest()


class Table(torch.nn.Module):
    """A model whose embeddings are rows of a file.

    CLIP_benchmark decodes a picture before a model sees it, so all pictures of the tars
    are decoded once, and their pixels are the key.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        stored = np.load(path)
        self.images = torch.from_numpy(stored["images"])  # (N, D)
        self.texts = torch.from_numpy(stored["texts"])  # (M, D)
        self.text_rows = {text: i for i, text in enumerate(stored["text_ids"])}
        rows = {name: i for i, name in enumerate(stored["image_ids"])}
        self.image_rows = {}
        for tar_path in stored["tars"]:
            with tarfile.open(tar_path) as tar:
                for member in tar:
                    if member.name.rpartition(".")[2] in PICTURES:
                        content = tar.extractfile(member).read()
                        row = rows[hashlib.blake2b(content, digest_size=16).hexdigest()]
                        picture = Image.open(io.BytesIO(content))
                        self.image_rows[pixels_id(picture)] = row

    def transform(self, picture: Image.Image) -> torch.Tensor:
        """Returns the row of a picture's embedding."""
        return torch.tensor(self.image_rows[pixels_id(picture)])

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """Returns the rows of the texts' embeddings."""
        return torch.tensor([self.text_rows[text] for text in texts])

    def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of pictures."""
        return self.images[rows]

    def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of texts."""
        return self.texts[rows]


@functools.cache
def read_table(path: str) -> Table:
    """Reads a table once for all sets."""
    return Table(path)


def load_table(model_name: str, **_) -> tuple:
    """Returns the model, the transform and the tokenizer of a table."""
    table = read_table(model_name)
    return table, table.transform, table.tokenize


def load_small(model_name: str, **_) -> tuple:
    """Returns a small open_clip model with random weights, its transform, tokenizer."""
    described = json.loads(model_name)
    vision = {"timm_model_name": "tinynet_e", "timm_pool": "", "timm_proj": "linear"}
    vision |= {"image_size": described["image_size"]}
    text = {"context_length": described["max_tokens"], "layers": described["layers"]}
    text |= {"width": described["hidden"], "heads": described["hidden"] // 64}
    model = open_clip.CLIP(described["embedding_size"], vision, text)
    transform = open_clip.image_transform(described["image_size"], is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=described["max_tokens"])
    return model, transform, tokenizer


def main() -> None:
    """Exports, or starts CLIP_benchmark's command with the types of models added."""
    if sys.argv[1] == "export":
        export(*sys.argv[2:])
        return
    for name, load in {"table": load_table, "small": load_small}.items():
        models.TYPE2FUNC[name] = load
        models.MODEL_TYPES.append(name)
    cli.main()


if __name__ == "__main__":
    main()
