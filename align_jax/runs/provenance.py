"""Records a run's provenance: the code's revision, packages and devices."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

from align_jax import places

PROVENANCE_FILE = "provenance.json"  # in the run's folder; describes its last start
ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = "jax flax optax orbax-checkpoint tensorflow tensorflow-text".split()


def write_provenance(workdir: str) -> None:
    """Writes the result of `provenance` to `PROVENANCE_FILE` in a run's folder."""
    places.write_json(os.path.join(workdir, PROVENANCE_FILE), provenance())


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
