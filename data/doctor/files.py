"""The doctor's checks of a dataset's files: manifest, metadata, shards, vocabulary."""

import collections
import dataclasses
import hashlib
import pathlib
import shlex
from typing import Any

from align_jax import dataset_folder, places, tar_index
from align_jax.errors import InputError, one_line
from data.corpus.sentence_pieces import SETTINGS, SETTINGS_FILE, count_pieces
from data.records.formats import RECORD_FORMATS

NAMED = 3  # examples that a finding gives
SHOWN = 200  # characters of an error
# Endings of the files of formats without TFDS's metadata.
PACKED = {
    "webdataset": (".tar",),
    "parquet": (".parquet",),
    "array_record": (".array_record", ".arrayrecord"),
}
WANTED_TOKENS = ("[UNK]", "[CLS]", "[SEP]")  # at any position; [PAD] is token 0


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault of a dataset.

    The fields are the fault's name, the value or state that was found, the one that was
    wanted, the file (perhaps with the record), and the command or advice to repair it.
    """

    what: str
    found: str
    wanted: str
    where: str
    fix: str


class FileChecks:
    """Checks a dataset without opening its records; collects `Finding` objects."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Raises InputError if `directory` holds no dataset and no build."""
        inner = directory / "records"
        build = inner if places.is_file(directory / "config.json") else directory
        self.folder = inner if places.is_folder(inner) else build
        self.findings: list[Finding] = []
        self.skipped: list[str] = []
        self.shards: dict[str, dict[str, int]] = {}  # split -> shard -> records
        self.file_format = "tfrecord"
        self.packed = ""  # format of files without metadata, a key of PACKED
        self.manifest = self._manifest()
        if not (
            build is inner
            or self.manifest is not None
            or places.exists(self.folder / "dataset_info.json")
        ):
            self.packed = self._find_packed()

    def _find_packed(self) -> str:
        """Returns the format of the folder's files; InputError if it has none."""
        there = places.is_folder(self.folder)
        names = places.list_names(self.folder) if there else []
        for name, endings in PACKED.items():
            if any(file.endswith(endings) for file in names):
                return name
        raise InputError(
            f"no dataset in {self.folder}; wanted a folder with dataset_info.json, with"
            f" files {', '.join(e for of in PACKED.values() for e in of)}, or a build's"
            " with records/"
        )

    def note(
        self, what: str, found: Any, wanted: Any, where: Any, fix: str = ""
    ) -> None:
        """Adds a finding; the default command to repair it is that of `rewrite`."""
        finding = Finding(what, str(found), str(wanted), str(where), fix)
        if not fix:
            finding = dataclasses.replace(finding, fix=self.rewrite())
        self.findings.append(finding)

    def rewrite(self) -> str:
        """Returns the command, or advice, to write the dataset again from sources."""
        if self.packed:
            return (
                "download the file again, or train with the rest: such pairs are"
                " replaced up to input.max_replaced"
            )
        folder, parent = shlex.quote(str(self.folder)), self.folder.parent
        workdir = shlex.quote(str(parent))
        if self.folder.name == "records" and places.exists(parent / "config.json"):
            return (
                f"rm -rf {folder} {shlex.quote(str(parent / 'report.json'))} && python"
                f" -m data.build --config=CONFIG --workdir={workdir} (CONFIG: the file"
                " that built it)"
            )
        if isinstance(self.manifest, dict) and "sources" in self.manifest:
            name = self.manifest.get("name", "NAME")
            return (
                f"rm -rf {folder} && python -m data.eval_sets {name}"
                f" --source SOURCE --out {folder} (SOURCE: the downloads)"
            )
        if self.folder.name == "evaluation" and places.exists(parent / "pairs.parquet"):
            return f"rm -rf {folder} && python -m data.quickstart --out={workdir}"
        return f"rm -rf {folder}, then the command that wrote it, or copy it again"

    def again(self) -> str:
        """Returns the command, or advice, to repair faulty contents of records.

        If the shards are as a build wrote them, the build's stages are faulty, and the
        build must be repeated in a new folder. Otherwise the result is `rewrite()`.
        """
        changed = any("shard" in finding.what for finding in self.findings)
        is_build = "data.build" in self.rewrite()
        if changed or not is_build or not (self.manifest or {}).get("shards"):
            return self.rewrite()
        return (
            "the files are as the build wrote them, so its stages are at fault: python"
            " -m data.build --config=CONFIG --workdir=NEW"
        )

    def _manifest(self) -> dict[str, Any] | None:
        """Returns the manifest, or None if it is missing.

        For a damaged manifest, the result is {} and a finding is added.
        """
        path = self.folder / dataset_folder.MANIFEST
        if not places.exists(path):
            return None
        try:
            return dataset_folder.read_manifest(self.folder)
        except dataset_folder.DamagedFileError as error:
            self.manifest = {}
            self.note(path.name, error.reason, "a manifest", path)
            return {}

    def metadata(self) -> bool:
        """Opens the dataset with TFDS and compares dataset_info.json with the manifest.

        Returns:
          Whether other checks are possible: False if TFDS cannot open the dataset.
        """
        if self.packed:
            self._list_packed()
            return True
        info_path = self.folder / "dataset_info.json"
        if not places.exists(info_path):
            self.note("dataset_info.json", "no such file", "the dataset's", info_path)
            return False
        try:
            info = dataset_folder.open_folder(self.folder).info
        except dataset_folder.DamagedFileError as error:
            wanted = "what tfds.builder_from_directory opens"
            name = pathlib.Path(error.path).name
            self.note(name, error.reason, wanted, error.path)
            return False
        if info.file_format is not None:
            self.file_format = info.file_format.value
        for split, of_split in info.splits.items():
            by_path = dataset_folder.records_by_shard(of_split)
            self.shards[split] = {pathlib.Path(p).name: n for p, n in by_path.items()}
        listed = (self.manifest or {}).get("shards")
        if listed is None:
            self.skipped.append("hashes of shards (no manifest.json that lists them)")
            if (
                places.exists(self.folder.parent / "config.json")
                and self.manifest is None
            ):
                if self.folder.name == "records":
                    where = self.folder / "manifest.json"
                    self.note("manifest.json", "no such file", "the build's", where)
            return True
        of_manifest = {shard["name"]: shard["records"] for shard in listed}
        of_info = {n: c for shards in self.shards.values() for n, c in shards.items()}
        for name in sorted({*of_manifest, *of_info}):
            records, promised = of_info.get(name), of_manifest.get(name)
            if records != promised:
                self.note(
                    "dataset_info.json",
                    _count(records),
                    f"{_count(promised)} (manifest)",
                    f"{name} of {info_path}",
                )
        return True

    def _list_packed(self) -> None:
        """Lists files without metadata; compares the index of tars with the tars."""
        from data.doctor.packed import count_records

        self.file_format = self.packed
        paths = [
            self.folder / name
            for name in places.list_names(self.folder)
            if name.endswith(PACKED[self.packed])
        ]
        for path in paths:
            if not places.is_file(path):
                self.note("files", "no file", "a file of this name", path)
        counts = {path.name: count_records(self.packed, path) for path in paths}
        self.shards["all"] = counts
        if self.packed != "webdataset":
            return
        command = f"python -m data.index {shlex.quote(str(self.folder))}"
        entries = tar_index.read_entries(str(self.folder))
        if not entries:
            self.skipped.append(f"index (none beside the tars; `{command}` writes it)")
        for path in paths if entries else []:
            entry, state = entries.get(path.name), tar_index.shard_state(str(path))
            if not tar_index.is_current(entry, state):
                found = "older or none"
                self.note(
                    "index", found, "one of the tar's size and time", path, command
                )

    def files(self) -> None:
        """Finds missing and additional shards, and changed ones by the manifest."""
        if self.packed:
            return
        expected = {n for shards in self.shards.values() for n in shards}
        listed = {s["name"]: s for s in (self.manifest or {}).get("shards", [])}
        present = {
            name
            for name in places.list_names(self.folder)
            if any(f".{kind}-" in name for kind in RECORD_FORMATS)
        }
        for name in sorted({*expected, *listed} - present):
            self.note("missing shard", "no such file", name, self.folder / name)
        for name in sorted(present - expected - {*listed}):
            path = self.folder / name
            self.note(
                "additional shard",
                f"{places.size(path)} bytes",
                "no such file",
                path,
                f"rm {shlex.quote(str(path))}",
            )
        for name in sorted({*listed} & present):
            path, shard = self.folder / name, listed[name]
            size = places.size(path) or 0
            if size != shard["bytes"]:
                what = "shard cut short" if size < shard["bytes"] else "shard too long"
                self.note(what, f"{size} bytes", f"{shard['bytes']} bytes", path)
                continue
            hashed = hashlib.sha256()
            with places.opening(path) as file:
                for chunk in iter(lambda: file.read(2**20), b""):
                    hashed.update(chunk)
            if (digest := hashed.hexdigest()) != shard["sha256"]:
                self.note("changed shard", f"sha256 {digest}", shard["sha256"], path)

    def vocabulary(self) -> None:
        """Checks the vocabulary against the manifest and the needs of a tokenizer."""
        manifest = self.manifest or {}
        path = self.folder / str(manifest.get("vocabulary_file", "vocabulary.txt"))
        if not places.exists(path):
            if "vocabulary_sha256" in manifest:
                self.note("vocabulary", "no such file", "the corpus's", path)
            return
        content = places.read_bytes(path)
        digest = hashlib.sha256(content).hexdigest()
        if manifest.get("vocabulary_sha256", digest) != digest:
            wanted = manifest["vocabulary_sha256"]
            self.note("vocabulary", f"sha256 {digest}", wanted, path)
        if path.suffix == ".model":
            self._sentence_pieces(path, content)
            return
        tokens = content.decode(errors="replace").removesuffix("\n").split("\n")
        size = manifest.get("vocabulary_size", len(tokens))
        if size != len(tokens):
            self.note("vocabulary", f"{len(tokens)} tokens", size, path)
        if tokens[0] != "[PAD]":
            self.note("vocabulary", f"token 0 is {tokens[0]!r}", "[PAD]", path)
        missing = [token for token in WANTED_TOKENS if token not in tokens]
        if missing:
            self.note("vocabulary", f"no {', '.join(missing)}", "one of each", path)
        twice = [t for t, n in collections.Counter(tokens).items() if n > 1]
        if twice:
            found = f"{len(twice)} tokens twice or more: {twice[:NAMED]}"
            self.note("vocabulary", found, "each token once", path)

    def _sentence_pieces(self, path: pathlib.Path, content: bytes) -> None:
        """Checks a model of SentencePiece, and the settings beside it."""
        try:
            found = count_pieces(content)
        except RuntimeError as error:
            what = one_line(error)[:SHOWN]
            self.note("vocabulary", what, "a model of SentencePiece", path)
            return
        size = (self.manifest or {}).get("vocabulary_size", found)
        if size != found:
            self.note("vocabulary", f"{found} tokens", size, path)
        beside = path.with_name(SETTINGS_FILE)
        settings = places.read_object(beside) if places.exists(beside) else {}
        if settings != SETTINGS:
            self.note("vocabulary", settings, SETTINGS, beside)


def _count(records: int | None) -> str:
    return "not listed" if records is None else f"{records} records"
