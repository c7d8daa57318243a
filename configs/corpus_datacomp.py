"""DataComp's baselines (arXiv 2304.14108) as subsets of one of its pools.

    python -m data.curate --config=configs/corpus_datacomp.py:basic_filter \
        --workdir=runs/datacomp

The names after the colon, with commas between them, are those of `BASELINES`; the
default is the basic filter and the best baseline, which is DataComp-1B if the pool is
xlarge. docs/curation.md says where the files come from.

Hardware: CPU cores and 8 GB of memory, 6 of them for k-means. The clusters of the small
pool need up to 2e15 operations, and k-means 6e15 for its 20 rounds.
"""

from typing import Any

from ml_collections import ConfigDict

# The caption filter of image_based; fastText counts its tokens.
CAPTION = {"languages": ("en",), "min_tokens": 2, "min_characters": 6}
CLUSTERS = {**CAPTION, "image_clusters": True}
L14, B32 = "clip_l14_similarity_score", "clip_b32_similarity_score"

BASELINES: dict[str, dict[str, Any]] = {
    "no_filter": {},
    "basic_filter": {
        "languages": ("en",),
        "min_words": 3,
        "min_characters": 6,
        "min_shorter_side": 200,
        "max_aspect_ratio": 3.0,
    },
    "clip_score": {"score": L14, "score_fraction": 0.3},
    "laion2b": {"languages": ("en",), "score": B32, "min_score": 0.28},
    "text_based": {"languages": ("en",), "text_entities": True},
    "image_based": CLUSTERS,
    "image_based_intersect_clip_score": {
        **CLUSTERS,
        "score": L14,
        "score_fraction": 0.3,
    },
}
BEST = "image_based_intersect_clip_score"


def get_config(names: str = f"basic_filter,{BEST}") -> ConfigDict:
    """Returns the config of some baselines.

    Args:
      names: keys of `BASELINES`, with commas between them. "laion2b" stands alone,
        because another model finds its languages.

    Raises:
      ValueError: a name is unknown, or "laion2b" does not stand alone.
    """
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in BASELINES]:
        raise ValueError(f"no baselines {unknown}; known: {', '.join(BASELINES)}")
    if "laion2b" in chosen and len(chosen) > 1:
        raise ValueError("laion2b finds languages by gcld3; run it alone")
    config = ConfigDict()
    config.name = "datacomp"
    config.seed = 0

    config.pool = ConfigDict()
    config.pool.path = "runs/datacomp_metadata"  # NAME.parquet, and NAME.npz beside it
    config.pool.columns = ""  # Parquet files with uids and your own scores
    config.pool.embeddings = ""  # a folder in place of the pool's
    config.pool.embedding = "l14_img"

    config.filters = ConfigDict({name: BASELINES[name] for name in chosen})

    config.language = ConfigDict()
    config.language.kind = "gcld3" if "laion2b" in chosen else "fasttext"
    config.language.model = "" if "laion2b" in chosen else "runs/models/lid.176.bin"

    if "text_based" in chosen:
        config.entities = ConfigDict()
        config.entities.wordnet = "/usr/share/wordnet"
        config.entities.synsets = "runs/models/imagenet21k_wordnet_ids.txt"

    if any(BASELINES[name].get("image_clusters") for name in chosen):
        config.clusters = ConfigDict()
        config.clusters.target = "runs/models/imagenet_l14.npy"
        config.clusters.centroids = ""  # fit them, or a file of 100,000
        config.clusters.count = 100_000
        config.clusters.max_sample = 2_000_000  # 6 GB; published: 0.03 to all of a pool
        config.clusters.sample = ConfigDict(CAPTION)

    config.engine = ConfigDict()
    config.engine.kind = "duckdb"
    config.engine.workers = 0
    config.engine.memory_limit = "4GB"
    return config
