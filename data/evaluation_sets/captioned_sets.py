"""Facts about retrieval sets and their training splits, and readers of their captions.

The counts are those of Karpathy's splits, of Multi30K's test set of 2016, and of the
sets of long captions, DOCCI (arXiv 2404.19753) and Urban-1k (arXiv 2403.15378). They
are checked, because evaluating on another split gives wrong but believable numbers.
"""

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Callable
from typing import Any

from align_jax import places
from align_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CaptionedPicture:
    """One picture of an evaluation set.

    Attributes:
      path: path of the picture's file.
      texts: dict from feature name ("texts", or "texts_de" and so on) to captions.
      caption_ids: ids that the source gives to the captions of the first feature, in
        order; empty if it gives none.
    """

    path: pathlib.Path
    texts: dict[str, list[str]]
    caption_ids: list[str]


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Facts about an evaluation set.

    Attributes:
      name: name of the dataset.
      captions: files that `read` reads, relative to the folder of the downloads; a name
        may be a pattern of files, as "captions/*.txt".
      pictures: folder of the pictures, relative to the folder of the downloads.
      images: dict from split to number of pictures.
      texts: dict from split to number of captions by feature name.
      layout: description, for messages, of the folder of the downloads.
      read: function from these facts and the folder of the downloads to the pictures
        with their captions by split.
    """

    name: str
    captions: tuple[str, ...]
    pictures: str
    images: dict[str, int]
    texts: dict[str, dict[str, int]]
    layout: str
    read: Callable[["EvaluationSet", pathlib.Path], dict[str, list[CaptionedPicture]]]


# Errors of JSON that is broken or has another form.
NOT_THE_FORM = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def read_karpathy(
    facts: EvaluationSet, source: pathlib.Path
) -> dict[str, list[CaptionedPicture]]:
    """Reads the splits in `facts.images` from one of Karpathy's JSON files.

    Raises:
      InputError: the file is not one of Karpathy's.
    """
    path = source / facts.captions[0]
    try:
        images = places.read_object(path, {"images": list})["images"]
        entries: dict[str, list[CaptionedPicture]] = {
            split: [] for split in facts.images
        }
        for image in images:
            if image["split"] in entries:
                entries[image["split"]].append(_karpathy_entry(facts, source, image))
    except NOT_THE_FORM as error:
        raise InputError(
            f"{path} is not one of Karpathy's files ({type(error).__name__}: {error});"
            f" wanted in {source}: {facts.layout}"
        ) from error
    return entries


def _karpathy_entry(
    facts: EvaluationSet, source: pathlib.Path, image: dict[str, Any]
) -> CaptionedPicture:
    sentences = image["sentences"]
    # MSCOCO's pictures lie in two folders.
    folder = pathlib.PurePosixPath(image.get("filepath", facts.pictures)).name
    return CaptionedPicture(
        source / folder / pathlib.PurePosixPath(image["filename"]).name,
        {"texts": [sentence["raw"].strip() for sentence in sentences]},
        [str(sentence["sentid"]) for sentence in sentences],
    )


def read_multi30k(
    facts: EvaluationSet, source: pathlib.Path
) -> dict[str, list[CaptionedPicture]]:
    """Reads the split "test" of Multi30K: a list of pictures, and files of captions.

    Each file of captions has one line per picture and gives one caption in a language.

    Raises:
      InputError: a file is damaged or has another number of lines than the list.
    """
    names, *files = (_lines(source / name) for name in facts.captions)
    texts: list[dict[str, list[str]]] = [{} for _ in names]
    for name, lines in zip(facts.captions[1:], files, strict=True):
        if len(lines) != len(names):
            raise InputError(
                f"{source / name} has {len(lines)} lines; wanted {len(names)}, one a"
                f" picture of {facts.captions[0]}"
            )
        language = name.removesuffix(".gz").rpartition(".")[2]
        for of_picture, line in zip(texts, lines, strict=True):
            of_picture.setdefault(f"texts_{language}", []).append(line.strip())
    folder = source / facts.pictures
    return {
        "test": [
            CaptionedPicture(folder / pathlib.PurePosixPath(name).name, of_picture, [])
            for name, of_picture in zip(names, texts, strict=True)
        ]
    }


def read_docci(
    facts: EvaluationSet, source: pathlib.Path
) -> dict[str, list[CaptionedPicture]]:
    """Reads the splits in `facts.images` from DOCCI's lines of JSON objects.

    Raises:
      InputError: the file is damaged, or a line has another form.
    """
    path, folder = source / facts.captions[0], source / facts.pictures
    entries: dict[str, list[CaptionedPicture]] = {split: [] for split in facts.images}
    for number, line in enumerate(_lines(path), 1):
        try:
            found = json.loads(line)
            if found["split"] in entries:
                name = pathlib.PurePosixPath(found["image_file"]).name
                texts = {"texts": [found["description"].strip()]}
                entry = CaptionedPicture(folder / name, texts, [])
                entries[found["split"]].append(entry)
        except NOT_THE_FORM as error:
            raise InputError(
                f"line {number} of {path} is none of DOCCI's ({type(error).__name__}:"
                f" {error}); wanted in {source}: {facts.layout}"
            ) from error
    return entries


def read_urban(
    facts: EvaluationSet, source: pathlib.Path
) -> dict[str, list[CaptionedPicture]]:
    """Reads Urban-1k, a text file for each picture.

    A caption is the first line of its file, as in Long-CLIP's code.

    Raises:
      InputError: a file is damaged.
    """
    folder = source / facts.pictures
    return {
        "test": [
            CaptionedPicture(
                folder / f"{path.stem}.jpg", {"texts": [_lines(path)[0].strip()]}, []
            )
            for path in caption_files(source, facts.captions[0])
        ]
    }


def caption_files(source: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Lists the files of an entry of `EvaluationSet.captions`, sorted; [] for none."""
    return sorted(path for path in source.glob(name) if path.is_file())


def _lines(path: pathlib.Path) -> list[str]:
    """Reads the lines of a text file, gzipped if its name ends in .gz.

    Only newlines end a line, because captions may hold Unicode separators.

    Raises:
      InputError: the file is damaged.
    """
    try:
        content = places.read_bytes(path)
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode().removesuffix("\n").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); download it again") from error


SPLITS_PAGE = "https://cs.stanford.edu/people/karpathy/deepimagesent/"
FLICKR_PICTURES = (
    "the folder flickr30k-images/ of its 31,783 JPEG files"
    " (https://shannon.cs.illinois.edu/DenotationGraph/, on request by its form)"
)
TASK1, TASK2 = "multi30k/data/task1", "multi30k/data/task2"

FLICKR30K = EvaluationSet(
    name="flickr30k",
    captions=("dataset_flickr30k.json",),
    pictures="flickr30k-images",
    images={"test": 1000, "val": 1014},
    texts={"test": {"texts": 5000}, "val": {"texts": 5070}},
    layout=(
        f"dataset_flickr30k.json (of caption_datasets.zip, {SPLITS_PAGE}) and"
        f" {FLICKR_PICTURES}"
    ),
    read=read_karpathy,
)
# All pictures of the test split are from COCO's validation pictures of 2014.
COCO = EvaluationSet(
    name="coco",
    captions=("dataset_coco.json",),
    pictures="val2014",
    images={"test": 5000},
    texts={"test": {"texts": 25_010}},
    layout=(
        f"dataset_coco.json (of caption_datasets.zip, {SPLITS_PAGE}) and the folder"
        " val2014/ of 40,504 JPEG files (2014 Val images,"
        " https://cocodataset.org/#download)"
    ),
    read=read_karpathy,
)
# The splits for fine-tuning on retrieval (arXiv 2102.05918, section 5.1).
FLICKR30K_TRAIN = dataclasses.replace(
    FLICKR30K,
    name="flickr30k_train",
    images={"train": 29_000},
    texts={"train": {"texts": 145_000}},
)
COCO_TRAIN = dataclasses.replace(
    COCO,
    name="coco_train",
    pictures="",
    images={"train": 82_783, "restval": 30_504},
    texts={"train": {"texts": 414_113}, "restval": {"texts": 152_634}},
    layout=(
        f"dataset_coco.json (of caption_datasets.zip, {SPLITS_PAGE}) and the folders"
        " train2014/ and val2014/ of 82,783 and 40,504 JPEG files (2014 Train and Val"
        " images, https://cocodataset.org/#download)"
    ),
)
# English and German have five captions per picture, none a translation. French and
# Czech have one, a translation.
MULTI30K = EvaluationSet(
    name="multi30k",
    captions=(
        f"{TASK1}/image_splits/test_2016_flickr.txt",
        *(
            f"{TASK2}/raw/test_2016.{n}.{lang}.gz"
            for lang in ("en", "de")
            for n in "12345"
        ),
        *(f"{TASK1}/raw/test_2016_flickr.{lang}.gz" for lang in ("fr", "cs")),
    ),
    pictures="flickr30k-images",
    images={"test": 1000},
    texts={
        "test": {
            "texts_en": 5000,
            "texts_de": 5000,
            "texts_fr": 1000,
            "texts_cs": 1000,
        }
    },
    layout=(
        "the folder multi30k/ (`git clone https://github.com/multi30k/dataset"
        f" multi30k`) and {FLICKR_PICTURES}"
    ),
    read=read_multi30k,
)

DOCCI = EvaluationSet(
    name="docci",
    captions=("docci/docci_descriptions.jsonlines",),
    pictures="docci/images",
    images={"test": 5000},
    texts={"test": {"texts": 5000}},
    layout=(
        "the folder docci/ with docci_descriptions.jsonlines and the folder images/ of"
        " docci_images.tar.gz (https://google.github.io/docci/#downloads)"
    ),
    read=read_docci,
)
URBAN1K = EvaluationSet(
    name="urban1k",
    captions=("Urban1k/caption/*.txt",),
    pictures="Urban1k/image",
    images={"test": 1000},
    texts={"test": {"texts": 1000}},
    layout=(
        "the folder Urban1k/ with the folders caption/ and image/"
        " (https://huggingface.co/datasets/BeichenZhang/Urban1k)"
    ),
    read=read_urban,
)

EVALUATION_SETS = {
    facts.name: facts
    for facts in (
        FLICKR30K,
        COCO,
        MULTI30K,
        FLICKR30K_TRAIN,
        COCO_TRAIN,
        DOCCI,
        URBAN1K,
    )
}
