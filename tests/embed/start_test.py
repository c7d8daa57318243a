"""The way of a process to its first embeddings: few packages, two programs."""

import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import align_jax
from align_jax.embed.model import load
from align_jax.models.parameters import unflatten
from tests import tiny

# Packages that only training, datasets and checkpoints of runs need.
HEAVY = """array_record clu etils.ecolab grain ml_collections optax orbax pandas pyarrow
    tensorboardX tensorflow tensorflow_datasets tensorflow_text tensorstore torch
    transformers""".split()
PICTURE = np.arange(20 * 14 * 3, dtype=np.uint8).reshape(20, 14, 3)
TEXTS = ["one picture", "of a cat"]

SCRIPT = """
import json, sys
sys.modules.update(dict.fromkeys({heavy!r}))  # an import of them raises ImportError
import align_jax
import numpy as np
import jax
model = align_jax.load({source!r}, batch_size=8)
picture = np.arange(20 * 14 * 3, dtype=np.uint8).reshape(20, 14, 3)
found = [*model.encode_images([picture]), *model.encode_texts({texts!r})]
cache = jax.config.values["jax_compilation_cache_dir"]
print(json.dumps([np.stack(found).tolist(), cache]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def expected(source):
    model = load(source, batch_size=8)
    return np.stack([*model.encode_images([PICTURE]), *model.encode_texts(TEXTS)])


def test_a_converted_model_is_loaded_and_used_without_the_packages_of_training(
    source, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    script = SCRIPT.format(heavy=HEAVY, source=str(source), texts=TEXTS)
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found, cache = json.loads(output)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert cache == str(tmp_path / ".cache" / "align_jax")


def test_both_encoders_are_compiled_once_and_before_they_are_used(source, expected):
    compiled, ready = [], threading.Event()

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)
            if {"jit(of_images)", "jit(apply)"} <= {*compiled}:
                ready.set()

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        model = align_jax.load(str(source), batch_size=16)
        assert ready.wait(120)
        compiled.clear()
        found = [*model.encode_images([PICTURE]), *model.encode_texts(TEXTS)]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-6)
    assert not {"jit(of_images)", "jit(apply)"} & {*compiled}


def test_new_variables_are_used_by_prepared_programs(source):
    model = align_jax.load(str(source), batch_size=8)
    before = model.encode_texts(TEXTS)
    variables = {
        kind: {**parts} for kind, parts in unflatten(model.weights.variables).items()
    }
    kernel = variables["params"]["text_projection"]["kernel"]
    variables["params"]["text_projection"] = {
        **variables["params"]["text_projection"],
        "kernel": -kernel,
    }
    model.embedder.load(variables)
    assert np.abs(model.encode_texts(TEXTS) - before).max() > 0.1
