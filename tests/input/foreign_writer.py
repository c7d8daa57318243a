"""Writes a dataset as img2dataset or `datasets` do, in their environment.

    .venv-formats/bin/python tests/input/foreign_writer.py KIND FOLDER PAIRS

PAIRS is a Parquet file with the columns url, caption and image.
"""

import sys


def write_datasets(folder: str, pairs: str) -> None:
    """Writes two Parquet files with the library `datasets`."""
    import os

    import datasets
    import pyarrow.parquet as pq

    os.makedirs(folder)
    rows = pq.read_table(pairs).to_pydict()
    features = {"image": datasets.Image(), "caption": datasets.Value("large_string")}
    images = [{"bytes": image, "path": None} for image in rows["image"]]
    columns = {"image": images, "caption": rows["caption"]}
    whole = datasets.Dataset.from_dict(columns, datasets.Features(features))
    for index in range(2):
        part = whole.shard(num_shards=2, index=index, contiguous=True)
        part.to_parquet(f"{folder}/train-0000{index}-of-00002.parquet")


def write_img2dataset(folder: str, pairs: str, output_format: str) -> None:
    """Downloads the pairs from their URLs with img2dataset."""
    import img2dataset

    img2dataset.download(
        url_list=pairs,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=folder,
        output_format=output_format,
        processes_count=1,
        thread_count=4,
        number_sample_per_shard=100,
        disable_all_reencoding=True,
        enable_wandb=False,
    )


if __name__ == "__main__":
    kind, out, source = sys.argv[1:]
    if kind == "datasets":
        write_datasets(out, source)
    else:
        write_img2dataset(out, source, kind)
