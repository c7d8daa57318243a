"""Runs shell scripts that may mount disks which no other process sees."""

import pathlib
import subprocess
from collections.abc import Mapping


def run_mounting(
    script: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a script in the project's folder, as root of a user namespace."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-ec", script],
        cwd=pathlib.Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
