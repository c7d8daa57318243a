"""The published thresholds of COYO-700M, https://github.com/kakaobrain/coyo-dataset.

    python -m data.build --config=configs/corpus_coyo.py --workdir=runs/coyo_corpus \
        --config.ingest.path=downloaded

Data: the output of img2dataset for a crawl. COYO-700M itself has passed these rules.
COYO's rules that this config does not have: pictures below 5 kB, texts of at most five
characters, without a noun or with a word of its lists of profanity, and pairs whose
text and perceptual hash are repeated. Texts above 1,000 characters are cut, and
pictures of the ratio 3 exactly are dropped, where COYO does the opposite.

Hardware: a Spark cluster for a crawl of billions of pairs, 2 CPU cores for millions.
Expected: no corpus was built by this file.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the corpus's config."""
    config = ConfigDict()
    config.name = "coyo"
    config.seed = 0

    config.ingest = ConfigDict()
    config.ingest.kind = "img2dataset"
    config.ingest.path = "runs/coyo_data"

    config.rules = ConfigDict()
    config.rules.languages = ("en",)
    config.rules.min_shorter_side = 199  # pixels, which the side must exceed
    config.rules.max_aspect_ratio = 3
    config.rules.max_images_per_text = 10
    config.rules.min_unigrams = 3
    config.rules.max_unigrams = 256
    # ALIGN's rules that COYO does not have.
    config.rules.max_texts_per_image = 2**31 - 1
    config.rules.frequent_ngrams = 2**31 - 1

    # COYO compared with ImageNet, Flickr30K, COCO, CC3M and CC12M; `data.eval_sets`
    # writes the file of evaluation pictures.
    config.evaluation_images = ""
    config.pictures = ConfigDict()
    config.pictures.max_hash_distance = 0  # bits: equal hashes only
    config.pictures.nsfw_model = "open_nsfw"
    config.pictures.max_nsfw = 0.5

    config.max_characters = 1000
    config.vocabulary_size = 100_000
    return config
