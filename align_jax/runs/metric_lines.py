"""The metric lines of a run: one file on a disk, and several parts in a bucket.

A line is a JSON object: {"step": 3, "train/loss": 0.5}. On a disk, lines are appended
to metrics.jsonl. An object in a bucket can only be replaced. There, lines go to parts
named metrics/START-STEP-PART.jsonl: the number of the run's start, the step after which
it continues, and the number of the part. Each flush replaces the last part, until it
holds `PART_BYTES`. So a flush never sends more than one part and the new lines.

A start runs the steps after STEP again. Therefore lines of later steps in the parts of
earlier starts do not count, and readers skip them. A file metrics.jsonl beside the
parts is older than all of them: the run was begun on a disk.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

from align_jax import places
from align_jax.runs.lost_time import PRODUCTIVE
from align_jax.runs.pace import DEVICE_HOURS, STARTED, TOTALS, carry_totals
from align_jax.runs.workdir import METRICS_FILE, PARTS_FOLDER

PART_BYTES = 1 << 17  # a part that holds so much is complete; some hundred lines
TAIL = 1 << 20  # bytes, which hold some thousand lines
TAIL_PARTS = TAIL // PART_BYTES
REQUESTS = 16  # parts that are read at once

Row = dict[str, float]


class ScalarWriter:
    """Base of writers with the methods of clu's `MetricWriter`, for scalars only.

    It does not inherit from it, so that metrics are read without clu and TensorFlow.
    """

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} writes scalars only")

    write_summaries = write_images = write_videos = write_audios = _refuse
    write_texts = write_histograms = write_pointcloud = write_hparams = _refuse


class FileWriter(ScalarWriter):
    """Appends a line a call to a file."""

    def __init__(self, path: str) -> None:
        """Opens the file for appending."""
        self._path = path
        self._closing = contextlib.ExitStack()
        self._file = self._closing.enter_context(places.appending(path))

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Appends one line."""
        with places.writing(self._path):
            self._file.write(_format(step, scalars))

    def flush(self) -> None:
        """Hands all lines to the file system."""
        with places.writing(self._path):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._closing.close()


class PartsWriter(ScalarWriter):
    """Adds a line a call to the parts of a new start; `flush` writes the last part."""

    def __init__(self, workdir: str, step: int) -> None:
        """Numbers the start.

        Args:
          workdir: path or URL of the run's folder.
          step: step after which the start continues.
        """
        self._folder = os.path.join(workdir, PARTS_FOLDER)
        places.make_folder(self._folder)
        start = max((part[0] for part in _list_parts(workdir)), default=-1) + 1
        self._prefix = f"{start:04}-{step:08}"
        self._part, self._lines, self._bytes, self._sent = 0, [""], 0, True

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Adds one line."""
        line = _format(step, scalars)
        self._lines.append(line)
        self._bytes += len(line)
        self._sent = False

    def flush(self) -> None:
        """Writes the lines that have been added since the last complete part."""
        if self._sent:
            return
        name = f"{self._prefix}-{self._part:06}.jsonl"
        places.write_text(os.path.join(self._folder, name), "".join(self._lines))
        self._sent = True
        if self._bytes >= PART_BYTES:
            self._part += 1
            self._lines, self._bytes = [], 0

    def close(self) -> None:
        """Writes the last lines."""
        self.flush()


def open_lines(
    workdir: str, step: int, begun: float | None = None
) -> tuple[ScalarWriter, list[Row]]:
    """Opens the metric lines of a run that continues after `step`.

    Lines of later steps, written before an interruption, are dropped, because these
    steps run again; so are the scores of step 0 if `step` is 0. A new line holds the
    time of the start, and the totals that the dropped lines had, see `carry_totals`.

    Args:
      workdir: path or URL of the run's folder.
      step: number of steps taken before.
      begun: time of the start, in Unix seconds; None is now.

    Returns:
      (writer, the earlier lines that count and have scores, a start or measures of
      time, the new line). In parts, of lines of earlier steps than `step` these are the
      starts and the newest measures.
    """
    begun = time.time() if begun is None else begun
    largest: Row = {}
    past = []
    path = os.path.join(workdir, METRICS_FILE)
    in_parts = places.is_url(workdir) or bool(_list_parts(workdir))
    with contextlib.ExitStack() as stack:
        if not in_parts:
            places.make_folder(workdir)
            stack.enter_context(places.writing(path))
            temporary = stack.enter_context(places.replacing(path))
            kept = stack.enter_context(places.appending(temporary))
        for row in _newest(workdir, step) if in_parts else stream_metrics(workdir):
            for name in TOTALS & row.keys():
                largest[name] = max(largest.get(name, 0.0), row[name])
            if not _counts(row, step):
                continue
            if not in_parts:
                kept.write(json.dumps(row) + "\n")
            timed = not row.keys().isdisjoint((STARTED, PRODUCTIVE, DEVICE_HOURS))
            if timed or any(name.startswith("eval/") for name in row):
                past.append(row)
    writer = PartsWriter(workdir, step) if in_parts else FileWriter(path)
    started = {STARTED: begun, **carry_totals(largest, past, begun)}
    writer.write_scalars(step, started)
    writer.flush()
    return writer, [*past, {"step": step, **started}]


def read_metrics(workdir: str) -> list[Row]:
    """Reads a run's metric lines in order, without a half-written last line.

    A damaged line is skipped; a warning on stderr names it.

    Returns:
      A dict {"step": ..., name: value} for each line; no dicts if there are no lines.
    """
    return list(stream_metrics(workdir))


def stream_metrics(workdir: str) -> Iterator[Row]:
    """Yields the lines of `read_metrics` one at a time."""
    parts = _list_parts(workdir)
    limits, oldest = _limits(parts)
    path = os.path.join(workdir, METRICS_FILE)
    if places.exists(path):
        with places.opening(path) as file:
            yield from _parse(file, path, oldest)
    yield from _stream_parts(workdir, parts, limits)


def _newest(workdir: str, step: int) -> list[Row]:
    """Reads the lines in parts that a start after `step` needs, in order.

    Totals grow with the steps and a part ends with a flush, which writes them. So the
    newest parts suffice, down to an earlier step than `step`, and the first line of
    each start. With a file of lines beside the parts, all lines are read.
    """
    parts = _list_parts(workdir)
    if places.exists(os.path.join(workdir, METRICS_FILE)):
        return read_metrics(workdir)
    limits, _ = _limits(parts)
    rows: list[Row] = []
    while parts and not any(row["step"] < step and PRODUCTIVE in row for row in rows):
        rows = [*_stream_parts(workdir, [parts.pop()], limits), *rows]
    starts = [part for part in parts if part[2] == 0]
    earlier = _stream_parts(workdir, starts, limits)
    return [*(row for row in earlier if STARTED in row), *rows]


def read_last_metrics(workdir: str) -> list[Row]:
    """Reads as `read_metrics` the newest lines only, at most about `TAIL` bytes."""
    parts = _list_parts(workdir)
    limits, oldest = _limits(parts)
    rows: list[Row] = []
    path = os.path.join(workdir, METRICS_FILE)
    size = places.size(path) if len(parts) < TAIL_PARTS else None
    if size is not None:
        start = max(0, size - TAIL)
        with places.opening(path) as file:
            file.seek(start)
            lines = file.read().splitlines(keepends=True)
        rows += _parse(lines[1:] if start else lines, path, oldest)
    for part in parts[-TAIL_PARTS:]:
        content = _read_part(workdir, part)
        rows += _parse(content, part[-1], limits[part[:2]])
    return rows


def modified(workdir: str) -> float | None:
    """Returns when a line was last written, in Unix seconds, or None without lines."""
    parts = _list_parts(workdir)
    last = os.path.join(PARTS_FOLDER, parts[-1][-1]) if parts else METRICS_FILE
    return places.modified(os.path.join(workdir, last))


Part = tuple[int, int, int, str]  # (start, step, number, name of the file)


def _list_parts(workdir: str) -> list[Part]:
    """Lists a run's parts in the order in which they were written."""
    folder = os.path.join(workdir, PARTS_FOLDER)
    found = []
    for name in places.list_names(folder) if places.is_folder(folder) else []:
        if match := re.fullmatch(r"(\d+)-(\d+)-(\d+)\.jsonl", name):
            start, step, number = map(int, match.groups())
            found.append((start, step, number, name))
    return sorted(found)


def _limits(parts: Iterable[Part]) -> tuple[dict[tuple[int, int], float], float]:
    """Finds the last step that counts in each start's parts.

    Returns:
      ({(start, step): last step}, last step in lines older than all parts).
    """
    limits: dict[tuple[int, int], float] = {}
    limit = math.inf
    for start in sorted({part[:2] for part in parts}, reverse=True):
        limits[start] = limit
        limit = min(limit, start[1])
    return limits, limit


def _stream_parts(
    workdir: str, parts: Iterable[Part], limits: dict[tuple[int, int], float]
) -> Iterator[Row]:
    """Yields the lines of some parts that count, while the next parts are read."""
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        waiting = []
        for part in parts:
            waiting.append((part, pool.submit(_read_part, workdir, part)))
            if len(waiting) > REQUESTS:
                first, content = waiting.pop(0)
                yield from _parse(content.result(), first[-1], limits[first[:2]])
        for part, content in waiting:
            yield from _parse(content.result(), part[-1], limits[part[:2]])


def _read_part(workdir: str, part: Part) -> list[bytes]:
    content = places.read_bytes(os.path.join(workdir, PARTS_FOLDER, part[-1]))
    return content.splitlines(keepends=True)


def _parse(lines: Iterable[bytes], path: str, limit: float) -> Iterator[Row]:
    """Yields the lines that count; see `_counts`."""
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):  # a writer was killed, or is writing
            continue
        try:
            row = json.loads(line)
            fits = isinstance(row, dict) and "step" in row
            fits = fits and all(type(value) in (int, float) for value in row.values())
        except ValueError:
            fits = False
        if not fits:
            print(
                f"warning: line {number} of {path} is no metric line and was skipped",
                file=sys.stderr,
            )
        elif _counts(row, limit):
            yield row


def _counts(row: Row, limit: float) -> bool:
    """Returns whether a line still counts after a start that continues after `limit`.

    From step 0, the evaluation of step 0 runs again.
    """
    return row["step"] <= limit and (limit > 0 or STARTED in row)


def _format(step: int, scalars: dict) -> str:
    values = {name: float(value) for name, value in scalars.items()}
    return json.dumps({"step": step, **values}) + "\n"
