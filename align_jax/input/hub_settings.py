"""Reads tokenizer_config.json, Hugging Face's settings beside a tokenizer's file."""

import os
from collections.abc import Mapping
from typing import Any

from align_jax import places
from align_jax.config import CONFIG_FILE
from align_jax.errors import InputError
from align_jax.input.stored_tokenizer import SETTINGS_FILE

SIDES = ("padding_side", "truncation_side")


def read_settings(path: str) -> dict[str, Any]:
    """Returns the settings beside a tokenizer's file; {} if there are none.

    SigLIP 2 was trained on lower-case texts, but its folders may name Gemma's class,
    which keeps capitals. Beside a config.json of SigLIP, the class is SigLIP 2's.

    Args:
      path: path or URL of the tokenizer's file.
    """
    folder = os.path.dirname(path)
    settings, model = (
        places.read_object(beside) if places.exists(beside) else {}
        for beside in (os.path.join(folder, n) for n in (SETTINGS_FILE, CONFIG_FILE))
    )
    is_siglip = str(model.get("model_type")).startswith("siglip")
    if is_siglip and str(settings.get("tokenizer_class")).startswith("Gemma"):
        return settings | {"tokenizer_class": "Siglip2Tokenizer"}
    return settings


def check_sides(settings: Mapping[str, Any], source: str) -> None:
    """Raises InputError if texts are not padded and cut at their end.

    Args:
      settings: fields of tokenizer_config.json.
      source: path of the tokenizer, for the message.
    """
    for name in SIDES:
        if settings.get(name) not in (None, "right"):
            raise InputError(
                f"the settings of {source} have {name} {settings[name]!r}; ours is"
                " 'right'"
            )


def named_token(settings: Mapping[str, Any], name: str) -> str | None:
    """Returns a special token that the settings name; None if they do not.

    Args:
      settings: fields of tokenizer_config.json.
      name: name of the field, such as "pad_token"; its value is a text, or an object
        with the text as `content`.

    Raises:
      InputError: the value is neither.
    """
    value = settings.get(name)
    found = value.get("content") if isinstance(value, dict) else value
    if found is not None and not isinstance(found, str):
        raise InputError(
            f"{name} is {value!r} in tokenizer_config.json; wanted a token"
        )
    return found


def added_ends(
    settings: Mapping[str, Any], name: str, default: str | None = None
) -> list[str] | None:
    """Returns the token before or after each text, in a list of at most one.

    Args:
      settings: fields of tokenizer_config.json.
      name: "bos" or "eos"; the fields are `add_bos_token` and `bos_token`.
      default: the token where its field is absent.

    Returns:
      None if the settings do not say whether the token is added.

    Raises:
      InputError: the token is added, but not named.
    """
    added = settings.get(f"add_{name}_token")
    if not isinstance(added, bool):
        return None
    if not added:
        return []
    token = named_token(settings, f"{name}_token") or default
    if token is None:
        raise InputError(
            f"add_{name}_token is true in tokenizer_config.json, but there is no"
            f" {name}_token"
        )
    return [token]
