"""Checkpoints on the disks of a run's own hosts.

A large state takes minutes to reach a bucket, so checkpoints there are far apart. A
host's own disk, or its memory as `/dev/shm`, takes seconds. Each process writes the
parts of the arrays that its devices hold. After a crash the run continues from the
newest step whose parts its processes still hold together; a process that lost its files
gets them from another one.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax import places
from align_jax.config import as_json
from align_jax.devices.exchange import gather
from align_jax.errors import one_line, warned
from align_jax.runs.provenance import read_starts
from align_jax.runs.workdir import leads
from align_jax.training.checkpoint import CheckpointConfig
from align_jax.training.integrity import digest, named
from align_jax.training.train_state import TrainState

KEPT = 2  # steps; a process may be killed before it has written the newer one
SENT = 2**26  # bytes that one process sends to the others at a time
IDENTITY = "identity"  # entry of a file beside the arrays' parts
FILE = re.compile(r"(\d+)\.(\d+)-of-(\d+)\.npz")  # step, process, number of processes


class LocalCheckpoints:
    """The local checkpoints of one run; without `local_folder` it does nothing."""

    def __init__(
        self, workdir: str, config: CheckpointConfig, identity: Mapping[str, Any]
    ) -> None:
        """Finds the run's folder; the workdir must hold the record of its first start.

        All processes must call it at the same time. The first one reads the record:
        storage that others share may show them a new file late.

        Args:
          workdir: path or URL of the run's folder.
          config: folder of this host, and steps between two checkpoints.
          identity: fields that a checkpoint must match, see `RunConfig.identity`.
        """
        self._every = config.local_every_steps
        self._folder: str | None = None
        self._identity = digest(as_json(identity))
        self._writing: Future | None = None
        self._pool = ThreadPoolExecutor(1)
        if not config.local_folder:
            return
        run = np.zeros(8, np.uint8)
        starts = read_starts(workdir) if leads() else []
        if starts and "started" in starts[0]:
            # Another run may have used the same workdir before.
            name = digest([places.resolve(workdir), starts[0]["started"]])
            run[:] = list(bytes.fromhex(name[:16]))
        run = gather(run)[0]
        if run.any():
            folder = places.local_path(config.local_folder)
            self._folder = os.path.join(folder, f"align_jax_{run.tobytes().hex()}")

    def saves(self, step: int) -> bool:
        """Returns whether a step has a local checkpoint."""
        return self._folder is not None and step % self._every == 0

    def save(self, step: int, state: TrainState) -> None:
        """Copies this process's parts of a state and writes them in the background.

        A failure to write is one warning, and the run goes on.
        """
        self.wait()
        parts: dict[str, jax.Array] = {}
        for name, x in named(state).items():
            for shard in x.addressable_shards:
                parts.setdefault(_key(name, shard.index, x.shape), shard.data)
        # On CPUs these would share the memory that the next step overwrites.
        copies = {key: np.array(part) for key, part in jax.device_get(parts).items()}
        self._writing = self._pool.submit(self._write, step, copies)

    def _write(self, step: int, parts: dict[str, np.ndarray]) -> None:
        failure = f"the local checkpoint of step {step} is not written"
        with warned(failure, "the run goes on without it"):
            assert self._folder is not None
            places.make_folder(self._folder)
            entries: dict[str, Any] = {**parts, IDENTITY: np.array(self._identity)}
            with places.replacing(self._path(step)) as path, open(path, "wb") as file:
                np.savez(file, **entries)
            for old in self._own_steps()[:-KEPT]:
                places.remove(self._path(old))

    def restore(
        self, abstract: TrainState, after: int
    ) -> tuple[int, TrainState] | None:
        """Reads the newest state that the processes hold together.

        All processes must call it at the same time.

        Args:
          abstract: state of `jax.ShapeDtypeStruct`s, see `abstract_state`.
          after: step of the newest other checkpoint; only later steps are read.

        Returns:
          (step, state), or None if no later step is whole.
        """
        self.wait()
        own = sorted({step for step, _ in self._files()})[-KEPT:]
        padded = [*own, *[-1] * (KEPT - len(own))]
        steps = np.unique(gather(np.array(padded, np.int32)))
        for step in reversed(steps[steps > after].tolist()):
            state = self._read(step, abstract)
            if state is not None:
                return step, state
        return None

    def _read(self, step: int, abstract: TrainState) -> TrainState | None:
        """Reads the state of a step, or returns None if a part of it is lost."""
        arrays = named(abstract)
        forms: dict[str, tuple[tuple[int, ...], Any]] = {}
        needed = set()
        for name, x in arrays.items():
            for device, index in x.sharding.devices_indices_map(x.shape).items():
                key = _key(name, index, x.shape)
                forms[key] = (_part_shape(index, x.shape), x.dtype)
                if device.process_index == jax.process_index():
                    needed.add(key)
        parts = self._load(step, forms)
        held = gather(np.array([key in parts for key in forms]))
        if not held.any(0).all():
            return None
        lacks = np.array([key in needed and key not in parts for key in forms])
        lacking = gather(lacks).any(0)
        for sender in np.unique(held.argmax(0)[lacking]):
            chosen = lacking & (held.argmax(0) == sender)
            keys = [key for key, sent in zip(forms, chosen, strict=True) if sent]
            parts |= _send(keys, parts, forms, sender)

        def array(name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                return parts[_key(name, index, x.shape)]

            return jax.make_array_from_callback(x.shape, x.sharding, part)

        leaves = [array(name, x) for name, x in arrays.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def _load(self, step: int, forms: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Reads the parts of a step that this host holds.

        If the file of this process is missing, those of other processes are read, since
        the number of a process may change when a run starts again.

        Args:
          step: number of steps taken.
          forms: shape and type of each part of the state by its key.

        Returns:
          Parts by key; {} if the files are missing, damaged or of another run.
        """
        files = [path for found, path in self._files() if found == step]
        files = [path for path in files if path == self._path(step)] or files
        parts: dict[str, np.ndarray] = {}
        for path in files:
            try:
                with open(path, "rb") as file, np.load(file) as entries:
                    if str(entries[IDENTITY]) != self._identity:
                        continue
                    for key in forms.keys() & entries.keys():
                        shape, dtype = forms[key]
                        parts[key] = entries[key].view(dtype).reshape(shape)
            except Exception as error:  # of zipfile, zlib and NumPy
                warning = f"warning: {path} is damaged: {one_line(error)}"
                print(warning, file=sys.stderr, flush=True)
        return parts

    def remove_later(self, start: int) -> None:
        """Removes this host's files of later steps than `start`, which run again.

        They are those of a state that was not whole. If they stayed, they would be
        taken for the newest ones, and new files would be removed in their place.
        """
        with warned("old local checkpoints are not removed", "the run goes on"):
            for step, path in self._files():
                if step > start:
                    places.remove(path)

    def wait(self) -> None:
        """Waits until the last checkpoint is written."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Waits as `wait` does, then ends the thread."""
        self._pool.shutdown()

    def remove(self) -> None:
        """Removes the run's local checkpoints from this host."""
        self.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # others may do it as well

    def _path(self, step: int) -> str:
        """Returns the path of this process's file of a step."""
        assert self._folder is not None
        name = f"{step}.{jax.process_index()}-of-{jax.process_count()}.npz"
        return os.path.join(self._folder, name)

    def _files(self) -> list[tuple[int, str]]:
        """Returns (step, path) of this host's files, by ascending step."""
        if self._folder is None or not places.exists(self._folder):
            return []
        names = places.list_names(self._folder)
        found = [match for name in names if (match := FILE.fullmatch(name))]
        return sorted((int(m[1]), os.path.join(self._folder, m[0])) for m in found)

    def _own_steps(self) -> list[int]:
        """Returns the steps of this process's files, ascending."""
        return [step for step, path in self._files() if path == self._path(step)]


def _spans(index: tuple[slice, ...], shape: tuple[int, ...]) -> Iterator[tuple]:
    for cut, size in zip(index, shape, strict=True):
        yield cut.indices(size)[:2]


def _key(name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """Names a part of an array, as "params.stem.kernel 0-3 0-3 0-3 16-32"."""
    return " ".join([name, *(f"{a}-{b}" for a, b in _spans(index, shape))])


def _part_shape(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in _spans(index, shape))


def _send(
    keys: list[str],
    parts: Mapping[str, np.ndarray],
    forms: Mapping[str, tuple[tuple[int, ...], Any]],
    sender: int,
) -> dict[str, np.ndarray]:
    """Gives all processes some parts that the sender holds; bytes stay as they are."""
    sizes = [int(np.prod(forms[k][0])) * forms[k][1].itemsize for k in keys]
    sends = jax.process_index() == sender
    if sends:
        data = np.concatenate([parts[k].reshape(-1).view(np.uint8) for k in keys])
    else:
        data = np.zeros(sum(sizes), np.uint8)
    for start in range(0, len(data), SENT):
        chunk = data[start : start + SENT]
        chunk[:] = multihost_utils.broadcast_one_to_all(chunk, is_source=sends)
    ends = np.cumsum(sizes)
    return {
        k: data[end - size : end].view(forms[k][1]).reshape(forms[k][0])
        for k, size, end in zip(keys, sizes, ends, strict=True)
    }
