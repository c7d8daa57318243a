"""The compiled programs of a run, kept in its folder for the next start."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.sharding import Mesh

from align_jax import places
from align_jax.config import Dataclass, as_json
from align_jax.devices.fingerprint import describe_compiler
from align_jax.errors import InputError, warned
from align_jax.training.integrity import digest

FOLDER = "compiled"
FIRST_STATE = "first_state"  # name of the program that creates the state
IDENTITY, CHECKSUM = "identity", "sha256"  # fields of a file's first line
CACHE_HIT = "/jax/compilation_cache/cache_hits"


class KeptPrograms:
    """Loads a run's programs from its folder, and writes those that it lacks.

    A program is loaded if config, code, compiler and devices are those that it was
    compiled for. It is then neither traced nor compiled. A file holds one line of JSON
    and a pickle, which is read only if its checksum is right.
    """

    def __init__(self, workdir: str, config: Dataclass, mesh: Mesh) -> None:
        """Describes what the programs depend on; neither reads nor writes a file.

        Args:
          workdir: path or URL of the run's folder.
          config: config of the run.
          mesh: devices that the programs run on.
        """
        self._folder = os.path.join(workdir, FOLDER)
        self._devices = [*mesh.devices.flat]
        fields = as_json(dataclasses.asdict(config))
        self._dependencies = {"config": fields, **describe_compiler(mesh)}
        self._new: dict[str, jax.stages.Compiled] = {}
        self._writing = threading.Lock()  # of the folder
        self._removed = False

    def get(
        self, name: str, compile_program: Callable[[], jax.stages.Compiled]
    ) -> jax.stages.Compiled:
        """Returns the program of a name, which is compiled if it cannot be loaded.

        Args:
          name: name of the program, which is also the name of its file.
          compile_program: function that compiles the program; it may be called from
            several threads.
        """
        program = self._load(name)
        if program is None:
            with _cache_hits() as hits:
                program = compile_program()
            # A program from JAX's cache is not written: on CPUs it has lost the code of
            # its functions, so the copy would load, and fail when it runs.
            if not hits:
                self._new[name] = program
        return program

    def write(self, required: bool = False) -> dict[str, int]:
        """Writes the programs that were compiled and not loaded, in one process only.

        A failure is a warning: a run can do without these files.

        Args:
          required: whether failures, after their warnings, are an error.

        Returns:
          Sizes of the files that this process wrote, in bytes, by path.

        Raises:
          InputError: files are required, and some could not be written.
        """
        with self._writing:
            return {} if self._removed else self._write(required)

    def _write(self, required: bool) -> dict[str, int]:
        sizes: dict[str, int] = {}
        # Every process can load the files of one. The last process writes: on CPUs,
        # the first one gets programs from JAX's cache, and these are not written.
        if jax.process_index() < jax.process_count() - 1:
            return sizes
        new = dict(self._new)  # another thread may add to it
        for name, program in new.items():
            path = self._path(name)
            with warned(f"{path} is not written", "the next start compiles again"):
                content = pickle.dumps(serialize(program))
                head = {IDENTITY: self._identify(name), CHECKSUM: _checksum(content)}
                places.make_folder(self._folder)
                places.write_bytes(path, json.dumps(head).encode() + b"\n" + content)
                sizes[path] = len(content)
        failed = [name for name in new if self._path(name) not in sizes]
        for name in new:
            del self._new[name]
        if required and failed:
            names = ", ".join(failed)
            raise InputError(f"{self._folder} lacks {names}, which cannot be written")
        return sizes

    def remove(self) -> None:
        """Removes the folder of the programs, for a run that is finished."""
        with self._writing:
            self._removed = True
            if jax.process_index() == 0:
                with warned(f"{self._folder} is not removed", "nothing reads it again"):
                    places.remove(self._folder)

    def _identify(self, name: str) -> str:
        """Hashes all that a program depends on; a file under another name differs."""
        return digest({"program": name, **self._dependencies})

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _load(self, name: str) -> jax.stages.Compiled | None:
        """Loads a program; None if it is absent, damaged or of another identity."""
        path = self._path(name)
        with warned(f"{path} is not used", "the program is compiled"):
            if not places.is_file(path):
                if places.exists(path):
                    raise InputError("it is no file")
                return None
            with places.opening(path) as file:
                head = json.loads(file.readline())
                if head[IDENTITY] != self._identify(name):
                    return None
                content = file.read()
            if _checksum(content) != head[CHECKSUM]:
                raise InputError("the file is damaged: its checksum differs")
            content, arguments, results = pickle.loads(content)
            return deserialize_and_load(
                content, arguments, results, execution_devices=self._devices
            )
        return None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """Yields a list that is filled if this thread gets a program from JAX's cache."""
    hits: list[str] = []
    own = threading.get_ident()

    def listen(event: str, **_: str | int) -> None:
        if event == CACHE_HIT and threading.get_ident() == own:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)
