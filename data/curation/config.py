"""The config of a curation: a pool's metadata, and the filters to apply to it."""

import dataclasses
import re
from typing import Annotated

from align_jax.config import choose
from align_jax.errors import InputError
from align_jax.ranges import Count, Natural, ProperShare, Range, Seed
from data.corpus.config import EngineConfig
from data.curation.languages import LANGUAGE_MODELS

Ratio = Annotated[float, Range(least=0)]


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """A pool: Parquet files of metadata, and columns that belong to its rows.

    The columns that filters name are numbers of a row. Each is taken from the pool's
    files if they have it, else from `columns`, by the uid.

    Attributes:
      path: file, folder or glob of Parquet files, a row a pair.
      columns: file, folder or glob of Parquet files with further columns: `uid_column`,
        each uid at most once in all files, and numbers. Rows without a match get nulls.
      embeddings: folder of the pictures' embeddings: for NAME.parquet of the pool a
        file NAME.npz, or a NAME.parquet, with the same rows in the same order. Empty
        for the pool's folder.
      embedding: name of the array, or of the column of lists, in these files.
      uid_column: column of the rows' names, of 32 hexadecimal digits.
      text_column: column of the texts.
      width_column: column of the pictures' widths in pixels.
      height_column: column of the pictures' heights in pixels.
    """

    path: str
    columns: str = ""
    embeddings: str = ""
    embedding: str = "l14_img"
    uid_column: str = "uid"
    text_column: str = "text"
    width_column: str = "original_width"
    height_column: str = "original_height"

    def __post_init__(self) -> None:
        """Raises InputError if the path is empty."""
        if not self.path:
            raise InputError("config.pool.path is empty; wanted Parquet files")


@dataclasses.dataclass(frozen=True)
class FilterBounds:
    """The rules of one filter; a default turns a rule off.

    Attributes:
      languages: languages to keep, as `config.language` names them.
      min_words: minimum number of words between white space.
      min_tokens: minimum number of words as fastText counts them: between ASCII white
        space, and each end of a line counts as one.
      min_characters: minimum number of characters.
      min_shorter_side: minimum of a picture's shorter side in pixels.
      max_aspect_ratio: maximum of longer side / shorter side; 0 is off.
      score: column of the scores that one of the next two fields bounds.
      min_score: minimum score; None is off.
      score_fraction: share f of the pool; keeps the scores that are at least the one at
        index int(N f) of all N rows in falling order, counted from 0; 0 is off.
      text_entities: whether a word of the text must be in `config.entities`.
      subset: subset file that must have the uid.
      image_clusters: whether the picture's cluster must be one of the target's, see
        `config.clusters`.
    """

    languages: tuple[str, ...] = ()
    min_words: Natural = 0
    min_tokens: Natural = 0
    min_characters: Natural = 0
    min_shorter_side: Natural = 0
    max_aspect_ratio: Ratio = 0.0
    score: str = ""
    min_score: float | None = None
    score_fraction: ProperShare = 0.0
    text_entities: bool = False
    subset: str = ""
    image_clusters: bool = False

    def __post_init__(self) -> None:
        """Raises InputError if the score and its bound do not fit each other."""
        bounds = (self.min_score is not None) + bool(self.score_fraction)
        if bounds != bool(self.score):
            raise InputError(
                f"a filter has score={self.score!r}, min_score={self.min_score},"
                f" score_fraction={self.score_fraction}; wanted a column and one of the"
                " two bounds, or none of the three"
            )


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The language of a text.

    Attributes:
      kind: a name in `data.curation.languages.LANGUAGE_MODELS`, or "column"; empty if
        no filter asks for languages.
      model: path of the model's file, such as fastText's lid.176.bin.
      column: column of the pool with the languages, for the kind "column".
    """

    kind: str = ""
    model: str = ""
    column: str = "language"

    def __post_init__(self) -> None:
        """Raises InputError if the kind is unknown."""
        known = {"": None, "column": None, **LANGUAGE_MODELS}
        choose(known, self.kind, "config.language.kind")


@dataclasses.dataclass(frozen=True)
class EntitiesConfig:
    """The words that the rule `text_entities` looks for in the words of a text.

    Attributes:
      words: file of words, one a line; a text's word must equal one of them.
      wordnet: folder of WordNet's database, with `index.noun`, `noun.exc` and so on.
      synsets: file of noun synsets, one a line, as "n02084071"; the first synset of a
        text's word must have the number of one of them. Used with `wordnet`.
    """

    words: str = ""
    wordnet: str = ""
    synsets: str = ""

    def __post_init__(self) -> None:
        """Raises InputError if the fields do not fit each other."""
        if bool(self.wordnet) != bool(self.synsets) or (self.words and self.wordnet):
            raise InputError(
                "config.entities wants the field words alone, or wordnet and synsets"
            )


@dataclasses.dataclass(frozen=True)
class ClustersConfig:
    """Clusters of the pool's embeddings, and the target set.

    Attributes:
      target: NumPy file (N, D) of the target set's embeddings; the clusters nearest to
        them are kept. Empty if no filter asks for clusters.
      centroids: NumPy file (K, D) of centroids; empty to fit them by k-means.
      count: number K of centroids to fit.
      sample: rules that a row must keep so that k-means uses it; no rule of clusters.
      max_sample: maximum number of rows that k-means uses, chosen by a hash of the uid.
        Each takes 4 bytes of memory times D.
      iterations: number of k-means iterations.
    """

    target: str = ""
    centroids: str = ""
    count: Count = 100_000
    sample: FilterBounds = FilterBounds()
    max_sample: Count = 500_000
    iterations: Count = 20

    def __post_init__(self) -> None:
        """Raises InputError if the sample is to be chosen by clusters."""
        if self.sample.image_clusters:
            raise InputError(
                "config.clusters.sample.image_clusters is True, but the sample is"
                " chosen before there are clusters; wanted False"
            )


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """The whole config of a curation.

    Attributes:
      name: name for the report.
      seed: seed of the sample and of k-means, and of the report's examples.
      pool: metadata to filter.
      filters: rules of each filter, by its name; each gives one subset of the pool.
      language: model or column of the texts' languages.
      entities: words that texts must have.
      clusters: clusters of the pictures' embeddings.
      engine: settings of the engine.
    """

    name: str
    seed: Seed
    pool: PoolConfig
    filters: dict[str, FilterBounds]
    language: LanguageConfig = LanguageConfig()
    entities: EntitiesConfig = EntitiesConfig()
    clusters: ClustersConfig = ClustersConfig()
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Raises InputError if a filter needs something that is not configured."""
        if not self.filters:
            raise InputError("config.filters is empty; wanted at least one filter")
        for name in self.filters:
            if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) or name == "stages":
                raise InputError(
                    f"config.filters has the name {name!r}; wanted letters, digits, _"
                    " and -, a letter first, and not 'stages'"
                )
        for name, bounds in self.bounds.items():
            self._check(bounds, name_filter(name))

    @property
    def bounds(self) -> dict[str, FilterBounds]:
        """The rules of each filter, and of the sample of k-means, as "", if used."""
        sample = {"": self.clusters.sample} if self.fits_clusters else {}
        return {**self.filters, **sample}

    @property
    def fits_clusters(self) -> bool:
        """Whether k-means is needed."""
        asked = any(bounds.image_clusters for bounds in self.filters.values())
        return asked and not self.clusters.centroids

    def _check(self, bounds: FilterBounds, where: str) -> None:
        entities = self.entities.words or self.entities.wordnet
        for asked, given, field in (
            (bounds.languages, self.language.kind, "config.language.kind"),
            (bounds.text_entities, entities, "config.entities"),
            (bounds.image_clusters, self.clusters.target, "config.clusters.target"),
        ):
            if asked and not given:
                raise InputError(f"{where} needs {field}, which is empty")


def name_filter(name: str) -> str:
    """Returns the config field of a filter's rules; "" is the sample of k-means."""
    return f"config.filters.{name}" if name else "config.clusters.sample"
