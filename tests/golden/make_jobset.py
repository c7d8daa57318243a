"""Writes jobset.json, the fields of JobSet's published schema that our manifest sets.

    python tests/golden/make_jobset.py config/components/crd/bases/*_jobsets.yaml

The file is from github.com/kubernetes-sigs/jobset, commit 08dfbdfd (Apache-2.0). Every
object of launch/jobset.yaml is written with the names and types of all its fields.
"""

import json
import pathlib
import sys

import yaml

HERE = pathlib.Path(__file__).parent
KEPT = ("type", "required", "enum", "pattern", "x-kubernetes-int-or-string")


def prune(schema: dict, value: object) -> dict:
    """Returns the schema of a value; fields that it does not set keep their types."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if isinstance(value, dict) and "properties" in schema:
        kept["properties"] = {
            name: prune(field, value.get(name))
            for name, field in schema["properties"].items()
        }
    elif isinstance(value, dict) and "additionalProperties" in schema:
        kept["additionalProperties"] = prune(schema["additionalProperties"], None)
    elif isinstance(value, list):
        merged: dict = {}
        for item in value:
            merged |= item if isinstance(item, dict) else {}
        kept["items"] = prune(schema["items"], merged or None)
    return kept


if __name__ == "__main__":
    published = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())
    (version,) = published["spec"]["versions"]
    manifest = yaml.safe_load((HERE.parents[1] / "launch/jobset.yaml").read_text())
    schema = prune(version["schema"]["openAPIV3Schema"], manifest)
    (HERE / "jobset.json").write_text(json.dumps(schema, indent=1) + "\n")
