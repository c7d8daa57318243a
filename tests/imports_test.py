import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]

# A file of align_jax imports only files that stand before it.
ORDER = """
errors config tokenizer scratch pictures resample preprocess image_batches record_order
datasets training_data input_pipeline
sharding kernels
models.layers models.image_walks models.batch_norm models.convolution
models.depthwise_lanes models.depthwise_kernel models.depthwise_mosaic
models.mbconv models.efficientnet
models.bert
models.dual_encoder models.classifier parameters
loss_tiles logit_kernels loss_kernels loss sigmoid_loss objective optimizer train_step
flops workdir checkpoint
run_config pretrain_config classify_config training_runs
weights convert.huggingface convert.huggingface_folder convert.efficientnet_checkpoint
convert.source initialize runtime convert.__main__ embedding model
embedding_shards embed scores ranking
devices plan pace
examples linear_classifier evaluators.prompts evaluators.zero_shot
evaluators.classification evaluators.retrieval evaluators.linear_probe
evaluators.few_shot
evaluators.crisscrossed evaluators.neighbours evaluators.word_similarity evaluators
telemetry results provenance pages run_report saved_embeddings evaluate preemption train
random_search_config random_search run_kinds found_runs report
picture_collection queries vector_index indexing
uploads batching search_bodies search_guard search_server search
command_line sweep_config sweep_status launchers sweep
""".split()

CORE = [name for name in ORDER if name.startswith("models.")] + [
    "sharding",
    "loss_tiles",
    "logit_kernels",
    "loss_kernels",
    "loss",
    "sigmoid_loss",
    "objective",
    "optimizer",
    "train_step",
    "flops",
]


def imports_of(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return names


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT / "align_jax").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {
    module_of(path): path
    for path in (ROOT / "align_jax").rglob("*.py")
    if path.read_text().count("\n") > 1
}
FILES = {name: path for name, path in FILES.items() if name not in ("", "models")}


def test_every_module_has_a_place_in_the_line():
    assert sorted(FILES) == sorted(ORDER)


def test_a_file_imports_only_what_stands_before_it():
    for name, path in FILES.items():
        later = {f"align_jax.{other}" for other in ORDER[ORDER.index(name) :]}
        assert not imports_of(path) & later, name


def test_core_modules_never_import_tensorflow():
    def reached(name: str) -> set[str]:
        found = imports_of(FILES[name])
        own = [n for n in ORDER if f"align_jax.{n}" in found]
        return found.union(*(reached(n) for n in own))

    for name in CORE:
        roots = {imported.split(".")[0] for imported in reached(name)}
        assert not roots & {"tensorflow", "tensorflow_datasets", "clu"}, name


def test_corpus_builder_and_training_never_import_each_other():
    for path in (ROOT / "data").glob("*.py"):
        assert not any(n.split(".")[0] == "align_jax" for n in imports_of(path))
    for path in FILES.values():
        assert not any(n.split(".")[0] == "data" for n in imports_of(path))


def test_model_init_and_apply_appear_in_two_files_only():
    users = [n for n, p in FILES.items() if "model.apply(" in p.read_text()]
    users += [n for n, p in FILES.items() if "model.init(" in p.read_text()]
    assert set(users) == {"train_step", "embedding"}
