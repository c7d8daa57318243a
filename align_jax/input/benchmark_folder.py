"""Reads evaluation sets in CLIP_benchmark's WebDataset layout, where they lie.

    SET/classnames.txt                            a class a line; line number = label
    SET/zeroshot_classification_templates.txt     a template a line, {c} is the class
    SET/dataset_type.txt                          a type of set; absent: classification
    SET/test/nshards.txt                          number N of tars
    SET/test/0.tar ... N-1.tar                    samples, each a picture and a label

The folder is local, in a bucket, or in the cache of Hugging Face, see `hub_cache`.
The members of a sample are a picture and `cls` (a class number), `npy` (an array) or
`txt` (captions, one a line).
"""

import io
import os
import string
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from align_jax import places, shard_files, tar_index
from align_jax.errors import InputError, check_count, one_line
from align_jax.input.formats.webdataset import SampleReader
from align_jax.input.hub_cache import find_snapshot
from align_jax.texts import check_text

PICTURES = ("webp", "png", "jpg", "jpeg")
CLASSIFICATION, MULTILABEL, RETRIEVAL = "classification", "multilabel", "retrieval"
CLASSES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
LARGEST = 2**53  # whole number up to which float64 has all
DIGITS = 6  # of the number of tars, at most


def read_type(directory: str) -> str:
    """Returns the type in dataset_type.txt; "classification" without the file."""
    path = os.path.join(find_snapshot(directory), "dataset_type.txt")
    if not places.exists(path):
        return CLASSIFICATION
    return _read_text(path).strip().lower()


def read_lines(directory: str, name: str) -> list[str]:
    """Reads the stripped lines of a text file of a set, without empty ones at the end.

    Raises:
      InputError: the file is missing, not UTF-8, or empty, or a line is.
    """
    path = os.path.join(find_snapshot(directory), name)
    lines = [line.strip() for line in _read_text(path).rstrip().splitlines()]
    if not all(lines):
        raise InputError(f"line {1 + lines.index('')} of {path} is empty")
    if not lines:
        raise InputError(f"{path} is empty")
    return lines


def read_templates(directory: str) -> list[str]:
    """Reads the templates of a set, each a sentence with {0} for the class.

    Raises:
      InputError: an error of `read_lines`, or a line without {c} or with other braces.
    """
    lines = read_lines(directory, TEMPLATES_FILE)
    for line in lines:
        try:
            parts = [part[1:] for part in string.Formatter().parse(line)]
        except ValueError:  # a brace without its partner
            parts = []
        if {part for part in parts if part[0] is not None} != {("c", "", None)}:
            raise InputError(
                f"{os.path.join(directory, TEMPLATES_FILE)} has the template {line!r};"
                " wanted a sentence with {c} and no other brace"
            )
    return [line.replace("{c}", "{0}") for line in lines]


def whole_numbers(array: np.ndarray, where: str) -> np.ndarray:
    """Returns an array of numbers as int64.

    Args:
      array: numbers of any type.
      where: sample of the array, for the message.

    Raises:
      InputError: one is not whole, not finite, or so large that float64 rounds it.
    """
    numbers = array.astype(np.float64)
    numbers = np.where(np.isfinite(numbers), numbers, 0.5)
    if ((numbers % 1 != 0) | (np.abs(numbers) > LARGEST)).any():
        raise InputError(
            f"{where} has {array.tolist()} in its npy; wanted whole numbers"
        )
    return numbers.astype(np.int64)


class BenchmarkFolder:
    """The samples of a split, in the order of the tars.

    Attributes:
      count: number of samples.
      members: endings of the members that every sample has, and of those that some
        have.
    """

    def __init__(self, directory: str, split: str, expected: int = 0) -> None:
        """Reads the headers of all tars, or their index by `data.index` if it is new.

        Args:
          directory: path or URL of the set's folder.
          split: name of the folder with the tars, such as "test".
          expected: number of samples that the split must have; 0 for any number.

        Raises:
          InputError: a file is missing or damaged, there are other tars than
            nshards.txt says, the split is empty, or its size is not the expected one.
        """
        self._split = os.path.join(find_snapshot(directory), split)
        self._paths = _list_tars(self._split)
        indices = shard_files.for_each(_make_scan(self._split), self._paths)
        self._indices = dict(zip(self._paths, indices, strict=True))
        self.count = sum(len(index.offsets) for index in indices)
        self.members = {ending for index in indices for ending in index.endings}
        check_count(self._split, self.count, expected, "samples")

    def require(self, *endings: str) -> None:
        """Checks that every sample has a picture and other members.

        Args:
          *endings: endings of the other members.

        Raises:
          InputError: a sample lacks one; the message has its number in its tar, from 0.
        """
        for path, index in self._indices.items():
            for names in (PICTURES, *((ending,) for ending in endings)):
                columns = [i for i, e in enumerate(index.endings) if e in names]
                has = (index.offsets[:, columns] != tar_index.ABSENT).any(1)
                if not has.all():
                    raise InputError(
                        f"sample {int(has.argmin())} of {path} has no member"
                        f" {' or '.join(names)}"
                    )

    def read(
        self, *endings: str, first: int = 0, last: int | None = None
    ) -> Iterator[list[bytes]]:
        """Yields the picture of each sample and its members, b"" for an absent one.

        Args:
          *endings: endings of the members.
          first: number of the first sample.
          last: number after the last sample; None for all from `first` on.
        """
        reader = SampleReader("", PICTURES, [(e,) for e in endings], labelled=False)
        last, start = self.count if last is None else last, 0
        for path, index in self._indices.items():
            end = start + len(index.offsets)
            rows = slice(max(first, start) - start, min(last, end) - start)
            if rows.start < rows.stop:
                yield from reader.contents(path, index, rows)
            start = end

    def name(self, number: int) -> str:
        """Returns the place of a sample for messages, as "sample 3 of DIR/1.tar"."""
        for path, index in self._indices.items():
            if number < len(index.offsets):
                return f"sample {number} of {path}"
            number -= len(index.offsets)
        raise IndexError(number)

    def arrays(self, *endings: str) -> Iterator[tuple[bytes, list[np.ndarray]]]:
        """Yields each sample's picture and the arrays of its `npy` or `cls`.

        Raises:
          InputError: a member holds something else; the message names the sample.
        """
        for number, (picture, *members) in enumerate(self.read(*endings)):
            pairs = zip(endings, members, strict=True)
            yield picture, [self._parse(number, *pair) for pair in pairs]

    def _parse(self, number: int, ending: str, content: bytes) -> np.ndarray:
        """Returns the array in a member `npy`, or the whole number () in `cls`."""
        try:
            if ending == "cls":
                return np.array(int(content), np.int64)
            found = np.load(io.BytesIO(content), allow_pickle=False)
            if isinstance(found, np.ndarray) and found.dtype.kind in "biuf":
                return found
            reason = "wanted an array of numbers"
        except Exception as error:  # of int and NumPy
            reason = one_line(error)
        raise InputError(f"{self.name(number)} has a broken {ending}: {reason}")


class BenchmarkPictures:
    """Pairs (encoded picture, label) of a set of type "classification".

    Attributes:
      count: number of samples.
      names: class names by label.
      metadata: arrays of the member `npy` of each picture of the newest iteration;
        empty if the set has no `npy`.
    """

    def __init__(self, directory: str, split: str, expected: int = 0) -> None:
        """Opens a split; the arguments are those of `BenchmarkFolder`.

        Raises:
          InputError: an error of `BenchmarkFolder`, or a sample without a picture or
            a label.
        """
        self.names = read_lines(directory, CLASSES_FILE)
        self.metadata: list[np.ndarray] = []
        self._directory = directory
        self._folder = BenchmarkFolder(directory, split, expected)
        self._members = ("cls", "npy") if "npy" in self._folder.members else ("cls",)
        self._folder.require(*self._members)
        self.count = self._folder.count

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yields the pairs; raises InputError for a label that is no class."""
        self.metadata = []
        arrays = self._folder.arrays(*self._members)
        for number, (picture, (label, *beside)) in enumerate(arrays):
            if not 0 <= label < len(self.names):
                raise InputError(
                    f"{self._folder.name(number)} has the label {label};"
                    f" {self._directory} has {len(self.names)} classes"
                )
            self.metadata += beside
            yield picture, int(label)

    def check_column(self, column: int, name: str) -> None:
        """Raises InputError if the set has no `npy`; the arguments are `column`'s."""
        if "npy" not in self._members:
            raise InputError(
                f"{self._directory} has no npy members; wanted number {column} for"
                f" {name}"
            )

    def column(self, column: int, name: str) -> np.ndarray:
        """Returns a column of the newest iteration's `metadata`, int64 (N,).

        Args:
          column: number of the column, from 0.
          name: name of the column, for messages.

        Raises:
          InputError: the set has no `npy`, or a picture has no whole number there.
        """
        self.check_column(column, name)
        wanted = f"wanted number {column} for {name}"
        found = []
        for number, array in enumerate(self.metadata):
            where, row = self._folder.name(number), np.atleast_1d(array)
            if row.ndim > 1 or len(row) <= column:
                raise InputError(f"{where} has an npy of shape {array.shape}; {wanted}")
            found.append(whole_numbers(row[column], where))
        return np.array(found)

    def some(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Reads some pictures by their numbers; returns the encoded picture of each."""
        found = {}
        for index in sorted({*map(int, indices)}):
            ((found[index],),) = self._folder.read(first=index, last=index + 1)
        return found


def read_captions(
    directory: str, split: str, expected: int = 0
) -> list[tuple[bytes, list[str]]]:
    """Reads the pictures of a set of type "retrieval", each with its captions.

    Raises:
      InputError: an error of `BenchmarkFolder`, or a sample has no picture, no caption
        or one that is not UTF-8.
    """
    folder, found = BenchmarkFolder(directory, split, expected), []
    folder.require("txt")
    for number, (picture, content) in enumerate(folder.read("txt")):
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{folder.name(number)}: {one_line(error)}") from error
        texts = [line for line in lines if line.strip()]
        if not texts:
            raise InputError(f"{folder.name(number)} has no caption in its txt")
        for text in texts:
            check_text(text, folder.name(number))
        found.append((picture, texts))
    return found


def _read_text(path: str) -> str:
    """Reads a text file without the byte order mark at its beginning."""
    return places.read_text(path).removeprefix("\ufeff")


def _list_tars(split: str) -> list[str]:
    """Lists the tars that nshards.txt counts; InputError if the folder has others."""
    path = os.path.join(split, "nshards.txt")
    content = _read_text(path).strip()
    is_number = content.isascii() and content.isdecimal() and len(content) <= DIGITS
    if not is_number or not int(content):
        raise InputError(f"{path} holds {content[:80]!r}; wanted a number of tars")
    wanted = [f"{number}.tar" for number in range(int(content))]
    found = [
        name
        for name in places.list_names(split)
        if name.endswith(".tar") and not name.startswith("._")  # which macOS adds
    ]
    if missing := [name for name in wanted if name not in found]:
        raise InputError(f"{path} counts {content} tars; {split} lacks {missing[0]}")
    if surplus := [name for name in found if name not in wanted]:
        raise InputError(f"{path} counts {content} tars; {split} has {surplus[0]}, too")
    return [os.path.join(split, name) for name in wanted]


def _make_scan(split: str) -> Callable[[str], tar_index.TarIndex]:
    """Returns the function that reads the index of a tar, or else its headers.

    It raises InputError for a tar that is damaged.
    """
    entries = tar_index.read_entries(split)

    def scan(path: str) -> tar_index.TarIndex:
        entry = entries.get(os.path.basename(path), {})
        if tar_index.is_current(entry, tar_index.shard_state(path)):
            index, fault = tar_index.read_index(split, path), entry["fault"]
        else:
            index = tar_index.scan_tar(path)
            fault = index.fault
        if fault:
            raise InputError(f"{path} is damaged: {fault}")
        return index

    return scan
