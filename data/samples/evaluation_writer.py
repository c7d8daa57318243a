"""Writes evaluation datasets of samples: pictures with a text, some of them queries.

A record holds `image`, `texts` (one), `image_id`, `query` (false if the picture is only
a candidate) and the fields that a sample adds.
"""

import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_datasets as tfds

from data.corpus.ingest import identify
from data.records import records


class Row(NamedTuple):
    """A picture of an evaluation dataset.

    Attributes:
      picture: encoded picture.
      text: text of the picture.
      query: whether it is a query.
      more: further fields of the record, by name.
    """

    picture: bytes
    text: str
    query: bool
    more: Mapping[str, Any] = types.MappingProxyType({})


def write_rows(
    folder: pathlib.Path,
    splits: Mapping[str, Sequence[Row]],
    more: Mapping[str, Any],
) -> None:
    """Writes an evaluation dataset, and `queries.parquet` with the ids of its queries.

    Args:
      folder: output folder, which does not exist yet.
      splits: rows of each split, by its name.
      more: features of TFDS for the rows' further fields, by name.
    """
    folder.mkdir()
    written, queried = {}, []
    for name, rows in splits.items():
        examples = []
        for row in rows:
            image_id = identify(row.picture)
            if row.query:
                queried.append(image_id)
            examples.append(
                records.make_example(
                    image=row.picture,
                    texts=[row.text.encode()],
                    image_id=image_id.encode(),
                    query=int(row.query),
                    **row.more,
                )
            )
        written[name] = records.write_split(
            folder, "evaluation", name, examples, count=len(examples), shards=1
        )
    features = tfds.features.FeaturesDict(
        {
            "image": records.image_feature(),
            "texts": tfds.features.Sequence(tfds.features.Text()),
            "image_id": tfds.features.Text(),
            "query": tf.bool,
            **more,
        }
    )
    records.write_metadata(folder, "evaluation", features, written)
    pq.write_table(pa.table({"image_id": queried}), folder / "queries.parquet")
