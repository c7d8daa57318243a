"""wip"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            name="quickstart",
            seed=0,
            ingest=dict(pairs="runs/quickstart_data/pairs.parquet"),
            rules=dict(languages=("en",), min_shorter_side=64, min_unigrams=1),
            evaluation_images="runs/quickstart_data/evaluation/queries.parquet",
            vocabulary_size=8000,
            shards=16,
        )
    )
