"""Uploads a folder to the Hugging Face hub."""

import contextlib
from collections.abc import Iterator

from align_jax import places
from align_jax.errors import InputError, one_line

FIRST = {".gitattributes"}  # files of a new repository


def check_name(name: str) -> None:
    """Raises InputError if a repository's name is not ORG/NAME, as the hub wants it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push={name}: {one_line(error)}") from error
    if name.count("/") != 1:
        raise InputError(f"--push is {name!r}; wanted ORG/NAME")


def push_folder(
    folder: places.Place, name: str, *, private: bool = False, update: bool = False
) -> str:
    """Uploads a folder to a model's repository in one commit, and makes the repository.

    A repository without files, such as one whose first upload was interrupted, is used.
    Files that were uploaded before are not sent again. The hub shows either all files
    of a commit or none.

    Args:
      folder: local folder.
      name: name of the repository, "ORG/NAME".
      private: whether a new repository is private.
      update: whether the repository may have files; they are replaced.

    Returns:
      The URL of the repository.

    Raises:
      InputError: the name, the token or a permission is wrong, the repository has files
        and `update` is False, or the upload was interrupted.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with _explaining(name, api.endpoint):
        url = api.create_repo(name, private=private, exist_ok=True)
        there = {*api.list_repo_files(name)} - FIRST
        if there and not update:
            raise InputError(
                f"{url} has {len(there)} files, such as {min(there)}; give --update to"
                " replace them, or another name"
            )
        api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            commit_message="Upload the model with align_jax",
            delete_patterns="*" if there else None,
        )
    return str(url)


@contextlib.contextmanager
def _explaining(name: str, endpoint: str) -> Iterator[None]:
    """Turns the errors of an upload into one line each."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except InputError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = "the same command continues"
        if status in (401, 403):
            advice = (
                "run `hf auth login`, or set HF_TOKEN to a token that may write to"
                f" {name.partition('/')[0]}"
            )
        raise InputError(
            f"{endpoint} refused {name} ({status}): {one_line(error)}; {advice}"
        ) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # The library wraps the fault of an upload in an error that only names the file.
        cause = error.__cause__ or error
        raise InputError(
            f"{name} was not uploaded to {endpoint}: {one_line(error)}"
            f" ({type(cause).__name__}: {one_line(cause)}); the same command continues"
        ) from error
