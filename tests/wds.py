"""Writes sets in CLIP_benchmark's folder layout, for tests."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np

from align_jax.evaluation.datacomp import SETS
from tests import tiny

CLASSES = list(tiny.COLOURS)
TEMPLATES = ["{c}", "{c} left"]


def npy(*values: float) -> bytes:
    """Returns the bytes of a member `npy`."""
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def write_set(
    folder: pathlib.Path,
    samples: list[dict[str, bytes]],
    texts: dict[str, list[str]],
    shards: int = 2,
) -> str:
    """Writes a set.

    Args:
      folder: folder of the set.
      samples: members of each sample, by their endings.
      texts: lines of each text file by its name, without ".txt".
      shards: number of tars.
    """
    split = folder / "test"
    split.mkdir(parents=True)
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (split / "nshards.txt").write_text(f"{shards}\n")
    parts = np.array_split(np.arange(len(samples)), shards)
    for shard, numbers in enumerate(parts):
        with tarfile.open(split / f"{shard}.tar", "w") as tar:
            for number in numbers.tolist():
                for ending, content in samples[number].items():
                    member = tarfile.TarInfo(f"s{number:07}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder)


def prompts(classes: list[str] = CLASSES, templates: list[str] = TEMPLATES) -> dict:
    return {"classnames": classes, "zeroshot_classification_templates": templates}


def pictures(count: int = 12) -> list[tuple[str, bytes]]:
    """Returns pairs (name, encoded picture) of a tiny dataset's test pictures."""
    names = [tiny.NAMES[i % len(tiny.NAMES)] for i in range(count)]
    return [(name, tiny.draw(name, 110)) for name in names]


def label_of(name: str) -> int:
    return CLASSES.index(name.split()[0])


def write_classes(
    folder: pathlib.Path, count: int = 12, groups: int = 0, classes: int = 3
) -> str:
    """Writes a set of classes.

    Args:
      folder: folder of the set.
      count: number of pictures.
      groups: divisor of the picture's number in column 0 of `npy`; 0 for no `npy`.
      classes: number of classes; those after the third have no pictures, and of two
        classes the second one also has the pictures of the third.
    """
    samples = []
    for number, (name, picture) in enumerate(pictures(count)):
        label = min(label_of(name), classes - 1)
        sample = {"png": picture, "cls": str(label).encode()}
        if groups:
            sample["npy"] = npy(number % groups, 7, label)
        samples.append(sample)
    names = [*CLASSES, *(f"class {number}" for number in range(3, classes))][:classes]
    return write_set(folder, samples, prompts(names))


def write_multilabel(folder: pathlib.Path, count: int = 12) -> str:
    """Writes a set of type "multilabel"; its classes are colours and sides."""
    names = [*tiny.COLOURS, *tiny.SHAPES]
    samples = [
        {"webp": picture, "npy": npy(*(float(n in name.split()) for n in names))}
        for name, picture in pictures(count)
    ]
    texts = prompts(names, ["{c}"]) | {"dataset_type": ["Multilabel"]}
    return write_set(folder, samples, texts)


def write_captions(folder: pathlib.Path, count: int = 12) -> str:
    """Writes a set of type "retrieval" with two captions a picture."""
    samples = [
        {"jpg": picture, "txt": f"{name}\nthe {name}".encode()}
        for name, picture in pictures(count)
    ]
    return write_set(folder, samples, {"dataset_type": ["retrieval"]})


def write_choices(folder: pathlib.Path, choices: list[tuple[str, list[str]]]) -> str:
    """Writes a set like SugarCrepe, of (name of the picture, captions)."""
    samples = [
        {"png": tiny.draw(name, 110), "txt": "\n".join(captions).encode()}
        for name, captions in choices
    ]
    return write_set(folder, samples, {"dataset_type": ["retrieval"]})


def write_faces(folder: pathlib.Path, count: int = 12) -> str:
    """Writes a set like FairFace: race is the colour, gender whether it is left."""
    lines = ["race:red", "race:green", "race:blue", "gender:right", "gender:left"]
    lines += ["age:top", "age:bottom", *["toxic:right"] * 20, "toxic:red"]
    templates = [f"{o}:{{c}}" for o in ("race", "gender", "age", "toxic")]
    samples = []
    for name, picture in pictures(count):
        race, gender = label_of(name), int("left" in name)
        age = int("bottom" in name)
        members = npy(age, gender, race, int(race != 1))
        samples.append({"png": picture, "npy": members})
    return write_set(folder, samples, prompts(lines, templates))


def write_cues(folder: pathlib.Path, cues: list[tuple[str, list, list]]) -> str:
    """Writes a set like WinoGAViL, of (cue, candidates, associations)."""
    folder.mkdir(parents=True)
    quoted = (
        [cue, *(str(names).replace("'", '""') for names in lists)]
        for cue, *lists in cues
    )
    lines = ["ID,cue,candidates,associations"]
    lines += [f'{i},{c},"{a}","{b}"' for i, (c, a, b) in enumerate(quoted)]
    (folder / "winogavil_dataset.csv").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(folder / "winogavil_images.zip", "w") as archive:
        for name in tiny.NAMES:
            archive.writestr(f"winogavil_images/{name}.jpg", tiny.draw(name, 110))
    return str(folder)


def write_datacomp(root: pathlib.Path, names: list[str]) -> str:
    """Writes a set of twelve pictures for each name of DataComp's sets."""
    for each in (s for s in SETS if s.name in names):
        folder = root / f"{each.evaluator}_test"
        if each.task == "faces":
            write_faces(folder)
        elif each.task == "associations":
            cues = [("red", tiny.NAMES[:size], tiny.NAMES[:2]) for size in (5, 12)]
            write_cues(folder, cues)
        elif each.classes:
            write_classes(folder, groups=2 * bool(each.groups), classes=each.classes)
        else:
            write_captions(folder)
    return str(root)
