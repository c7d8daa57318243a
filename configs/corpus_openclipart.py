"""The corpus of a real, noisy crawl: Open Clip Art, public domain, packaged by Debian.

    apt-get install openclipart-png openclipart-svg
    python -m data.clipart --out=runs/openclipart_data
    python -m data.build --config=configs/corpus_openclipart.py \
        --workdir=runs/openclipart_corpus

Hardware: 2 CPU cores, 2 GB of memory, about 2 minutes. docs/corpus.md shows the result.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the corpus's config; rules that are not set keep the paper's bounds."""
    config = ConfigDict()
    config.name = "openclipart"
    config.seed = 0

    config.ingest = ConfigDict()
    config.ingest.kind = "parquet"
    config.ingest.path = "runs/openclipart_data/pairs/*.parquet"

    config.rules = ConfigDict()
    config.rules.languages = ()  # few drawings state the language of their texts
    config.rules.frequent_ngrams = 5_000  # the paper's 100 million would keep all texts

    config.vocabulary_size = 4096
    config.max_image_side = 512  # pixels; some drawings are 10,000 wide
    config.shard_megabytes = 20  # a corpus of the paper's size needs 150
    return config
