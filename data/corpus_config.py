"""The config of a corpus, from the literal fields of a config file."""

import dataclasses
import re
import typing
from typing import Any

from data.errors import DataError
from data.ingest import IngestConfig
from data.rules import RuleBounds


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """A corpus.

    Attributes:
      name: of the dataset; first part of the shards' names.
      seed: of the shuffle.
      ingest: where raw pairs come from.
      rules: bounds of the paper's filters.
      evaluation_images: Parquet file with a column `image_id` of pictures that must
        not be trained on; empty for none.
      vocabulary_size: upper bound of the WordPiece vocabulary (paper: 100,000).
      shards: record files.
      memory_limit: of the SQL engine, as in "4GB"; beyond it, it spills to disk.
    """

    name: str
    seed: int
    ingest: IngestConfig
    rules: RuleBounds
    evaluation_images: str
    vocabulary_size: int
    shards: int
    memory_limit: str = "4GB"

    def __post_init__(self):
        """Raises DataError for a field out of its range."""
        for name in ("shards", "vocabulary_size"):
            value = getattr(self, name)
            if value < 1:
                raise DataError(f"config.{name} is {value}; wanted 1 or more")
        if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", self.memory_limit):
            raise DataError(
                f"config.memory_limit is {self.memory_limit!r}; wanted a number and a"
                " unit, as in '4GB'"
            )


def read_config(cls: type, fields: dict[str, Any], where: str = "config") -> Any:
    """Builds a dataclass from a literal dict; DataError names a field that misfits."""
    if not isinstance(fields, dict):
        raise DataError(f"{where} is {fields!r}; wanted fields of {cls.__name__}")
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise DataError(f"{where} has no field {name!r}; known: {', '.join(known)}")
    values = {}
    for name, field in known.items():
        if name not in fields:
            if field.default is dataclasses.MISSING:
                raise DataError(f"{where} lacks the field {name!r}")
            continue
        value = fields[name]
        if dataclasses.is_dataclass(field.type):
            value = read_config(field.type, value, f"{where}.{name}")
        else:
            value = _typed(value, field.type, f"{where}.{name}")
        values[name] = value
    return cls(**values)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """The value, a list as a tuple; DataError where it is of another type."""
    wanted = typing.get_origin(kind) or kind
    if wanted is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise DataError(f"{where} is {value!r}; wanted {wanted.__name__}")
    return value
