"""Reads training batches as one of several hosts: python -m tests.input_reader ..."""

import hashlib
import sys
from collections.abc import Iterator

from align_jax.input.datasets import DatasetConfig
from align_jax.input.phases import Phase
from align_jax.input.pipeline import TrainBatches
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import open_tokenizer
from align_jax.input.training_data import InputConfig, open_training

BATCH, STREAMS = 16, 4
PREPROCESS = PreprocessConfig(resize=18, image_size=16, crop="inception")


def read_hashes(
    folder: str,
    host: int,
    hosts: int,
    step: int,
    file_format: str = "tfds",
    workers: int = 0,
) -> Iterator[list[str]]:
    """Yields hashes of the rows (pixels and tokens) of this host's batches."""
    part = {"tiny": DatasetConfig(f"{folder}/{file_format}", file_format)}
    config = InputConfig(
        part, PREPROCESS, streams=STREAMS, shuffle_window=8, workers=workers
    )
    data = open_training(config, (Phase(0, BATCH, PREPROCESS),), hosts)
    tokenizer = open_tokenizer(f"{folder}/vocabulary.txt", 6)
    batches = TrainBatches(
        data,
        tokenizer,
        seed=0,
        start_step=step,
        process_index=host,
        process_count=hosts,
    )
    for batch in batches:
        rows = zip(batch["images"], batch["tokens"], strict=True)
        yield [hashlib.sha256(i.tobytes() + t.tobytes()).hexdigest() for i, t in rows]


def main(folder: str, host: str, hosts: str, step: str, file_format: str) -> None:
    """Prints one line a step until killed: the step's number and the rows' hashes."""
    hashes = read_hashes(folder, int(host), int(hosts), int(step), file_format)
    for number, rows in enumerate(hashes, int(step)):
        print(number, *rows, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
