"""Models that say in which language a text is."""

import importlib
from collections.abc import Callable
from typing import Any

from align_jax import places
from align_jax.errors import InputError, one_line

# Function from N texts to the codes of their languages; "" if a model finds none.
Detector = Callable[[list[str]], list[str]]

LABEL = "__label__"  # fastText's prefix of a label
GCLD3_BYTES = 1000  # of a text, which the model reads


def load_fasttext(model: str) -> Detector:
    """Loads a supervised model of fastText, such as lid.176.bin.

    Line feeds of a text become spaces, and the label of highest probability counts.

    Args:
      model: path of the model's file.

    Raises:
      InputError: the file or the package is missing, or the file holds something else.
    """
    path = places.local_path(model)
    if not path.is_file():
        raise InputError(f"config.language.model is {model!r}, which is no file")
    fasttext = _import("fasttext", "run `pip install -e '.[languages]'`")
    try:
        loaded = fasttext.load_model(str(path))
        loaded.predict("")
    except Exception as error:  # whatever its C++ raises
        raise InputError(
            f"{path} is no model for languages by fastText ({one_line(error)})"
        ) from error

    def detect(texts: list[str]) -> list[str]:
        languages = []
        for text in texts:  # fasttext-predict 0.9 fails with a list
            labels, _ = loaded.predict(text.replace("\n", " "))
            languages.append(labels[0].removeprefix(LABEL) if labels else "")
        return languages

    return detect


def load_gcld3(model: str) -> Detector:
    """Loads Google's Compact Language Detector 3, whose model is in its package.

    Args:
      model: empty text.

    Raises:
      InputError: the package is missing, or a file is given.
    """
    if model:
        raise InputError(
            f"config.language.model is {model!r}; gcld3 has its own model, wanted ''"
        )
    gcld3 = _import("gcld3", "run `pip install gcld3`, which needs protobuf's compiler")
    found = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=GCLD3_BYTES)

    def detect(texts: list[str]) -> list[str]:
        lines = (text.replace("\n", " ") for text in texts)
        return [found.FindLanguage(text=line).language for line in lines]

    return detect


LANGUAGE_MODELS: dict[str, Callable[[str], Detector]] = {
    "fasttext": load_fasttext,
    "gcld3": load_gcld3,
}


def _import(name: str, advice: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"package {name!r}, which config.language.kind asks for, cannot be"
            f" imported: {advice}, or give the languages as a column"
        ) from error
