"""Writes tasks of VTAB-1k from datasets that TFDS prepared.

    python -m data.vtab --source ~/tensorflow_datasets --out evaluation/vtab [TASK ...]

Each task becomes a dataset TASK in the folder --out. Its features are `image` and
`label`; its splits are `train` (800 pictures), `validation` (200) and `test`. Training
and evaluation read it like any other dataset. An existing dataset is kept. Without a
TASK, all tasks are written.
"""

import argparse
import io
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from align_jax import dataset_folder
from align_jax.command_line import local_path
from align_jax.config import choose
from align_jax.errors import InputError, run_command
from data.evaluation_sets.vtab_tasks import TASKS, VtabTask

SIZES = {"train": 800, "validation": 200}
SHARD_PICTURES = 10_000
MANUAL = {
    "resisc45": "needs a file of yours, see its page",
    "diabetic_retinopathy_detection/btgraham-300": "needs Kaggle's files, see its page",
}


def find_dataset(source: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a dataset's newest version.

    Args:
      source: folder of prepared TFDS datasets.
      name: name of the dataset, with the config if there are several.

    Raises:
      InputError: the dataset is not prepared in `source`.
    """
    folder = pathlib.Path(dataset_folder.newest_version(source / name))
    if not (folder / "dataset_info.json").exists():
        note = MANUAL.get(name)
        raise InputError(
            f"no dataset {name!r} in {source}; `tfds build {name}` prepares it"
            + (f" and {note}" if note else "")
        )
    return folder


def write_task(name: str, source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the dataset of a task atomically, or prints that it exists.

    Args:
      name: a key of `TASKS`.
      source: folder of prepared TFDS datasets.
      out: folder of all tasks.

    Raises:
      InputError: the dataset is missing or has other counts, or a label is not one of
        the task's classes.
    """
    import tensorflow_datasets as tfds

    from data.records import records
    from data.records.stages import materialise

    task, target = TASKS[name], out / name
    if target.exists() and not (target / dataset_folder.INFO).exists():
        raise InputError(f"{target} is there and is no dataset; give another --out")
    if target.exists():
        print(f"{target} is there: nothing to do.")
        return
    folder = find_dataset(source, task.dataset)
    builder = dataset_folder.open_folder(folder)
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    wanted = SIZES | {"test": task.test_pictures}
    for split, expression in splits.items():
        _check_count(folder, builder, expression, wanted[split])

    def write(temporary: pathlib.Path) -> None:
        temporary.mkdir()
        shards = {}
        for split, expression in splits.items():
            count = wanted[split]
            examples = _examples(name, task, builder, expression)
            shards[split] = records.write_split(
                temporary,
                name,
                split,
                examples,
                count=count,
                shards=-(-count // SHARD_PICTURES),
            )
        features = tfds.features.FeaturesDict(
            {
                "image": records.image_feature(),
                "label": tfds.features.ClassLabel(num_classes=task.classes),
            }
        )
        records.write_metadata(temporary, name, features, shards)

    materialise(target, write)
    print(f"{target}: 800, 200 and {task.test_pictures} pictures of {folder}")


def _check_count(folder: pathlib.Path, builder: Any, split: str, wanted: int) -> None:
    """Raises InputError if a split is missing or has not `wanted` pictures.

    Args:
      folder: folder of the dataset, for messages.
      builder: TFDS builder of the dataset.
      split: split in TFDS's syntax, as in "train[:800]".
      wanted: number of pictures that the split must have.
    """
    base, known = split.split("[")[0], builder.info.splits
    if base not in known:
        raise InputError(f"{folder} has no split {base!r}; it has {[*known]}")
    try:
        found = known[split].num_examples
    except ValueError:  # a part beyond its end
        found = known[base].num_examples
    if found != wanted:
        raise InputError(
            f"{split} of {folder} has {found} pictures; wanted {wanted}: another"
            " version of the dataset"
        )


def _examples(name: str, task: VtabTask, builder: Any, split: str) -> Iterator[bytes]:
    """Yields the serialized records of one split.

    Raises:
      InputError: a label is no class of the task, or a record is damaged.
    """
    import tensorflow_datasets as tfds
    import tqdm

    from data.records.records import make_example

    kept = {} if task.grey else {"image": tfds.decode.SkipDecoding()}
    dataset = builder.as_dataset(split=split, decoders=kept, shuffle_files=False)
    whole = builder.info.splits[split.split("[")[0]]
    records = dataset_folder.records_by_shard(whole)

    def read() -> Iterator[dict[str, Any]]:
        with dataset_folder.reading_records(lambda: records):
            yield from dataset.as_numpy_iterator()

    rows = tqdm.tqdm(read(), f"{name} {split}", unit="picture", disable=None)
    for index, record in enumerate(rows):
        label = task.label(record)
        if not 0 <= label < task.classes:
            raise InputError(
                f"picture {index} of {split} of {task.dataset} has the label {label};"
                f" wanted 0 to {task.classes - 1}"
            )
        image = record["image"]
        yield make_example(
            image=_encode_grey(image, task.grey) if task.grey else image, label=label
        )


def _encode_grey(pixels: Any, brightness: int) -> bytes:
    """Encodes uint8 pixels (H, W, 1), times `brightness`, as a PNG of one channel."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] * pixels.dtype.type(brightness)).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Reads the flags, checks that all datasets exist, and writes the tasks."""
    parser = argparse.ArgumentParser(
        prog="python -m data.vtab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--source", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    flags = parser.parse_args()
    names = flags.tasks or [*TASKS]
    for name in names:
        task = choose(TASKS, name, "TASK")
        find_dataset(flags.source, task.dataset)  # before the first is written
    for name in names:
        write_task(name, flags.source, flags.out)


if __name__ == "__main__":
    sys.exit(run_command("data.vtab", main))
