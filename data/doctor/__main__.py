"""Checks a dataset of image-text records and names the commands that repair it.

    python -m data.doctor DIR [--sample N] [--text NAME] [--evaluation PATH]...

DIR is a build's folder, its `records`, any folder in TFDS's layout, or one of .tar,
.parquet or .array_record files. The exit code is 0 if the dataset is sound, 1 if faults
are found, and 2 for bad usage, for example a DIR without a dataset.
"""

import argparse
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from align_jax.command_line import local_path, path_or_url
from align_jax.errors import InputError, one_line, run_command
from data.doctor.files import NAMED, FileChecks, Finding

if TYPE_CHECKING:
    from data.doctor.records import ShardScan

DAMAGED = "damaged records"


class Doctor(FileChecks):
    """All checks of one dataset, in the order in which `diagnose` calls them."""

    def __init__(self, directory: pathlib.Path, text: str = "") -> None:
        """Raises InputError if `directory` holds no dataset and no build."""
        super().__init__(directory)
        self.text = text  # see `packed.make_reader`
        self.scans: dict[str, list[ShardScan]] = {}

    def read(self, sample: int | None) -> None:
        """Reads every record; notes damaged records, empty texts and broken pictures.

        Args:
          sample: maximum number of pictures to decode, evenly spread over the records;
            None decodes all.
        """
        import tqdm

        from data.doctor.packed import make_reader
        from data.doctor.records import READERS, scan_shard

        if not self.packed and self.file_format not in READERS:
            self.skipped.append(f"records (file format {self.file_format!r})")
            return
        reader = make_reader(self.file_format, self.text)
        earlier = 0
        total = sum(sum(shards.values()) for shards in self.shards.values())
        every = 1 if sample is None else (-(-total // sample) if sample else 0)
        with tqdm.tqdm(desc="read", total=total, unit="record", disable=None) as bar:
            for split, shards in self.shards.items():
                self.scans[split] = []
                for name, records in shards.items():
                    path = self.folder / name
                    if path.is_file():
                        scan = scan_shard(path, reader, every, earlier, bar.update)
                        self.scans[split].append(scan)
                        self._shard(scan, path, records)
                    earlier += records

    def _shard(self, scan: "ShardScan", path: pathlib.Path, records: int) -> None:
        count = len(scan.offsets) + len(scan.damaged)
        if count != records and not self.packed:
            self.note("records", count, f"{records} (dataset_info.json)", path)
        if scan.damaged:
            self._note_records(DAMAGED, scan.damaged, "none", path)
        if scan.undecodable:
            wanted = "pictures that can be decoded"
            self._note_records("undecodable pictures", scan.undecodable, wanted, path)
        if scan.empty_texts:
            offsets = [(offset, "") for offset in scan.empty_texts]
            self._note_records("empty texts", offsets, "a text in every record", path)

    def _note_records(
        self, what: str, offsets: list[tuple[int, str]], wanted: str, path: pathlib.Path
    ) -> None:
        named = ", ".join(
            f"{at}" + f" ({why})" * bool(why) for at, why in offsets[:NAMED]
        )
        more = ", ..." * (len(offsets) > NAMED)
        unit = "offset" if self.file_format == "tfrecord" else "record"
        where = f"{path}, {unit} {named}{more}"
        fix = self.rewrite() if what == DAMAGED else self.again()
        self.note(what, len(offsets), wanted, where, fix)

    def order(self) -> None:
        """Checks that keys never descend in a split; notes each split's first fault."""
        for split, scans in self.scans.items():
            before = None
            for scan in scans:
                if scan.first_key is None:
                    continue
                offset = scan.unordered
                if before is not None and scan.first_key < before:
                    offset = scan.offsets[0]
                if offset is not None:
                    where = f"split {split!r}, {scan.name}, record at {offset}"
                    self.note(
                        "order", "a lower key", "keys that ascend", where, self.again()
                    )
                    break
                before = scan.last_key

    def duplicates(self) -> None:
        """Finds pairs that repeat within a split, and pictures that are in two splits.

        A pair repeats if image id and texts are equal.
        """
        import numpy as np

        pictures = {}
        for split, scans in self.scans.items():
            pairs = join(scan.pairs for scan in scans)
            _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
            if (counts > 1).any():
                where = (
                    f"split {split!r}, first {self.locate(split, first[counts > 1])}"
                )
                found = f"{int((counts - 1).sum())} repeated pairs"
                self.note(
                    "duplicates", found, "each image and text once", where, self.again()
                )
            pictures[split] = self.pictures_of(split)
        splits = list(pictures)
        for index, split in enumerate(splits):
            for other in splits[index + 1 :]:
                shared = np.intersect1d(pictures[split], pictures[other])
                if len(shared):
                    where = self._of_pictures(other, shared)
                    found = f"{len(shared)} pictures also in {split!r}"
                    wanted = "no picture in two splits"
                    self.note("leakage", found, wanted, f"split {other!r}, {where}")

    def leakage(self, evaluation: pathlib.Path) -> None:
        """Finds pictures of an evaluation set in the dataset.

        Args:
          evaluation: Parquet file with a column image_id, or folder of a dataset.

        Raises:
          InputError: the evaluation set cannot be read.
        """
        import numpy as np

        held_out = read_held_out(evaluation)
        for split in self.scans:
            shared = np.intersect1d(self.pictures_of(split), held_out)
            if not len(shared):
                continue
            parquet = evaluation if evaluation.is_file() else "its queries.parquet"
            self.note(
                "leakage",
                f"{len(shared)} pictures of {evaluation}",
                "none",
                f"split {split!r}, {self._of_pictures(split, shared)}",
                f"set config.evaluation_images to {parquet}, then python -m data.build"
                " --config=CONFIG --workdir=NEW",
            )

    def pictures_of(self, split: str) -> Any:
        """Returns distinct hashes (N,) uint64 of a split's image ids and pictures."""
        import numpy as np

        scans = self.scans[split]
        return np.unique(join(a for scan in scans for a in (scan.ids, scan.pictures)))

    def _of_pictures(self, split: str, hashes: Any) -> str:
        import numpy as np

        scans = self.scans[split]
        hit = np.isin(join(scan.ids for scan in scans), hashes)
        hit |= np.isin(join(scan.pictures for scan in scans), hashes)
        return f"first {self.locate(split, np.flatnonzero(hit))}"

    def locate(self, split: str, indices: Any) -> str:
        """Names shard and offset of records, at most the first NAMED.

        Args:
          split: name of the split.
          indices: indices of the records among the readable records of the split.
        """
        named = []
        for index in sorted(int(index) for index in indices)[:NAMED]:
            for scan in self.scans[split]:
                if index < len(scan.offsets):
                    named.append(f"{scan.name} at {scan.offsets[index]}")
                    break
                index -= len(scan.offsets)
        return ", ".join(named)

    def counts(self) -> None:
        """Compares the manifest's totals with the numbers of pairs and images read.

        Nothing is compared if there are several splits or any finding so far.
        """
        if len(self.scans) != 1 or self.findings:
            return
        import numpy as np

        ids = join(scan.ids for scans in self.scans.values() for scan in scans)
        if self.packed and not len(ids):
            self.note("records", 0, "one or more", self.folder)
        read = {"pairs_kept": len(ids), "images_kept": len(np.unique(ids))}
        for name, found in read.items():
            wanted = (self.manifest or {}).get(name, found)
            if found != wanted:
                self.note(name, found, wanted, self.folder / "manifest.json")

    def summary(self) -> str:
        """Formats the findings, the skipped checks and the numbers of records read."""
        lines = [
            f"{number}. {f.what}\n   found   {f.found}\n   wanted  {f.wanted}\n"
            f"   where   {f.where}\n   fix     {f.fix}"
            for number, f in enumerate(self.findings, start=1)
        ]
        scans = [scan for of_split in self.scans.values() for scan in of_split]
        lines += [f"not checked: {what}" for what in self.skipped]
        lines.append(
            f"{self.folder}: {len(self.findings) or 'no'} finding"
            f"{'s' * (len(self.findings) != 1)}; splits {', '.join(self.shards)};"
            f" {len(scans)} shards, {sum(len(s.offsets) for s in scans)} records read,"
            f" {sum(s.decoded for s in scans)} pictures decoded"
        )
        return "\n".join(lines)


def join(arrays: Any) -> Any:
    """Concatenates arrays of 64-bit hashes into one array, (N,) uint64."""
    import numpy as np

    parts = [np.frombuffer(part, np.uint64) for part in arrays if part]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def read_held_out(path: pathlib.Path) -> Any:
    """Returns the hashes (N,) uint64 that identify the pictures of an evaluation set.

    Args:
      path: Parquet file, of which only the column image_id is hashed, or folder of a
        dataset, of which image ids and pictures are hashed.

    Raises:
      InputError: the path is neither a Parquet file with a column image_id nor a
        dataset whose records can all be read.
    """
    import numpy as np

    from data.doctor.records import hash_of

    if path.is_dir():
        other = Doctor(path)
        if other.metadata():
            other.read(sample=0)
        scans = [scan for of_split in other.scans.values() for scan in of_split]
        listed = sum(map(len, other.shards.values()))
        if not scans or len(scans) < listed or any(scan.damaged for scan in scans):
            command = f"python -m data.doctor {shlex.quote(str(path))}"
            raise InputError(f"{path} is damaged; run `{command}`")
        return np.unique(np.concatenate([other.pictures_of(s) for s in other.scans]))
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        ids = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"{path} ({one_line(error)[:200]}): wanted a Parquet file with a column"
            " image_id, or a dataset's folder"
        ) from error
    hashes = [hash_of(str(image_id).encode()) for image_id in ids]
    return np.array(hashes, np.uint64)


def diagnose(
    directory: pathlib.Path,
    sample: int | None = None,
    evaluations: tuple[pathlib.Path, ...] = (),
    text: str = "",
) -> list[Finding]:
    """Checks a dataset and prints the findings.

    Args:
      directory: folder of a build or of a dataset.
      sample: maximum number of pictures to decode, evenly spread; None decodes all.
      evaluations: Parquet files or datasets whose pictures the dataset must not hold.
      text: column of Parquet files with the texts, or field of the json in tars.

    Returns:
      The findings.

    Raises:
      InputError: the dataset is missing, or an evaluation set is missing or unreadable.
    """
    doctor = Doctor(directory, text)
    for path in evaluations:
        if not path.exists():
            raise InputError(f"no file or folder {path} (--evaluation)")
    if doctor.metadata():
        doctor.files()
        doctor.vocabulary()
        doctor.read(sample)
        doctor.order()
        doctor.duplicates()
        for path in evaluations:
            doctor.leakage(path)
        doctor.counts()
    print(doctor.summary())
    return doctor.findings


def main() -> int:
    """Reads the flags and checks the dataset; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.doctor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("directory", type=path_or_url, metavar="DIR")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="pictures to decode; default: all"
    )
    parser.add_argument(
        "--evaluation",
        type=local_path,
        action="append",
        default=[],
        metavar="PATH",
        help="Parquet file with a column image_id, or a dataset's folder",
    )
    parser.add_argument(
        "--text", default="", metavar="NAME", help="column or field with the texts"
    )
    flags = parser.parse_args()
    if flags.sample is not None and flags.sample < 0:
        parser.error(f"--sample is {flags.sample}; wanted 0 or more")
    findings: list[Finding] = []

    def work() -> None:
        findings.extend(
            diagnose(flags.directory, flags.sample, (*flags.evaluation,), flags.text)
        )

    code = run_command("data.doctor", work)
    return code or min(len(findings), 1)


if __name__ == "__main__":
    sys.exit(main())
