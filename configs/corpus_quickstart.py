"""The quickstart's corpus, from the raw pairs of `python -m data.quickstart`.

    make data

or

    python -m data.build --config=configs/corpus_quickstart.py \
        --workdir=runs/quickstart_corpus

Hardware: 2 CPU cores, 2 GB of memory, about 15 seconds.
Expected: 3,172 of 35,121 distinct pairs kept, of 2,121 pictures; 1,556 word pieces.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the corpus's config; rules that are not set keep the paper's bounds."""
    config = ConfigDict()
    config.name = "quickstart"
    config.seed = 0

    config.ingest = ConfigDict()
    config.ingest.kind = "parquet"
    config.ingest.path = "runs/quickstart_data/pairs.parquet"

    config.rules = ConfigDict()
    config.rules.languages = ("en",)  # the paper's main corpus is English too
    config.rules.min_shorter_side = 64  # pixels; Twemoji has 72, the paper wants 200
    config.rules.min_unigrams = 1  # half of all names are one word
    # The default budget of 100 million n-grams keeps every text. A lower one would drop
    # most of them, because nearly every name is rare in a corpus this small.

    config.evaluation_images = "runs/quickstart_data/evaluation/queries.parquet"
    config.pictures = ConfigDict()
    # Many emoji differ in a detail only, as clock faces do, so pictures that are near
    # an evaluation picture are kept.
    config.pictures.max_hash_distance = -1
    config.pictures.embedding_model = ""  # a trained run, to compare embeddings too
    config.pictures.max_cosine = 0.975  # the paper's; see docs/corpus.md for others

    config.embeddings = ConfigDict()
    config.embeddings.model = ""  # a trained run, to score pairs; docs/corpus.md
    config.embeddings.score_fraction = 0.0  # share of pairs to keep; 0 keeps all

    config.vocabulary_size = 4096
    config.shards = 16  # two for each of the eight streams
    return config
