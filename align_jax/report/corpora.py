"""Reads the manifests of the corpora that a run was trained on."""

from collections.abc import Mapping
from typing import Any

from align_jax import dataset_folder, places


def read_corpora(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Reads the manifests of a config's datasets.

    Args:
      fields: literal config of a run.

    Returns:
      {dataset name: manifest} of the datasets whose manifest has "rules", the number of
      pairs that each filter rule dropped.
    """
    corpora = {}
    for name, dataset in fields.get("input", {}).get("datasets", {}).items():
        directory = places.resolve(dataset["directory"])
        manifest = dataset_folder.read_manifest(directory)
        if "rules" in manifest:
            corpora[name] = manifest
    return corpora
