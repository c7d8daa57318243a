"""The JSON files that a build writes for itself: shards, drops and the report."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from align_jax import places
from align_jax.errors import InputError, one_line
from data.sources.config import SourceConfig
from data.sources.files import SourceShard
from data.sources.source import list_shards

# Key in the metadata of a file of pairs: the number of rows that the source gave.
ROWS = "rows"

# Types of the report's fields that a terminal shows.
REPORT = {"rules": list, "off": list, "drops": dict, "pairs_in": int, "pairs_kept": int}


def remember_shards(source: SourceConfig, path: pathlib.Path) -> list[SourceShard]:
    """Lists the shards of a source, and writes the list to a file that does not exist.

    Raises:
      InputError: the source cannot be read, or the file lists other shards.
    """
    shards = list_shards(source)
    found = json.dumps([dataclasses.asdict(shard) for shard in shards], indent=1)
    if not path.exists():
        places.make_folder(path.parent)
        places.write_text(path, found)
    elif read_shards(path) != resolve_shards(json.loads(found)):
        raise InputError(
            f"{source.path} has changed since {path.parents[1]} was begun ({path} lists"
            " its shards); give another folder"
        )
    return shards


def remember_files(paths: Iterable[pathlib.Path], listed: pathlib.Path) -> None:
    """Writes the names and sizes of files to a list, unless the list exists.

    Args:
      paths: files that a build reads; folders are left out.
      listed: path of the list, in the folder of the stages.

    Raises:
      InputError: the list has other files or sizes.
    """
    found = [[str(path), path.stat().st_size] for path in paths if path.is_file()]
    if not listed.exists():
        places.make_folder(listed.parent)
        places.write_json(listed, found)
    elif places.read_json(listed) != found:
        raise InputError(
            f"the input has changed since {listed.parents[1]} was begun ({listed} lists"
            " its files and their sizes); give another folder"
        )


def read_shards(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the source's shards with which a build began, with absolute paths.

    Raises:
      InputError: the file is damaged.
    """
    shards = places.read_json(path)
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
        raise InputError(f"{path} is damaged; give another --workdir")
    return resolve_shards(shards)


def resolve_shards(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes the paths of listed shards absolute; a build may list relative ones."""
    return [{**shard, "path": places.resolve(shard["path"])} for shard in shards]


def _is_shard(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("path"), str)


def read_drops(path: pathlib.Path) -> dict[str, int]:
    """Reads how many rows of a source shard gave no pair, by reason.

    Raises:
      InputError: the file is damaged.
    """
    drops = places.read_object(path)
    if not all(isinstance(count, int) for count in drops.values()):
        raise InputError(f"{path} is damaged; give another --workdir")
    return drops


def count_drops(stages: pathlib.Path) -> dict[str, int]:
    """Returns the number of rows of all shards that gave no pair, by reason."""
    drops: collections.Counter[str] = collections.Counter()
    for path in (stages / "drops").glob("*.json"):
        drops.update(read_drops(path))
    return dict(sorted((+drops).items()))


def name_drops(stages: pathlib.Path) -> str:
    """Returns `count_drops` in words, for a message."""
    drops = count_drops(stages).items()
    return ", ".join(f"{n} x {why}" for why, n in drops) or "its files are empty"


def count_rows(stages: pathlib.Path, accounted: int) -> int:
    """Returns the number of rows that the source gave, all shards together.

    Args:
      stages: folder of the stages.
      accounted: number of pairs and drops.

    Raises:
      InputError: the two numbers differ.
    """
    rows = 0
    for path in (stages / "pairs").glob("*.parquet"):
        found = pq.read_metadata(path).metadata or {}
        if ROWS.encode() not in found:  # written by an earlier version
            return accounted
        rows += int(found[ROWS.encode()])
    if rows != accounted:
        raise InputError(
            f"{stages} is damaged: the source gave {rows} rows, but there are"
            f" {accounted} pairs and drops; build in another folder"
        )
    return rows


def read_report(path: pathlib.Path) -> dict[str, Any]:
    """Reads the report of a complete build.

    Raises:
      InputError: the file is damaged.
    """
    try:
        report = places.read_object(path, REPORT)
        format_report(report)
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({one_line(error)}); remove it, and the same command"
            " writes it again"
        ) from error
    return report


def format_report(report: dict[str, Any]) -> str:
    """Formats a report for a terminal: rules, drops and totals."""
    lines = [f"{'rule':<20}{'breaks':>10}{'dropped first':>15}"]
    lines += [
        f"{r['rule']:<20}{r['breaks']:>10}{r['first']:>15}" for r in report["rules"]
    ]
    lines += [f"NOT EVALUATED: {r['rule']}, since {r['reason']}" for r in report["off"]]
    lines += [
        f"NOT COMPARED: {count} {what.replace('_', ' ')} could not be embedded"
        for what, count in report.get("not_embedded", {}).items()
        if count
    ]
    if copies := report.get("copies"):
        lines.append(
            f"copies: {copies['copies']} of {copies['pictures']} pictures have a better"
            " one near them"
        )
    if copies := report.get("embedding_copies"):
        lines.append(f"copies by embedding: {copies['copies']} pictures")
    if scores := report.get("pair_scores"):
        lines.append(
            f"pair score: {scores['min_score']:.6g} or more is kept of"
            f" {scores['pairs']} pairs; {scores['without_score']} have no score"
        )
    if balance := report.get("balance"):
        lines.append(
            f"balance: {balance['sampled']} of {balance['entries']} entries have more"
            f" than {balance['pairs_per_entry']} pairs, {balance['unmatched']} none"
        )
    if captions := report.get("captions"):
        lines.append(
            f"captions: {captions['captions']} of {captions['pictures']} kept pictures;"
            f" {captions['without']} have none; {captions['unknown']} ids are unknown"
        )
    lines += [f"unreadable: {n} x {reason}" for reason, n in report["drops"].items()]
    lines.append(
        f"{report['pairs_in']} distinct pairs in, {report['pairs_kept']} kept, of"
        f" {report['images_kept']} pictures"
    )
    return "\n".join(lines)
