"""Records what each start of a run used: the code, packages and devices."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence

import jax

from align_jax import places
from align_jax.errors import InputError

PROVENANCE_FILE = "provenance.json"  # in the run's folder; a list of its starts
ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = "jax flax optax orbax-checkpoint tensorflow tensorflow-text".split()


def add_provenance(workdir: str) -> None:
    """Adds the result of `provenance`, and the time, to a run's `PROVENANCE_FILE`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    starts = [*read_starts(workdir), {"started": now, **provenance()}]
    places.write_json(os.path.join(workdir, PROVENANCE_FILE), starts)


def read_starts(workdir: str) -> list[dict[str, str]]:
    """Reads a run's `PROVENANCE_FILE`.

    Returns:
      Texts by name for each start of the run, the first one first; [] if the file is
      missing. A file of an earlier version holds the last start only.

    Raises:
      InputError: the file is damaged.
    """
    path = os.path.join(workdir, PROVENANCE_FILE)
    found = places.read_json(path) if places.exists(path) else []
    starts = [found] if isinstance(found, dict) else found
    if not isinstance(starts, list) or not all(isinstance(s, dict) for s in starts):
        raise InputError(f"{path} holds no list of objects, one for each start")
    return starts


def count_starts(starts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Describes the starts of a run by revision and devices, for a table.

    Returns:
      {"starts": "3: 2 on 8 x TPU v4 (tpu) at 0123abc, ..."}, or {} for one or no start.
    """
    if len(starts) < 2:
        return {}
    counts = Counter(
        f"on {start.get('devices')} at {start.get('git revision')}" for start in starts
    )
    parts = [f"{count} {what}" for what, count in counts.items()]
    return {"starts": f"{len(starts)}: {', '.join(parts)}"}


def provenance() -> dict[str, str]:
    """Describes the code and the machine of a run.

    Returns:
      Texts by name: the "git revision", the versions of "python" and of each of
      `PACKAGES`, and the number and type of the run's "devices". A revision or version
      that cannot be read is described in words.
    """
    found = {"git revision": git_revision() or "not known"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed under this name"
    device = jax.devices()[0]
    kind = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    return found | {"python": platform.python_version(), "devices": kind}


def git_revision() -> str | None:
    """Returns the commit of this code's checkout; "-dirty" at its end marks changes.

    Returns None if the code is no checkout, or git cannot read it.
    """
    if not (ROOT / ".git").exists():
        return None
    command = "git --no-optional-locks describe --always --dirty --abbrev=40"
    try:
        return subprocess.check_output(
            [*command.split(), "--exclude=*"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            text=True,
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
