"""Finds the files of a dataset in the Hugging Face hub's cache.

    CACHE/datasets--ORG--NAME/refs/main         hash of the newest revision
    CACHE/datasets--ORG--NAME/snapshots/HASH    its files, links into ../../blobs

`snapshot_download` of huggingface_hub writes this layout if it gets no `local_dir`.
"""

import os

from align_jax import places
from align_jax.errors import InputError

PREFIX = "datasets--"


def dataset_name(folder: str) -> str:
    """Returns NAME of a folder datasets--ORG--NAME, and the name of another folder."""
    return folder.rsplit("--", 1)[-1] if folder.startswith(PREFIX) else folder


def find_snapshot(directory: str) -> str:
    """Returns the folder with a dataset's files.

    Args:
      directory: path or URL of that folder, of a dataset's folder in the cache, or of a
        cache with one dataset.

    Raises:
      InputError: a cache has several datasets, or a dataset has no snapshot, or several
        of which refs/main names none.
    """
    folder = places.resolve(directory)
    if os.path.basename(folder.rstrip("/")).startswith(PREFIX):
        return _find_newest(folder)
    names = places.list_names(folder) if places.is_folder(folder) else []
    datasets = [name for name in names if name.startswith(PREFIX)]
    if len(datasets) > 1:
        raise InputError(
            f"{folder} has {len(datasets)} datasets; name the folder of one, such as"
            f" {datasets[0]}"
        )
    return _find_newest(os.path.join(folder, datasets[0])) if datasets else folder


def _find_newest(folder: str) -> str:
    """Returns the snapshot that refs/main names; without refs/main, the only one."""
    parent, newest = (
        os.path.join(folder, *n) for n in (["snapshots"], ["refs", "main"])
    )
    there = places.list_names(parent) if places.is_folder(parent) else []
    wanted = [places.read_text(newest).strip()] if places.exists(newest) else there
    if len(wanted) != 1 or wanted[0] not in there:
        raise InputError(
            f"{folder} has the snapshots {there}; wanted that of refs/main, or one"
        )
    return os.path.join(parent, wanted[0])
