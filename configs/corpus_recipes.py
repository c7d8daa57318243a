"""The corpus of the bench of recipes, from the raw pairs of `python -m data.recipes`.

    make recipes-data

or

    python -m data.build --config=configs/corpus_recipes.py \
        --workdir=runs/recipes_corpus

Hardware: 2 CPU cores, 2 GB of memory, about 30 seconds.
Expected: docs/recipes.md has the numbers of pairs and pictures.
"""

from ml_collections import ConfigDict

from configs import corpus_quickstart


def get_config() -> ConfigDict:
    """Returns the corpus's config; rules that are not set keep the paper's bounds."""
    config = corpus_quickstart.get_config()
    config.name = "recipes"
    config.ingest.path = "runs/recipes_data/pairs/*.parquet"
    config.evaluation_images = "runs/recipes_data/evaluation/queries.parquet"
    return config
