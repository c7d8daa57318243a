"""Where a corpus is computed: DuckDB and processes here, or Spark on a cluster.

Both run the same Ibis expressions over the same Parquet stages, and the same function
over every shard. Nothing outside of this file knows which one it is. Another engine is
a class that fulfils `Engine` and one line in `ENGINES`.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from align_jax.contracts import check_contract
from align_jax.errors import InputError
from data.corpus.config import EngineConfig

# Of the memory that the config allows: what DuckDB takes beyond its limit is the rest.
DUCKDB_SHARE = 0.8

# Does its part and returns the number of rows it did. A task is sent to other
# processes and machines: a `functools.partial` of a function of a module, for example.
Task = Callable[[], int]


class Engine(Protocol):
    """Where the expressions and the tasks of a build run.

    Tables are Ibis expressions of any columns. An engine reads and writes Parquet, and
    the rows of a table have no order unless the expression has one. All engines give
    the same rows for the same expression.
    """

    def __init__(self, config: EngineConfig, spill: pathlib.Path) -> None:
        """Starts the engine.

        Args:
          config: fields of config.engine.
          spill: folder for what does not fit in memory; it may not exist yet.

        Raises:
          InputError: a package is missing.
        """

    def read(self, path: pathlib.Path | str) -> ibis.Table:
        """Reads a Parquet file, a folder of them, or all that match a pattern."""

    def execute(self, expression: ibis.Expr) -> Any:
        """Evaluates an expression: a table to a data frame, a scalar to a number."""

    def save(self, table: ibis.Table, path: pathlib.Path, label: str) -> None:
        """Writes a table to `path`, which `read` reads again.

        Args:
          table: rows to write.
          path: file or folder that does not exist.
          label: name of the work, to show how far it is.
        """

    def save_split(
        self, table: ibis.Table, path: pathlib.Path, by: str, label: str
    ) -> None:
        """Writes a folder with a folder `by`=value for each value of a column.

        Args:
          table: rows to write.
          path: folder that does not exist.
          by: name of the column.
          label: name of the work, to show how far it is.
        """

    def map(self, tasks: Sequence[Task], label: str, unit: str) -> int:
        """Runs tasks, in any order and several at a time.

        The first error of a task is raised here, and no task starts after it.

        Args:
          tasks: functions without arguments, which can be pickled.
          label: name of the work, to show how far it is.
          unit: name of a row.

        Returns:
          The sum of what the tasks returned.
        """

    def close(self) -> None:
        """Ends what the engine started; tables cannot be used after it."""


class DuckDB:
    """One machine: bounded memory that spills to disk, and a pool of processes."""

    def __init__(self, config: EngineConfig, spill: pathlib.Path):
        """Opens a database in memory; `spill` is a folder for what does not fit."""
        self.workers = config.workers or len(os.sched_getaffinity(0))
        number = config.memory_limit.rstrip("KMGTiB ")
        unit = config.memory_limit.removeprefix(number).strip()
        self._connection = ibis.duckdb.connect(
            memory_limit=f"{DUCKDB_SHARE * float(number):.3f}{unit}",
            temp_directory=str(spill),
            threads=self.workers,
            preserve_insertion_order=False,
        )
        for setting in (
            "enable_progress_bar = true",
            "enable_progress_bar_print = false",
        ):
            self._connection.raw_sql(f"SET {setting}")  # it is read, not printed
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def read(self, path: pathlib.Path | str) -> ibis.Table:
        """A Parquet file, or all that a pattern matches."""
        return self._connection.read_parquet(str(path))

    def execute(self, expression: ibis.Expr) -> Any:
        """The value of an expression, a table as a data frame."""
        return self._connection.execute(expression)

    def save(self, table: ibis.Table, path: pathlib.Path, label: str) -> None:
        """Writes a Parquet file and shows how far it is and the rows a second."""
        with tqdm.tqdm(desc=label, unit="row", unit_scale=True, disable=None) as bar:
            self._watch(lambda: self._connection.to_parquet(table, path), bar)
            bar.update(pq.read_metadata(path).num_rows)

    def save_split(
        self, table: ibis.Table, path: pathlib.Path, by: str, label: str
    ) -> None:
        """Writes a folder with a folder `by`=value for each value of a column."""
        with tqdm.tqdm(desc=label, unit="row", unit_scale=True, disable=None) as bar:
            self._watch(
                lambda: self._connection.to_parquet(table, path, partition_by=by), bar
            )
            files = path.rglob("*.parquet")
            bar.update(sum(pq.read_metadata(file).num_rows for file in files))

    def close(self) -> None:
        """Ends the processes and forgets the tables."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._connection.disconnect()

    def _watch(self, query: Callable[[], None], bar: tqdm.tqdm) -> None:
        """Runs a query and shows the percentage that DuckDB tells."""
        if bar.disable:
            query()
            return
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            running = thread.submit(query)
            while not concurrent.futures.wait([running], timeout=0.5).done:
                percent = self._connection.con.query_progress()
                bar.set_postfix_str(f"{percent:.0f} %" if percent >= 0 else "")
            running.result()

    def map(self, tasks: Sequence[Task], label: str, unit: str) -> int:
        """Runs tasks over all processes; returns the sum of what they returned."""
        with tqdm.tqdm(desc=label, unit=unit, disable=None) as bar:
            done = 0
            for rows in self._run(tasks):
                bar.update(rows)
                done += rows
        return done

    def _run(self, tasks: Sequence[Task]) -> Iterator[int]:
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
    """A cluster, or Spark's local mode; extra `spark`.

    Stages must lie where every machine reads and writes them.
    """

    def __init__(self, config: EngineConfig, spill: pathlib.Path):
        """Takes the active session, else starts one at `config.spark_master`."""
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise InputError(
                "config.engine.kind is 'spark', which needs pyspark:"
                " `pip install -e '.[spark]'`"
            ) from error
        session = SparkSession.getActiveSession()
        if session is None:
            # Local executors run this Python, with this package on its path.
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
        """A Parquet file or folder, or all that a pattern matches."""
        return self._connection.read_parquet(str(path))

    def execute(self, expression: ibis.Expr) -> Any:
        """The value of an expression, a table as a data frame."""
        return self._connection.execute(expression)

    def save(self, table: ibis.Table, path: pathlib.Path, label: str) -> None:
        """Writes a folder of Parquet files; Spark shows how far it is by `label`."""
        self._session.sparkContext.setJobDescription(label)
        self._frame(table).write.parquet(str(path))

    def save_split(
        self, table: ibis.Table, path: pathlib.Path, by: str, label: str
    ) -> None:
        """Writes a folder with a folder `by`=value for each value of a column."""
        self._session.sparkContext.setJobDescription(label)
        self._frame(table).repartition(by).write.partitionBy(by).parquet(str(path))

    def map(self, tasks: Sequence[Task], label: str, unit: str) -> int:
        """Runs tasks, a partition each; returns the sum of what they returned."""
        if not tasks:
            return 0

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                rows = [tasks[i.as_py()]() for i in batch.column("id")]
                yield pa.record_batch({"rows": pa.array(rows, pa.int64())})

        numbers = self._session.range(0, len(tasks), 1, len(tasks))
        done = numbers.mapInArrow(run, "rows long")
        return sum(row.rows for row in done.collect())

    def close(self) -> None:
        """Leaves the session to its owner."""

    def _frame(self, table: ibis.Table) -> Any:
        return self._session.sql(self._connection.compile(table))


ENGINES: dict[str, type[Engine]] = {"duckdb": DuckDB, "spark": Spark}


def choose_engine(kind: str) -> type[Engine]:
    """The engine's class.

    Raises:
      InputError: no engine has this name.
      TypeError: the class does not fulfil `Engine`.
    """
    if kind not in ENGINES:
        known = ", ".join(ENGINES)
        raise InputError(f"config.engine.kind is {kind!r}; known: {known}")
    check_contract(ENGINES[kind], Engine, f"ENGINES[{kind!r}]")
    return ENGINES[kind]


def _ignore_interrupt() -> None:
    """Leaves Ctrl-C to the parent, which ends its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
