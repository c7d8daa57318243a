"""Reads whole sources, and writes tar files for them."""

import collections
import io
import pathlib
import tarfile

from data.sources.config import SourceConfig
from data.sources.source import RAW, list_shards, read_shard

PNG = b"\x89PNG picture"


def read(kind: str, path: pathlib.Path | str, **fields):
    """Returns the rows of all shards of a source, and the counted drops."""
    config = SourceConfig(kind, str(path), **fields)
    drops, rows = collections.Counter(), []
    for shard in list_shards(config):
        for batch in read_shard(config, shard, drops):
            assert batch.schema == RAW
            assert 0 < len(batch) <= 256
            rows += [tuple(row.values()) for row in batch.to_pylist()]
    return rows, dict(+drops)


def write_tar(path: pathlib.Path, members, mode: str = "w") -> None:
    """Writes a tar whose members are pairs (name, content)."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
