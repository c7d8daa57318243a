"""Runs one of two processes of four devices each: python -m tests.two_processes ..."""

import json
import pathlib
import sys
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from align_jax.devices.exchange import gather, wait_for_all
from align_jax.devices.mesh import (
    batch_split,
    make_mesh,
    place_array,
    replicated,
    state_sharding,
)
from align_jax.embed.embedder import Embedder
from align_jax.embed.saved import SavedEmbedder
from align_jax.evaluation.linear_classifier import LogisticRegression
from align_jax.evaluation.ranking import nearest, pair_ranks
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from align_jax.losses.contrastive import contrastive_loss
from align_jax.models.parameters import flatten
from align_jax.training.checkpoint import CheckpointConfig
from align_jax.training.local_checkpoint import LocalCheckpoints
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.train_state import TrainState
from tests import steps, tiny
from tests.reference import embeddings

# Pairs, label smoothing and temperature. loss_test.py tests all their combinations.
CASES = [(8, 0.1, 1.0), (256, 0.0, 1 / 128)]
STEPS = 3


class Pictures(Sequence):
    """Thirteen pictures, the fifth of them broken; lists the indices that were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 13

    def __getitem__(self, index):
        self.read.append(int(index))
        return b"broken" if index == 4 else tiny.draw(tiny.NAMES[index % 12], index)


def make_config(root: str) -> PretrainConfig:
    """Makes the config of the run, with few operations to compile; writes its data."""
    model = {"image_tower": {"width": 0.25, "stages": ((1, 3, 2, 6, 64),)}}
    folder = pathlib.Path(root) / "run"
    return steps.read(folder, model=model, optimizer={"kind": "sgd"})


def open_embedder(root: str, mesh: Mesh, variables: dict) -> Embedder:
    """Makes the embedder of the tiny run, with batches of eight."""
    config = make_config(root)
    embedder = Embedder(
        config.make_model(mesh),
        config.make_tokenizer(),
        config.input.preprocess,
        mesh,
        8,
    )
    embedder.load(variables)
    return embedder


def embed(embedder: Embedder) -> tuple[np.ndarray, list[int]]:
    """Returns embeddings of `Pictures` and the indices that this process read."""
    pictures, unreadable = Pictures(), {}
    found = embedder.encode_images(pictures, unreadable)
    assert set(unreadable) == {4} & {*pictures.read}
    return found, sorted(pictures.read)


def rank(mesh: Mesh) -> dict[str, np.ndarray]:
    """Computes ranks, neighbours and a linear classifier of random embeddings."""
    images, texts = embeddings(64)
    images, texts = images[:61].astype(np.float32), texts.astype(np.float32)
    pairs = np.stack([np.arange(64) % 61, np.arange(64)], 1)
    ranks = pair_ranks(images, texts, pairs, mesh)
    found = nearest(images, [texts[:50], texts[50:]], 5, mesh)
    probe = LogisticRegression(texts, np.arange(64) % 5, 5, mesh).fit(1.0)
    names = ("rows", "columns", "cosines", "places", "weights", "bias")
    return dict(zip(names, ranks + found + probe, strict=True))


def score(root: str, embedder: Embedder) -> list[dict[str, float]]:
    """Scores the tiny evaluation set twice: by embedding, then by saved embeddings."""
    data = {"directory": f"{root}/run/test", "split": "test"}
    described = {
        "pairs": {"kind": "retrieval", **data},
        "colour": {"kind": "zero_shot", "prompts": f"{root}/run/test/prompts.json"},
        "alike": {"kind": "neighbours", "index_split": "test"},
    }
    evaluators = make_evaluators({name: data | described[name] for name in described})
    folder = f"{root}/saved_by_{jax.process_count()}"
    return [
        dict(run_evaluators(evaluators, SavedEmbedder(embedder, folder, "tiny")))
        for _ in range(2)
    ]


def restore_lost(root: str, state: TrainState, fsdp: int) -> bool:
    """Restores a local checkpoint after the second process lost its file.

    Returns:
      Whether all bits came back; False if the state is not whole.
    """
    place = pathlib.Path(root) / f"fsdp_{fsdp}"
    config = CheckpointConfig(local_folder=f"{place}/host_{jax.process_index()}")
    (place / "run").mkdir(parents=True, exist_ok=True)
    starts = json.dumps([{"started": "1999-12-31"}])
    (place / "run" / f"{jax.process_index()}").write_text(starts)
    (place / "run" / f"{jax.process_index()}").rename(place / "run/provenance.json")
    local = LocalCheckpoints(str(place / "run"), config, {})
    local.save(100, state)
    if jax.process_index() == 1:
        local.remove()
    found = local.restore(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        ),
        after=99,
    )
    local.close()
    return found is not None and all(
        np.asarray(mine.addressable_data(i)).tobytes()
        == np.asarray(theirs.addressable_data(i)).tobytes()
        for mine, theirs in zip(
            jax.tree.leaves(found[1]), jax.tree.leaves(state), strict=True
        )
        for i in range(4)
    )


def exchange(index: int) -> dict[str, np.ndarray]:
    """Gathers values of several types, and some more often than once."""
    compiled = []

    def listen(event: str, *_: float, **__: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    found = {
        "numbers": np.stack([gather(np.float32(10 * i + index)) for i in range(12)]),
        "large": gather(np.full((2, 3), 2**63 + index, np.uint64)),
        "truth": gather(np.bool_(index)),
        "empty": gather(np.zeros((0, 4))),
    }
    wait_for_all()
    jax.monitoring.unregister_event_duration_listener(listen)
    return found | {"compiled": np.array(len(compiled))}


def main(root: str, address: str, index: str) -> None:
    """Writes losses, gradients, scores and the results of a few steps to `root`."""
    jax.distributed.initialize(address, 2, int(index))
    mesh = make_mesh()
    arrays = {f"exchange/{n}": x for n, x in exchange(int(index)).items()}
    for case, (n, smoothing, temperature) in enumerate(CASES):
        rows = [
            jax.make_array_from_callback(
                x.shape, batch_split(mesh), x.astype(np.float32).__getitem__
            )
            for x in embeddings(n)
        ]
        loss = partial(contrastive_loss, mesh=mesh, label_smoothing=smoothing, tile=24)
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (value, _), gradients = gradient(*rows, np.float32(temperature))
        arrays[f"loss/{case}"] = value
        for i, found in enumerate(gradients):
            arrays[f"gradient/{case}/{i}"] = process_allgather(found, tiled=True)
    config = make_config(root)
    metrics, _, end, _ = steps.run(config, mesh, STEPS)
    split = place_array(
        np.arange(2**15, dtype=np.float32),
        state_sharding((2**15,), make_mesh(8)),
    )
    whole = jax.tree.map(partial(place_array, sharding=replicated(mesh)), end)
    found = [restore_lost(root, whole, 1), restore_lost(root, split, 8)]
    pathlib.Path(root, f"restored_{index}.json").write_text(json.dumps(found))
    embedder = open_embedder(root, mesh, end.own_variables)
    arrays["embeddings"], read = embed(embedder)
    scores = score(root, embedder)
    pathlib.Path(root, f"scores_{index}.json").write_text(json.dumps(scores))
    pathlib.Path(root, f"read_{index}.json").write_text(json.dumps(read))
    for name, found in rank(mesh).items():
        arrays[f"ranking/{name}"] = found
    variables = flatten(end.own_variables)
    arrays |= {"variables/" + "/".join(path): x for path, x in variables.items()}
    if index == "0":
        np.savez(pathlib.Path(root) / "arrays.npz", **arrays)
        (pathlib.Path(root) / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
