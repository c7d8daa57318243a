"""A corpus with the concept balance of MetaCLIP (arXiv 2309.16671).

    python -m data.build --config=configs/corpus_metaclip.py \
        --workdir=runs/metaclip_corpus --config.ingest.path=downloaded \
        --config.balance.entries=metadata.json

Data: the output of img2dataset for a crawl, and the list of 500,000 entries that
https://github.com/facebookresearch/MetaCLIP publishes under its license, the file
metaclip/metaclip1/metadata.json. MetaCLIP balances after it has dropped repeated and
pornographic pictures and texts in other languages, and has none of ALIGN's other rules.

Hardware: a Spark cluster for the published 400 million pairs, 2 CPU cores for millions.
Expected: docs/corpus.md has the time of the balance; no corpus was built by this file.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config, without the rules of ALIGN on sizes, counts and lengths."""
    config = ConfigDict()
    config.name = "metaclip"
    config.seed = 0

    config.ingest = ConfigDict()
    config.ingest.kind = "img2dataset"
    config.ingest.path = "runs/metaclip_data"

    config.rules = ConfigDict()
    config.rules.languages = ("en",)
    config.rules.min_shorter_side = 0  # pixels
    config.rules.max_aspect_ratio = 65_535
    config.rules.max_texts_per_image = 2**31 - 1
    config.rules.max_images_per_text = 2**31 - 1
    config.rules.frequent_ngrams = 2**31 - 1
    config.rules.min_unigrams = 0
    config.rules.max_unigrams = 2**31 - 1

    config.pictures = ConfigDict()
    config.pictures.nsfw_model = "open_nsfw"

    config.balance = ConfigDict()
    config.balance.entries = "runs/metaclip_data/metadata.json"
    config.balance.pairs_per_entry = (
        20_000  # the published t; 170,000 in its larger corpora
    )
    config.balance.tail_share = 0.0  # a share in place of 20,000, as in 0.06

    config.vocabulary_size = 100_000
    return config
