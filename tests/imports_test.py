import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
GROUND = """errors config command_line contracts places locks progress quiet
    picture_limits picture_orientation pictures ranges texts dataset_folder shard_files
    tars tar_index""".split()
ROOMS = {
    "align_jax": """devices input kernels models losses runs training weights embed
        evaluation report search sweep""".split(),
    "data": """sources records pictures corpus curation doctor evaluation_sets
        samples""".split(),
}


def imports_of(path: pathlib.Path) -> set[str]:
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return names | {f"{n.module}.{a.name}" for n in froms for a in n.names}


def test_a_room_imports_only_the_ground_floor_and_rooms_before_it():
    for package, rooms in ROOMS.items():
        for path in (ROOT / package).rglob("*.py"):
            place = path.relative_to(ROOT / package).with_suffix("").parts[0]
            before = rooms[: rooms.index(place) + 1] if place in rooms else []
            allowed = {"align_jax": GROUND, "data": []} | {package: GROUND + before}
            for top, _, rest in (name.partition(".") for name in imports_of(path)):
                program = top == package and place not in GROUND + rooms
                if top in ROOMS and not program:
                    assert rest.split(".")[0] in allowed[top], (path, rest)


def test_the_core_runs_without_tensorflow():
    core = """losses.objective training.train_step training.flops training.optimizer
        embed.model embed.shards search.indexing search.server report.summary"""
    absent = ["tensorflow", "tensorflow_text", "tensorflow_datasets", "clu"]
    lines = [f"import sys; sys.modules.update(dict.fromkeys({absent}))"]
    lines += [f"import align_jax.{name}" for name in core.split()]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=ROOT)
