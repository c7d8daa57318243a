"""Engines that compute a corpus: DuckDB with local processes, or Spark on a cluster.

Both run the same Ibis expressions over the same Parquet stages, and the same function
over every shard. Code outside this file does not depend on the engine. To add an
engine, write a class that fulfils `Engine` and add one line to `ENGINES`.
"""

import concurrent.futures
import glob
import math
import multiprocessing
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from align_jax.config import choose
from align_jax.contracts import check_contract
from align_jax.errors import InputError
from data.corpus.config import EngineConfig
from data.corpus.duckdb_errors import duckdb_errors, reason_of

# DuckDB exceeds its memory limit, so the limit is this share of the configured memory.
DUCKDB_SHARE = 0.8

# A task returns the number of rows it processed. Tasks are pickled and sent to other
# processes and machines; a `functools.partial` of a module's function can be pickled.
ShardTask = Callable[[], int]
Execute = Callable[[ibis.Expr], Any]  # the method of an engine


class Engine(Protocol):
    """Runs the expressions and the tasks of a build.

    Tables are Ibis expressions of any columns. An engine reads and writes Parquet. The
    rows of a table have no order unless the expression defines one. All engines return
    the same rows for the same expression.
    """

    def __init__(self, config: EngineConfig, spill: pathlib.Path) -> None:
        """Starts the engine.

        Args:
          config: fields of config.engine.
          spill: folder for data that does not fit in memory; it may not exist yet.

        Raises:
          InputError: a package is missing.
        """

    def read(self, path: pathlib.Path | str) -> ibis.Table:
        """Opens a Parquet file, a folder of them, or all that match a pattern.

        Args:
          path: path of the file or folder; only its last part may be a pattern.
        """

    def execute(self, expression: ibis.Expr) -> Any:
        """Evaluates an expression.

        Returns:
          A pandas data frame for a table, or a Python or NumPy value for a scalar; a
          null scalar is None or NaN.
        """

    def save(self, table: ibis.Table, path: pathlib.Path, label: str) -> None:
        """Writes a table to `path`, where `read` can read it.

        Args:
          table: rows to write.
          path: file or folder that does not exist.
          label: name of the work, for the progress display.
        """

    def save_split(
        self, table: ibis.Table, path: pathlib.Path, by: str, label: str
    ) -> None:
        """Writes a folder with one subfolder `by`=value for each value of a column.

        Args:
          table: rows to write.
          path: folder that does not exist.
          by: name of the column.
          label: name of the work, for the progress display.
        """

    def map(self, tasks: Sequence[ShardTask], label: str, unit: str) -> int:
        """Runs tasks in parallel, in any order.

        If a task fails, `map` raises the task's error, or an error of the engine that
        quotes it, and no other task is started.

        Args:
          tasks: functions without arguments, which can be pickled.
          label: name of the work, for the progress display.
          unit: name of a row, for the progress display.

        Returns:
          The total number of rows.
        """

    def group_bytes(self) -> float:
        """Returns the memory for a grouping's groups; infinity if they may spill."""

    def close(self) -> None:
        """Frees the engine's resources; tables cannot be used afterwards."""


class DuckDB:
    """One machine: DuckDB with bounded memory, and a pool of processes."""

    def __init__(self, config: EngineConfig, spill: pathlib.Path) -> None:
        """Opens a database in memory, which spills to the folder `spill`."""
        _check_folder(spill)
        self._memory = config.memory_bytes
        self.workers = config.workers or len(os.sched_getaffinity(0))
        self._connection = ibis.duckdb.connect(
            memory_limit=f"{DUCKDB_SHARE * self._memory:.0f}B",
            temp_directory=str(spill),
            threads=self.workers,
            preserve_insertion_order=False,
        )
        if sys.stderr.isatty():  # else no bar is shown, and Jupyter refuses the setting
            for setting in (
                "enable_progress_bar = true",
                "enable_progress_bar_print = false",  # `_watch` reads it
            ):
                self._connection.raw_sql(f"SET {setting}")
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def read(self, path: pathlib.Path | str) -> ibis.Table:
        """Reads a Parquet file, or all that match a pattern.

        Raises:
          InputError: the path has a backslash, or no readable Parquet file matches.
        """
        folder, name = os.path.split(path)
        _check_folder(folder)
        pattern = os.path.join(glob.escape(folder), name)
        try:
            # A folder named as `shard=7` is no partition and adds no column.
            return self._connection.read_parquet(pattern, hive_partitioning=False)
        except duckdb.Error as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}") from error

    def execute(self, expression: ibis.Expr) -> Any:
        """Evaluates an expression; a table gives a data frame."""
        with duckdb_errors():
            return self._connection.execute(expression)

    def save(self, table: ibis.Table, path: pathlib.Path, label: str) -> None:
        """Writes a Parquet file and shows the progress and the rows per second."""
        with tqdm.tqdm(desc=label, unit="row", unit_scale=True, disable=None) as bar:
            self._watch(lambda: self._copy(table, path), bar)
            bar.update(pq.read_metadata(path).num_rows)

    def save_split(
        self, table: ibis.Table, path: pathlib.Path, by: str, label: str
    ) -> None:
        """Writes a folder with one subfolder `by`=value for each value of a column."""
        with tqdm.tqdm(desc=label, unit="row", unit_scale=True, disable=None) as bar:
            self._watch(lambda: self._copy(table, path, f", PARTITION_BY ({by})"), bar)
            files = path.rglob("*.parquet")
            bar.update(sum(pq.read_metadata(file).num_rows for file in files))

    def group_bytes(self) -> float:
        """Returns the memory limit: DuckDB does not spill all groups."""
        return self._memory

    def close(self) -> None:
        """Ends the processes and closes the database."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._connection.disconnect()

    def _copy(self, table: ibis.Table, path: pathlib.Path, options: str = "") -> None:
        """Writes a table; Ibis's `to_parquet` fails if the path has an apostrophe."""
        target = str(path).replace("'", "''")
        self._connection._run_pre_execute_hooks(table)  # registers tables in memory
        rows = self._connection.compile(table)
        self._connection.raw_sql(
            f"COPY ({rows}) TO '{target}' (FORMAT parquet{options})"
        )

    def _watch(self, query: Callable[[], None], bar: tqdm.tqdm) -> None:
        """Runs a query and shows the percentage that DuckDB reports."""
        if bar.disable:
            with duckdb_errors():
                query()
            return
        with duckdb_errors(), concurrent.futures.ThreadPoolExecutor(1) as thread:
            running = thread.submit(query)
            while not concurrent.futures.wait([running], timeout=0.5).done:
                percent = self._connection.con.query_progress()
                bar.set_postfix_str(f"{percent:.0f} %" if percent >= 0 else "")
            running.result()

    def map(self, tasks: Sequence[ShardTask], label: str, unit: str) -> int:
        """Runs tasks in the pool of processes; returns the total number of rows.

        With one worker, or for one task, this process runs them.
        """
        with tqdm.tqdm(desc=label, unit=unit, disable=None) as bar:
            done = 0
            for rows in self._run(tasks):
                bar.update(rows)
                done += rows
        return done

    def _run(self, tasks: Sequence[ShardTask]) -> Iterator[int]:
        if self.workers == 1 or len(tasks) == 1:
            yield from (task() for task in tasks)
            return
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _ignore_interrupt
            )
        futures = [self._pool.submit(task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            self._pool.shutdown(cancel_futures=True)
            raise


class Spark:
    """A Spark cluster, or Spark's local mode; needs the extra `spark`.

    Every machine must be able to read and write the folder of the stages.
    """

    def __init__(self, config: EngineConfig, spill: pathlib.Path) -> None:
        """Uses the active Spark session, or starts one at `config.spark_master`.

        Raises:
          InputError: pyspark is missing.
        """
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise InputError(
                "config.engine.kind is 'spark', which needs pyspark:"
                " `pip install -e '.[spark]'`"
            ) from error
        session = SparkSession.getActiveSession()
        if session is None:
            # Local executors must run this Python and find this package.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            root = str(pathlib.Path(__file__).parents[2])
            os.environ["PYTHONPATH"] = os.pathsep.join(
                filter(None, (root, os.environ.get("PYTHONPATH")))
            )
            session = (
                SparkSession.builder.master(config.spark_master)
                .appName("align_jax corpus")
                .config("spark.local.dir", str(spill))
                .config("spark.driver.memory", config.memory_limit.replace("B", ""))
                .config("spark.sql.execution.arrow.pyspark.enabled", "true")
                .getOrCreate()
            )
        self._session = session
        self._connection = ibis.pyspark.from_connection(session)

    def read(self, path: pathlib.Path | str) -> ibis.Table:
        """Reads a Parquet file or folder, or all that match a pattern."""
        folder, name = os.path.split(path)
        literal = re.sub(r"([\\\[\]{}*?])", r"\\\1", folder)
        return self._connection.read_parquet(os.path.join(literal, name))

    def execute(self, expression: ibis.Expr) -> Any:
        """Evaluates an expression; a table gives a data frame."""
        return self._connection.execute(expression)

    def save(self, table: ibis.Table, path: pathlib.Path, label: str) -> None:
        """Writes a folder of Parquet files; Spark shows the progress under `label`."""
        self._session.sparkContext.setJobDescription(label)
        self._frame(table).write.parquet(str(path))

    def save_split(
        self, table: ibis.Table, path: pathlib.Path, by: str, label: str
    ) -> None:
        """Writes a folder with one subfolder `by`=value for each value of a column."""
        self._session.sparkContext.setJobDescription(label)
        self._frame(table).repartition(by).write.partitionBy(by).parquet(str(path))

    def map(self, tasks: Sequence[ShardTask], label: str, unit: str) -> int:
        """Runs each task in a partition; returns the total number of rows."""
        if not tasks:
            return 0

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                rows = [tasks[i.as_py()]() for i in batch.column("id")]
                yield pa.record_batch({"rows": pa.array(rows, pa.int64())})

        numbers = self._session.range(0, len(tasks), 1, len(tasks))
        done = numbers.mapInArrow(run, "rows long")
        return sum(row.rows for row in done.collect())

    def group_bytes(self) -> float:
        """Returns infinity: Spark sorts groups on disk."""
        return math.inf

    def close(self) -> None:
        """Does nothing; the Spark session stays open for its owner."""

    def _frame(self, table: ibis.Table) -> Any:
        self._connection._run_pre_execute_hooks(table)  # registers tables in memory
        return self._session.sql(self._connection.compile(table))


ENGINES: dict[str, type[Engine]] = {"duckdb": DuckDB, "spark": Spark}


def choose_engine(kind: str) -> type[Engine]:
    """Returns the class of an engine, by its name in ENGINES.

    Raises:
      InputError: no engine has this name.
      TypeError: the class does not fulfil `Engine`.
    """
    engine = choose(ENGINES, kind, "config.engine.kind")
    check_contract(engine, Engine, f"ENGINES[{kind!r}]")
    return engine


def _check_folder(folder: pathlib.Path | str) -> None:
    """Raises InputError if DuckDB's patterns cannot name the files of a folder."""
    if "\\" in str(folder):
        raise InputError(
            f"DuckDB cannot read {folder}: it takes a backslash for a slash; wanted a"
            " path without one"
        )


def _ignore_interrupt() -> None:
    """Leaves Ctrl-C to the parent process, which ends its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
