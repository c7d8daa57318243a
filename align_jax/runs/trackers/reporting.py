"""Feeds the trackers of a run in threads, so that no step and no error waits for them.

WORKDIR/trackers/NAME.json holds the run's id in the tracker NAME, and for each group of
names, such as "train" and "eval", the last step that was sent. A run that continues
from an earlier step therefore sends no step twice.
"""

import base64
import contextlib
import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from align_jax import places
from align_jax.config import choose, read_config
from align_jax.contracts import check_contract
from align_jax.errors import UNAWAITED, InputError, warned
from align_jax.pictures import read_picture
from align_jax.runs.trackers import TRACKERS, Tracker
from align_jax.runs.trackers.tracked_run import TrackedRun
from align_jax.runs.workdir import leads

FOLDER = "trackers"
WAITING_CALLS = 2000  # largest number of calls that wait for a slow tracker
PATIENCE = 30  # seconds that the end of a run waits for a tracker
GO_ON = "the run goes on without it"


class Feed:
    """A writer that calls a tracker in a thread, which also begins the tracker's run.

    A tracker that raises an error is left out from then on, with one line on stderr.
    """

    def __init__(self, name: str, begin: Callable[[str], Any], workdir: str) -> None:
        """Starts the thread.

        Args:
          name: name of the tracker's file in the workdir, and for messages.
          begin: function of the run's id that returns a `Tracker` or a writer of clu.
          workdir: path or URL of the run's folder.
        """
        self._name, self._begin = name, begin
        self._path = os.path.join(workdir, FOLDER, f"{name}.json")
        self._calls: queue.SimpleQueue[Callable[[Any], object] | None]
        self._calls = queue.SimpleQueue()
        self._step, self._full = 0, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Adds numbers of a step, unless they were sent before a restart."""
        self._step = step
        values = {name: float(value) for name, value in scalars.items()}
        self._put(lambda tracker: self._send(tracker, step, values))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures (H, W, 3) of type uint8, by name."""
        self._put(lambda tracker: tracker.write_images(step, images))

    def alert(self, title: str, text: str) -> None:
        """Says that the run has ended with an error."""
        self._put(lambda tracker: tracker.write_texts(self._step, {title: text}))

    def flush(self) -> None:
        """Lets the tracker send what it has."""
        self._put(self._note)

    def close(self) -> None:
        """Does nothing: pictures and alerts follow. `finish` ends the tracker."""

    def finish(self) -> None:
        """Lets the tracker end; does not wait for it."""
        self._calls.put(None)

    def wait(self) -> None:
        """Waits until the tracker has ended, for at most `PATIENCE`."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._thread.name = UNAWAITED
            self._warn(f"did not end within {PATIENCE} s", "its last numbers may lack")

    def _put(self, call: Callable[[Any], object]) -> None:
        if not self._thread.is_alive():
            return
        if self._calls.qsize() < WAITING_CALLS:
            self._calls.put(call)
        elif not self._full:
            self._full = True
            self._warn(f"has {WAITING_CALLS} calls behind", "numbers are left out")

    def _warn(self, fault: str, effect: str) -> None:
        line = f"warning: the tracker {self._name} {fault}; {effect}"
        print(line, file=sys.stderr, flush=True)

    def _run(self) -> None:
        with warned(f"the tracker {self._name} failed", GO_ON):
            if places.exists(self._path):
                state = places.read_object(self._path, {"id": str, "sent": dict})
                self._id, self._sent_before = state["id"], state["sent"]
            else:
                self._id, self._sent_before = uuid.uuid4().hex[:16], {}
            self._sent = dict(self._sent_before)
            self._store()  # so that a run killed while it begins has the same id again
            tracker = self._begin(self._id)
            self._note(tracker)
            while call := self._calls.get():
                call(tracker)
            self._note(tracker)
            tracker.close()

    def _send(self, tracker: Any, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers whose group has not sent this step before."""
        new = {
            name: value
            for name, value in scalars.items()
            if step > self._sent_before.get(_group(name), -1)
        }
        if new:
            tracker.write_scalars(step, new)
            self._sent |= {_group(name): step for name in new}

    def _note(self, tracker: Any) -> None:
        """Flushes the tracker, and stores what it was sent."""
        tracker.flush()
        self._store()

    def _store(self) -> None:
        """Writes the run's id and the last steps that were sent."""
        places.make_folder(os.path.dirname(self._path))
        places.write_json(self._path, {"id": self._id, "sent": self._sent})


class Trackers:
    """The trackers of a run.

    Attributes:
      feeds: writers of the started trackers; empty on all but the first process.
    """

    def __init__(
        self, described: Mapping[str, Mapping[str, Any]], writers: Sequence[Any] = ()
    ) -> None:
        """Reads the config and starts nothing.

        Args:
          described: {key of `TRACKERS`: fields of its `Config`}.
          writers: other objects with the methods of clu's `MetricWriter`.

        Raises:
          InputError: a name or field is unknown or wrong, or a package is missing.
          TypeError: a class of `TRACKERS` does not fulfil `Tracker`.
        """
        self.feeds: list[Feed] = []
        self._writers = writers
        self._chosen: dict[str, tuple[type[Tracker], Any]] = {}
        for name, fields in described.items():
            where = f"config.trackers.{name}"
            cls = choose(TRACKERS, name, "a name in config.trackers")
            check_contract(cls, Tracker, f"TRACKERS[{name!r}]")
            config = read_config(cls.Config, fields, where)
            spec = find_spec(name)
            # A folder of this name, as W&B makes one, is importable without a loader.
            if spec is None or spec.origin is None:
                raise InputError(
                    f"{where} needs the package {name!r}, which is missing; docs/"
                    "trackers.md says how to install it"
                )
            self._chosen[name] = cls, config

    @contextlib.contextmanager
    def reporting(self, workdir: str, fields: Mapping[str, Any]) -> Iterator[None]:
        """Starts the trackers, and ends them after the `with` statement.

        An error inside the `with` statement is sent as an alert and raised again.

        Args:
          workdir: path or URL of the run's folder.
          fields: the run's literal config, with its defaults.
        """
        if leads():
            for name, (cls, config) in self._chosen.items():
                begin = _beginning(cls, config, workdir, fields)
                self.feeds.append(Feed(name, begin, workdir))
            for number, writer in enumerate(self._writers):
                begin = _adopting(writer, fields)
                self.feeds.append(Feed(f"writer_{number}", begin, workdir))
        try:
            yield
        except BaseException as error:
            for feed in self.feeds:
                feed.alert(type(error).__name__, str(error))
            raise
        finally:
            for feed in self.feeds:
                feed.finish()
            for feed in self.feeds:
                feed.wait()

    def show(self, step: int, plots: Sequence[Mapping[str, str]]) -> None:
        """Shows the plots of the report, see `plot`, as pictures of a step."""
        if self.feeds and plots:
            pictures = {f"report/{p['title']}": _decode(p["picture"]) for p in plots}
            for feed in self.feeds:
                feed.write_images(step, pictures)


def _beginning(
    cls: type[Tracker], config: Any, workdir: str, fields: Mapping[str, Any]
) -> Callable[[str], Tracker]:
    return lambda run_id: cls(config, TrackedRun(workdir, run_id, fields))


def _adopting(writer: Any, fields: Mapping[str, Any]) -> Callable[[str], Any]:
    def begin(_: str) -> Any:
        writer.write_hparams(_flatten(fields))
        return writer

    return begin


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted path: value} of all fields of a literal config."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        nested = isinstance(value, Mapping)
        flat |= (
            _flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
        )
    return flat


def _group(name: str) -> str:
    return name.partition("/")[0]


def _decode(uri: str) -> np.ndarray:
    """Returns the pixels (H, W, 3) of a data URI of a picture file."""
    content = base64.b64decode(uri.partition(",")[2])
    return read_picture(content, "plot")
