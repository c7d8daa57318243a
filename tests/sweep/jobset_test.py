"""The manifest for GKE, beside the schema that JobSet publishes."""

import copy
import json
import math
import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/golden/jobset.json").read_text())
TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}


def faults(value, schema, path="manifest"):
    """Yields each place where a value differs from an OpenAPI schema."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, str | int) or not re.match(
            schema["pattern"], str(value)
        ):
            yield f"{path} is {value!r}, no quantity"
        return
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield f"{path} is {value!r}, wanted {schema['type']}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{path} is {value!r}, wanted one of {schema['enum']}"
    if kind is list:
        for index, item in enumerate(value):
            yield from faults(item, schema["items"], f"{path}[{index}]")
    if kind is dict and path != "manifest.metadata":  # Kubernetes' own, not JobSet's
        if missing := {*schema.get("required", ())} - value.keys():
            yield f"{path} lacks {sorted(missing)}"
        names = schema.get("properties", {})
        for name, field in value.items():
            known = names.get(name, schema.get("additionalProperties"))
            if known is None:
                yield f"{path} has no field {name}"
            else:
                yield from faults(field, known, f"{path}.{name}")


@pytest.fixture
def manifest():
    return yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())


def job_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_the_manifest_has_the_form_that_jobset_publishes(manifest):
    assert not [*faults(manifest, SCHEMA)]
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda job: job.update(completion=4), "spec has no field completion"),
        (lambda job: job.update(completions="64"), "completions is '64', wanted int"),
        (lambda job: job["template"]["spec"].update(hostNetwork="yes"), "wanted bool"),
        (lambda job: job["template"]["spec"].pop("containers"), "lacks ['containers']"),
        (
            lambda job: job["template"]["spec"]["containers"][0]["env"].append("RUN=x"),
            "env[3] is 'RUN=x', wanted object",
        ),
        (
            lambda job: job["template"]["spec"]["containers"][0]["resources"][
                "limits"
            ].update({"google.com/tpu": "four"}),
            "no quantity",
        ),
    ],
)
def test_a_wrong_manifest_is_a_fault(manifest, change, fault):
    changed = copy.deepcopy(manifest)
    change(job_of(changed))
    (found,) = faults(changed, SCHEMA)
    assert fault in found


def test_pods_hosts_and_chips_agree(manifest):
    job = job_of(manifest)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == (
        chips
    )
    assert job["parallelism"] == job["completions"]
    spot = pod["tolerations"][-1]
    assert pod["nodeSelector"][spot["key"]] == spot["value"]


def test_bad_input_ends_the_jobset_and_all_else_restarts_it(manifest):
    job = job_of(manifest)
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # the rule needs it
    policy = manifest["spec"]["failurePolicy"]
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 10
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > 20
