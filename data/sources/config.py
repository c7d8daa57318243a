"""The config of a source of raw pairs, from the literal fields of a config file."""

import dataclasses
from collections.abc import Sequence

from align_jax.errors import InputError
from align_jax.ranges import Count


@dataclasses.dataclass(frozen=True)
class TableColumns:
    """Names of a table's columns; an empty name means no column."""

    image: str = "image"
    url: str = "url"
    text: str = "alt_text"
    language: str = "language"

    def among(self, found: Sequence[str], where: str) -> "TableColumns":
        """Returns the columns that a table has; a missing one gets an empty name.

        Args:
          found: column names of the table.
          where: name of the table, for messages.

        Raises:
          InputError: the text column, both picture columns, or a column whose name is
            not the default are missing, or one of them occurs twice.
        """
        missing = []
        for field in dataclasses.fields(self):
            name = getattr(self, field.name)
            asked = field.name == "text" or name not in ("", field.default)
            if asked and name not in found:
                missing.append(name)
        if missing:
            raise InputError(f"{where} lacks the columns {missing}; it has {[*found]}")
        twice = sorted({n for n in dataclasses.astuple(self) if found.count(n) > 1})
        if twice:
            raise InputError(f"{where} has the columns {twice} more than once")
        present = TableColumns(
            image=self.image if self.image in found else "",
            url=self.url if self.url in found else "",
            text=self.text,
            language=self.language if self.language in found else "",
        )
        if not present.image and not present.url:
            raise InputError(
                f"{where} has neither {self.image!r} nor {self.url!r}, so no pictures;"
                f" it has {[*found]}"
            )
        return present


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of raw pairs.

    Attributes:
      kind: a name in `data.sources.source.SOURCES`.
      path: file, folder or glob; for TFDS the folder of a prepared dataset's version,
        or the name of a dataset in `data_dir`.
      image_column: column of a table with the picture files' bytes, or their paths
        relative to the table's folder; field of a JSON line with the path; feature
        of TFDS. A source of kind "folder" reads "path" instead of the default. In a
        table, the column may be missing if there is a column of URLs.
      url_column: column of a table, field of a JSON line, or feature of TFDS, with the
        pictures' addresses. A .json in a tar, and img2dataset, always have them in
        "url".
      text_column: column of a table, field of a .json in a tar or of a JSON line, or
        feature of TFDS, as in "captions/text". HTML pages have no columns; their text
        is `alt`.
      language_column: column of a table, field of a .json in a tar or of a JSON line,
        or feature of TFDS.
      language: language of pairs whose source gives none.
      split: split of a TFDS dataset.
      data_dir: folder of TFDS datasets, if `path` is a name; empty for TFDS's default.
      encoding: encoding of CSV and TSV files.
      header: column names of CSV and TSV files without a header line, as in
        ("alt_text", "url"); empty if the first line holds them.
      subset: subset file of DataComp; only pairs whose `uid` it has are read. The uid
        is a column of Parquet files, a field of a .json in a tar, or a column that
        img2dataset copied. Empty reads all pairs.
      base_url: URL under which a folder of HTML pages was served; empty if unknown.
      max_characters: number of characters after which a raw text is cut.
    """

    kind: str
    path: str
    image_column: str = "image"
    url_column: str = "url"
    text_column: str = "alt_text"
    language_column: str = "language"
    language: str = ""
    split: str = "train"
    data_dir: str = ""
    encoding: str = "utf-8"
    base_url: str = ""
    max_characters: Count = 10_000
    header: tuple[str, ...] = ()
    subset: str = ""

    def __post_init__(self) -> None:
        """Raises InputError if the path is empty."""
        if not self.path:
            raise InputError(f"the path of a {self.kind} source is empty")

    @property
    def columns(self) -> TableColumns:
        """The names of a table's columns."""
        return TableColumns(
            image=self.image_column,
            url=self.url_column,
            text=self.text_column,
            language=self.language_column,
        )
