"""Whether a text tower and a tokenizer have the same ids."""

from align_jax.errors import InputError
from align_jax.input.tokenizer import Tokenizer
from align_jax.models.towers import TextTowerConfig


def check_tokenizer(
    tokenizer: Tokenizer, tower: TextTowerConfig, source: str, where: str
) -> None:
    """Checks that a tokenizer's ids are those that a text tower takes.

    Args:
      tokenizer: the tokenizer.
      tower: the tower's config.
      source: path of the tokenizer, for messages.
      where: dotted path of the tower's config, for messages.

    Raises:
      InputError: the tokenizer has more ids than the token embedding has rows, or
        another id of padding or of a text's end.
    """
    if tokenizer.size > tower.vocabulary_size:
        raise InputError(
            f"{source} has {tokenizer.size} tokens, but {where}.vocabulary_size is"
            f" {tower.vocabulary_size}; raise it"
        )
    own = {"pad_token": tokenizer.pad_token, "end_token": tokenizer.end_token}
    for name, found in own.items():
        wanted = getattr(tower, name)
        if wanted is not None and wanted != found:
            raise InputError(
                f"{source} has {name} {found}, but {where}.{name} is {wanted}; a"
                f" {tower.kind} tower and its tokenizer must have the same"
            )
