"""Writes a retrieval evaluation set from the user's own downloads.

    python -m data.eval_sets NAME --source DIR --out DIR

The dataset has one record per picture: `image` (the unchanged bytes of the file),
`texts` (its captions; Multi30K has `texts_en`, `texts_de`, `texts_fr` and `texts_cs`),
`image_id`, `file_name` and, in Karpathy's splits, `caption_ids` (the captions'
`sentid`). The folder also holds `queries.parquet` (`image_id` and `image` of every
picture, for `config.evaluation_images` of a corpus) and `manifest.json`.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align_jax import places
from align_jax.command_line import local_path
from align_jax.config import choose
from align_jax.errors import InputError, run_command
from data.evaluation_sets.captioned_sets import (
    EVALUATION_SETS,
    CaptionedPicture,
    EvaluationSet,
    caption_files,
)

if TYPE_CHECKING:
    from data.records.records import WrittenShard

SHARD_BYTES = 150 << 20
QUERIES_ROWS = 64  # pictures that are written to queries.parquet together
VERSIONED = ("tensorflow", "tensorflow-datasets", "pyarrow", "pillow")
NAMED = 3  # examples that a message gives


def read_source(
    facts: EvaluationSet, source: pathlib.Path
) -> dict[str, list[CaptionedPicture]]:
    """Reads the captions of every split; checks their counts and the picture files.

    Args:
      facts: facts of the evaluation set.
      source: folder of the user's downloads.

    Returns:
      The pictures with their captions by split, in the order of the source.

    Raises:
      InputError: a file is missing or damaged, a count differs from the facts, or a
        picture occurs twice or has no caption.
    """
    for name in facts.captions:
        if not caption_files(source, name):
            raise InputError(
                f"no file {source / name}; wanted in {source}: {facts.layout}"
            )
    splits = facts.read(facts, source)
    for split, entries in splits.items():
        _check_counts(facts, split, entries)
    paths = [entry.path for entries in splits.values() for entry in entries]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = ", ".join(path.name for path in missing[:NAMED])
        raise InputError(
            f"{len(missing)} of {len(paths)} pictures of {facts.name} are not in"
            f" {source / facts.pictures} ({named}{', ...' * (len(missing) > NAMED)});"
            f" wanted in {source}: {facts.layout}"
        )
    return splits


def _check_counts(
    facts: EvaluationSet, split: str, entries: list[CaptionedPicture]
) -> None:
    where = f"split {split!r} of {facts.name}"
    if len(entries) != facts.images[split]:
        raise InputError(
            f"{where} has {len(entries)} pictures; wanted {facts.images[split]}:"
            f" {facts.captions[0]} is damaged or of other splits, download it again"
        )
    if len({entry.path for entry in entries}) < len(entries):
        raise InputError(f"{where} lists a picture twice; download its captions again")
    for name, wanted in facts.texts[split].items():
        found = sum(len(entry.texts[name]) for entry in entries)
        if found != wanted:
            raise InputError(
                f"{where} has {found} captions ({name}); wanted {wanted}: download"
                " its captions again"
            )
        bare = [entry.path.name for entry in entries if not entry.texts[name]]
        if bare:
            raise InputError(
                f"{where} has {len(bare)} pictures without captions ({name}), the"
                f" first is {bare[0]}; download its captions again"
            )


def describe(facts: EvaluationSet, source: pathlib.Path) -> dict[str, Any]:
    """Returns the part of the manifest that identifies the set.

    Returns:
      "name", "splits" (numbers of pictures and captions) and "sources" (SHA-256 of the
      caption files in `source`, by name; for a pattern, of the files in sequence).
    """
    return {
        "name": facts.name,
        "splits": {
            split: {"images": facts.images[split], "captions": facts.texts[split]}
            for split in facts.images
        },
        "sources": {
            name: _hash_files(caption_files(source, name)) for name in facts.captions
        },
    }


def _hash_files(paths: list[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(places.read_bytes(path))
    return digest.hexdigest()


def write_set(facts: EvaluationSet, source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the dataset atomically, or prints that it exists.

    Args:
      facts: facts of the evaluation set.
      source: folder of the user's downloads.
      out: folder of the dataset, which is missing, empty, or holds the same set.

    Raises:
      InputError: `read_source` refuses the downloads, a picture cannot be decoded, or
        `out` holds something else.
    """
    splits = read_source(facts, source)
    described = describe(facts, source)
    if not places.is_free(out):
        if _holds(out, described):
            print(f"{out} holds {facts.name}, complete: nothing to do.")
            return
        raise InputError(
            f"{out} is there and does not hold {facts.name} of these files; give"
            " another --out or remove it"
        )

    # Imported late, so that wrong input is reported before TensorFlow starts.
    from data.records.stages import materialise

    if out.exists():
        out.rmdir()
    materialise(out, lambda folder: _write(folder, facts, splits, described))
    counts = [
        f"{split} {facts.images[split]} pictures, "
        + ", ".join(f"{n} {name}" for name, n in facts.texts[split].items())
        for split in facts.images
    ]
    print(f"{facts.name} in {out}: {'; '.join(counts)}")


def _holds(out: pathlib.Path, described: dict[str, Any]) -> bool:
    try:
        manifest = places.read_object(out / "manifest.json")
    except InputError:
        return False
    return manifest.items() >= described.items()


def _write(
    folder: pathlib.Path,
    facts: EvaluationSet,
    splits: dict[str, list[CaptionedPicture]],
    described: dict[str, Any],
) -> None:
    from data.records import records

    folder.mkdir()
    shards, image_ids = _write_pictures(folder, facts.name, splits)
    records.write_metadata(folder, facts.name, _features(splits), shards)
    manifest = {
        **described,
        "empty_captions": sum(
            not text
            for entries in splits.values()
            for entry in entries
            for texts in entry.texts.values()
            for text in texts
        ),
        "image_ids_sha256": image_ids,
        "shards": [dataclasses.asdict(s) for split in shards.values() for s in split],
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }
    places.write_json(folder / "manifest.json", manifest)


def _write_pictures(
    folder: pathlib.Path, name: str, splits: dict[str, list[CaptionedPicture]]
) -> "tuple[dict[str, list[WrittenShard]], str]":
    """Writes the records and queries.parquet.

    Returns:
      The shards by split, and the SHA-256 of all image ids, concatenated in order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tqdm

    from data.records import records

    digest = hashlib.sha256()
    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
    rows: list[dict[str, Any]] = []
    shards, total = {}, sum(map(len, splits.values()))
    with (
        pq.ParquetWriter(folder / "queries.parquet", schema) as queries,
        tqdm.tqdm(desc=name, total=total, unit="picture", disable=None) as bar,
    ):

        def examples(entries: list[CaptionedPicture]) -> Iterator[bytes]:
            for entry in entries:
                image, image_id = _read_picture(entry.path)
                digest.update(image_id.encode())
                rows.append({"image_id": image_id, "image": image})
                if len(rows) == QUERIES_ROWS:
                    queries.write_table(pa.Table.from_pylist(rows, schema))
                    rows.clear()
                bar.update()
                yield records.make_example(
                    image=image,
                    image_id=image_id.encode(),
                    file_name=entry.path.name.encode(),
                    **_encoded(entry),
                )

        for split, entries in splits.items():
            size = sum(entry.path.stat().st_size for entry in entries)
            shards[split] = records.write_split(
                folder,
                name,
                split,
                examples(entries),
                count=len(entries),
                shards=-(-size // SHARD_BYTES),
            )
        queries.write_table(pa.Table.from_pylist(rows, schema))
    return shards, digest.hexdigest()


def _read_picture(path: pathlib.Path) -> tuple[bytes, str]:
    """Returns a picture's bytes and id; InputError if it cannot be decoded."""
    from data.corpus.ingest import identify
    from data.pictures.images import describe_images

    image = places.read_bytes(path)
    image_id = identify(image)
    error = describe_images([image_id], [image])["error"][0].as_py()
    if error:
        raise InputError(f"{path} cannot be decoded ({error}); download it again")
    return image, image_id


def _encoded(entry: CaptionedPicture) -> dict[str, list[bytes]]:
    lists = dict(entry.texts)
    if entry.caption_ids:
        lists["caption_ids"] = entry.caption_ids
    return {name: [text.encode() for text in texts] for name, texts in lists.items()}


def _features(splits: dict[str, list[CaptionedPicture]]) -> Any:
    import tensorflow_datasets as tfds

    from data.records import records

    lists = _encoded(next(entry for entries in splits.values() for entry in entries))
    return tfds.features.FeaturesDict(
        {
            "image": records.image_feature(),
            **{name: tfds.features.Sequence(tfds.features.Text()) for name in lists},
            "image_id": tfds.features.Text(),
            "file_name": tfds.features.Text(),
        }
    )


def main() -> None:
    """Reads the flags and writes the evaluation set."""
    parser = argparse.ArgumentParser(
        prog="python -m data.eval_sets", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(EVALUATION_SETS))
    parser.add_argument("--source", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    flags = parser.parse_args()
    facts = choose(EVALUATION_SETS, flags.name, "NAME")
    write_set(facts, flags.source, flags.out)


if __name__ == "__main__":
    sys.exit(run_command("data.eval_sets", main))
