"""Raw pairs with copies of evaluation images, for rules that look at pictures."""

import contextlib
import io
import pathlib
import sys
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from align_jax.embed import __main__ as embed
from align_jax.embed import shards
from data.corpus.config import CorpusConfig, EngineConfig, PictureConfig
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from tests.data.corpus.corpus_test import draw, sentence

MIRRORED, CROPPED = 10_048, 10_195  # the tiny model sees that their copies are alike
MAX_COSINE = 0.92


def changed(number: int, change: Callable[[Image.Image], Image.Image]) -> bytes:
    """Draws a picture and changes it."""
    file = io.BytesIO()
    change(Image.open(io.BytesIO(draw(number)))).save(file, "PNG")
    return file.getvalue()


def large() -> bytes:
    """Draws a picture with a hash but no embedding: it is too large for the model."""
    return draw(60, (250, 250))


COPIES = [
    changed(MIRRORED, ImageOps.mirror),
    changed(CROPPED, lambda picture: picture.crop((9, 9, 192, 192)).resize((201, 201))),
]


def write_shards(rows: list[tuple[bytes, str]], folder: pathlib.Path) -> None:
    """Writes pairs of a picture and a text as three shards of a source."""
    for n in range(3):
        image, text = zip(*rows[n::3], strict=True)
        table = {"image": image, "alt_text": text, "language": ["en"] * len(image)}
        pq.write_table(pa.table(table), folder / f"{n}.parquet")


def make_config(model: str, folder: pathlib.Path) -> CorpusConfig:
    """Writes three shards of raw pairs, and returns the config of their corpus.

    Two of the pictures are copies of evaluation images.
    """
    pictures = [*map(draw, range(34)), *COPIES, large()]
    dropped = draw(50)  # by a cheaper rule, so no picture rule sees it
    rows = [(picture, sentence(4, i)) for i, picture in enumerate(pictures)]
    rows += [(dropped, "")]
    write_shards(rows, folder)
    held_out = {
        "image_id": ["mirrored", "cropped", "broken"],
        "image": [draw(MIRRORED), draw(CROPPED), b"no picture"],
    }
    pq.write_table(pa.table(held_out), folder / "held_out")
    return CorpusConfig(
        name="planted",
        seed=3,
        ingest=SourceConfig("parquet", str(folder / "*.parquet")),
        rules=RuleBounds(),
        vocabulary_size=100,
        evaluation_images=str(folder / "held_out"),
        pictures=PictureConfig(embedding_model=model, max_cosine=MAX_COSINE),
        engine=EngineConfig(workers=1),
        shards=2,
    )


@contextlib.contextmanager
def killed_at(name: str) -> Iterator[None]:
    """Kills the build in the `with` statement when it embeds the shard of a name."""
    embed_shard = shards._embed_shard

    def killed(model, shard, *arguments):
        if shard.name == name:
            raise KeyboardInterrupt
        return embed_shard(model, shard, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_embed_shard", killed)
        yield


def run_here(model: str, arguments: list[str]) -> None:
    """Runs the model in this process, which saves the imports of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["embed", f"--model={model}", *arguments])
        embed.main()
