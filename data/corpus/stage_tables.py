"""The stages of a build on disk, as tables of the engine that computes them."""

import pathlib

import ibis

from align_jax import places
from data.corpus.config import CorpusConfig
from data.corpus.engines import Engine, choose_engine
from data.records.stages import materialise


class StageTables:
    """Reads and writes the stages of a build through its engine."""

    def __init__(self, config: CorpusConfig, directory: pathlib.Path) -> None:
        """Opens the engine; its spill folder is inside `directory`.

        Raises:
          InputError: no engine has the configured name.
        """
        self.config = config
        self.directory = directory
        self.folder = directory / "stages"
        engine = choose_engine(config.engine.kind)
        for left in directory.rglob(f"*{places.TEMPORARY}"):  # by a killed build
            places.remove(left)
        spill = self.folder / "spill"
        self.engine: Engine = engine(config=config.engine, spill=spill)

    def stage(self, name: str) -> pathlib.Path:
        """Returns the path of a stage."""
        return self.folder / f"{name}.parquet"

    def table(self, name: str) -> ibis.Table:
        """Returns a stage as an expression."""
        return self.engine.read(self.stage(name))

    def shards(self, name: str) -> ibis.Table:
        """Returns a stage of many shards as an expression."""
        return self.engine.read(self.folder / name / "*.parquet")

    def save(self, name: str, table: ibis.Table) -> None:
        """Computes an expression and writes it as a stage, unless the stage exists."""
        materialise(self.stage(name), lambda path: self.engine.save(table, path, name))

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()
