"""The stages of a build on disk, as tables of the engine that computes them."""

import pathlib

import ibis

from align_jax import places
from align_jax.errors import InputError
from data.corpus.config import CorpusConfig, EngineConfig
from data.corpus.engines import Engine, choose_engine
from data.records.stages import materialise


class Stages:
    """Reads and writes the stages of a folder through an engine.

    `data.corpus.builder` says what a stage is. All tables are Ibis expressions.
    """

    def __init__(self, engine: EngineConfig, directory: pathlib.Path) -> None:
        """Opens the engine and removes what a killed build left half-written.

        Args:
          engine: config of the engine.
          directory: folder of the build; the engine spills to its `stages/spill`.

        Raises:
          InputError: no engine has the configured name, or its package is missing.
        """
        self.directory = directory
        self.folder = directory / "stages"
        chosen = choose_engine(engine.kind)
        for left in directory.rglob(f"*{places.TEMPORARY}"):  # by a killed build
            places.remove(left)
        spill = self.folder / "spill"
        self.engine: Engine = chosen(config=engine, spill=spill)

    def stage(self, name: str) -> pathlib.Path:
        """Returns the path of a stage without shards, DIR/stages/NAME.parquet.

        The engine decides whether that is a file or a folder of files.
        """
        return self.folder / f"{name}.parquet"

    def table(self, name: str) -> ibis.Table:
        """Opens a stage without shards as an expression."""
        return self.engine.read(self.stage(name))

    def shards(self, name: str) -> ibis.Table:
        """Opens all shards of a stage, DIR/stages/NAME/*.parquet, as one expression."""
        return self.engine.read(self.folder / name / "*.parquet")

    def save(self, name: str, table: ibis.Table) -> None:
        """Computes an expression and writes it as a stage, unless the stage exists."""
        materialise(self.stage(name), lambda path: self.engine.save(table, path, name))

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()


class StageTables(Stages):
    """The stages of a corpus and its config."""

    def __init__(self, config: CorpusConfig, directory: pathlib.Path) -> None:
        """Opens the engine of the config; see `Stages`."""
        super().__init__(config.engine, directory)
        self.config = config


def open_stage(engine: Engine, directory: pathlib.Path, name: str) -> ibis.Table:
    """Opens a stage that `data.build` wrote, on either engine.

    Args:
      engine: engine that reads the stage.
      directory: workdir of the build.
      name: name of the file or folder in DIRECTORY/stages.

    Raises:
      InputError: the stage is missing.
    """
    path = directory / "stages" / name
    if not path.exists():
        raise InputError(
            f"{directory} lacks stages/{name}; wanted the workdir of a complete"
            " `python -m data.build`"
        )
    return engine.read(path / "*.parquet" if path.is_dir() else path)
