"""Results of `benchmarks.suite`: a file for each git revision."""

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from align_jax import places
from align_jax.runs.provenance import provenance
from benchmarks.comparisons import Comparison

PREFIX = "revision_"  # of the files' names


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a benchmark.

    Attributes:
      comparisons: list of the comparisons that it recorded.
      seconds: duration of the benchmark.
      failure: reason for which it failed; "" if it did not.
    """

    comparisons: Sequence[Comparison]
    seconds: float
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Revision:
    """The outcomes of a git revision.

    Attributes:
      measured: time of the last measurement, in UTC, ISO 8601.
      about: the code, packages, devices and number of CPU cores, as texts by name.
      outcomes: outcome of each benchmark by name.
    """

    measured: str
    about: Mapping[str, str]
    outcomes: Mapping[str, Outcome]

    @property
    def name(self) -> str:
        """The revision in 8 characters, with a "+" if files were changed."""
        revision = self.about["git revision"]
        return revision[:8] + "+" * revision.endswith("-dirty")


def add_outcomes(folder: pathlib.Path, outcomes: Mapping[str, Outcome]) -> pathlib.Path:
    """Writes outcomes into this revision's file, beside those of other benchmarks.

    Returns:
      The path of the file.
    """
    about = provenance() | {"CPU cores": str(len(os.sched_getaffinity(0)))}
    path = folder / f"{PREFIX}{about['git revision'].replace(' ', '_')}.json"
    before = read_revision(path).outcomes if path.exists() else {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    revision = Revision(now, about, {**before, **outcomes})
    places.write_json(str(path), dataclasses.asdict(revision))
    return path


def read_revision(path: pathlib.Path) -> Revision:
    """Reads a file of `add_outcomes`."""
    found = json.loads(path.read_text())
    outcomes = {
        name: Outcome(
            [Comparison(**one) for one in fields["comparisons"]],
            fields["seconds"],
            fields["failure"],
        )
        for name, fields in found["outcomes"].items()
    }
    return Revision(found["measured"], found["about"], outcomes)


def read_revisions(folder: pathlib.Path) -> list[Revision]:
    """Reads all files of a folder, in the order of their measurements."""
    found = map(read_revision, folder.glob(f"{PREFIX}*.json"))
    return sorted(found, key=lambda revision: revision.measured)
