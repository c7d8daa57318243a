"""Time and memory of the corpus rules, beside other ways to compute them.

    python -m benchmarks.corpus --pairs 500000 --json corpus.json

The rows are Zipf-like, made from a seed and kept in --folder. `ours` is the rule stages
of `data.corpus.builder.Build`, all of them written to disk; `sql` is DuckDB by hand,
which writes only the pairs kept; `oracle` is plain Python. The three must keep
identical rows and agree on every count. data-juicer counts words and characters only;
`lengths` is what of ours compares with it. Each run is a process of its own:
milliseconds are medians without imports, memory is the largest resident one of a
process. They take turns, so that a busy machine slows all of them.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import types

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.corpus.rules import RuleBounds

CHUNK = 250_000  # rows of a file
WORDS = 200_000
LONGEST = 28  # unigrams
UNIT = 2.0**-53

DATA_JUICER = """
import json, resource, sys, time
from data_juicer.core.data import NestedDataset
from data_juicer.ops.filter.text_length_filter import TextLengthFilter
from data_juicer.ops.filter.words_num_filter import WordsNumFilter
import datasets

files, cache, workers, shortest, longest = json.loads(sys.argv[1])
start = time.perf_counter()
rows = datasets.load_dataset(
    "parquet", data_files=files, split="train", columns=["text"], cache_dir=cache
)
rows = NestedDataset(rows)
for operator in (
    WordsNumFilter(min_num=shortest, max_num=longest, num_proc=workers),
    TextLengthFilter(min_len=1, max_len=1000, num_proc=workers),
):
    rows = operator.run(rows)
seconds = time.perf_counter() - start
usage = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
peak = max(resource.getrusage(who).ru_maxrss for who in usage) * 1024
found = {"milliseconds": 1e3 * seconds, "peak_bytes": peak, "kept": len(rows)}
print("RESULT" + json.dumps(found))
"""

SQL = """
create temp table pictures as
  select image_id, max(width) as width, max(height) as height, max(error) as error
  from read_parquet('{folder}/images/*.parquet') group by image_id;
create temp table pairs as
  select distinct image_id, text, language, key
  from read_parquet('{folder}/pairs/*.parquet');
create temp table texts as
  select text, count(*) as n, count(distinct image_id) as images,
    len(string_split(text, ' ')) as unigrams
  from pairs group by text;
create temp table grams as
  select word, following, sum(n) as n from (
    select n, unnest(words) as word, unnest(words[2:]) as following
    from (select n, string_split(text, ' ') as words from texts)
  ) group by word, following;
create temp table counts as
  select sum(n) as n from grams group by word
  union all select n from grams where following is not null;
create temp table cut as
  select min(n) as cut from (
    select n, sum(count(*)) over (order by n desc) as total from counts group by n
  ) where total <= {frequent_ngrams};
create temp table rare as
  select word, following from grams, cut where following is not null and n < cut;
create temp table rare_words as
  select word from grams, cut group by word, cut having sum(n) < cut;
create temp table rare_texts as
  select distinct text from (
    select text, unnest(words) as word, unnest(words[2:]) as following
    from (select text, string_split(text, ' ') as words from texts)
  ) semi join rare using (word, following)
  union select text from texts where unigrams = 1
    and text in (select word from rare_words);
create temp table busy as
  select image_id from pairs group by image_id
  having count(*) > {max_texts_per_image}
    and count(distinct text) > {max_texts_per_image};
create temp table flags as
  select p.image_id, p.text, p.key,
    coalesce(p.language, '') not in ({languages}) as other_language,
    i.width is null as no_image,
    i.error is not null as undecodable,
    coalesce(least(i.width, i.height) <= {min_shorter_side}, false) as shorter_side,
    coalesce(greatest(i.width, i.height)
      >= {max_aspect_ratio} * least(i.width, i.height), false) as aspect_ratio,
    b.image_id is not null as texts_per_image,
    false as evaluation_image,
    t.images > {max_images_per_text} as images_per_text,
    r.text is not null as rare_ngram,
    p.text = '' or t.unigrams < {min_unigrams} as too_short,
    t.unigrams > {max_unigrams} as too_long
  from pairs p left join pictures i using (image_id) left join busy b using (image_id)
    join texts t using (text) left join rare_texts r using (text);
"""


def mix(numbers: np.ndarray) -> np.ndarray:
    """Random-looking uint64 of any integers (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def rank(uniform: np.ndarray, n: int) -> np.ndarray:
    """Ranks 0 to n - 1, rank r as often as 1 / (r + 1), of uniform numbers."""
    return (np.exp(uniform * np.log(n + 1)) - 1).astype(np.int64)


def spell_words() -> pa.Array:
    """WORDS different words, frequent ones short."""
    syllables = [c + v for c in "bcdfghklmnprstvz" for v in "aeiou"]
    words = []
    for number in range(WORDS):
        word = ""
        while number >= 0:
            word += syllables[number % 80]
            number = number // 80 - 1
        words.append(word)
    return pa.array(words)


def spell_ids(numbers: np.ndarray) -> pa.Array:
    """32 hex digits of each number."""
    halves = np.stack([mix(numbers), mix(numbers + (1 << 40))], 1)  # (N, 2)
    content = halves.view(np.uint8)  # (N, 16)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[content >> 4], digits[content & 15]], 2)  # (N, 16, 2)
    offsets = np.arange(0, 32 * len(numbers) + 1, 32, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text.tobytes())]
    return pa.Array.from_buffers(pa.string(), len(numbers), buffers)


def draw_texts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Words (n, LONGEST) that mostly follow from the one before, and lengths (n,)."""
    words = np.empty((n, LONGEST), np.int64)
    words[:, 0] = rank(rng.random(n), WORDS)
    for i in range(1, LONGEST):
        state = mix(words[:, i - 1] * 64 + rank(rng.random(n), 64))
        usual = rank((state >> np.uint64(11)) * UNIT, WORDS)
        fresh = rank(rng.random(n), WORDS)
        words[:, i] = np.where(rng.random(n) < 0.85, usual, fresh)
    lengths = np.minimum(rng.geometric(0.3, n) + rng.poisson(5, n), LONGEST)
    short = rng.random(n) < 0.1
    return words, np.where(short, rng.integers(1, 4, n), lengths)


def draw_pairs(
    seed: int, chunk: int, n: int, images: int, pool: tuple, spelled: pa.Array
) -> pa.Table:
    """Pairs of one file; 30 % share a text of the pool, 3 % are repeated."""
    rng = np.random.default_rng((seed, 2, chunk))
    words, lengths = draw_texts(rng, n)
    shared = rng.random(n) < 0.3
    pick = rank(rng.random(shared.sum()), len(pool[1]))
    words[shared], lengths[shared] = pool[0][pick], pool[1][pick]
    popular = rank(rng.random(n), images)
    image = np.where(rng.random(n) < 0.1, popular, rng.integers(0, images, n))
    language = rng.choice(3, n, p=[0.9, 0.07, 0.03])
    again = rng.random(n) < 0.03
    source = np.maximum(np.arange(n) - rng.integers(1, 1000, n), 0)
    for column in (words, lengths, image, language):
        column[again] = column[source[again]]
    mask = np.arange(LONGEST) < lengths[:, None]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, spelled.take(pa.array(words[mask])))
    text = pc.binary_join(lists, " ")
    power = mix(np.arange(LONGEST)) | np.uint64(1)
    content = (np.where(mask, mix(words), np.uint64(0)) * power).sum(1)
    ids = spell_ids(image)
    capital = pa.array(rng.random(n) < 0.5)
    return pa.table(
        {
            "image_id": ids,
            "url": pc.binary_join_element_wise("https://example.com/", ids, ""),
            "alt_text": pc.if_else(
                capital, pc.utf8_capitalize(text), pc.utf8_upper(text)
            ),
            "text": text,
            "language": pa.array(["en", "de", None]).take(pa.array(language)),
            "key": mix(mix(image) ^ content).view(np.int64),
        }
    )


def draw_pictures(seed: int, chunk: int, numbers: np.ndarray) -> pa.Table:
    """Pictures of one file: 2 % are absent, 1 % broken."""
    rng = np.random.default_rng((seed, 3, chunk))
    numbers = numbers[rng.random(len(numbers)) > 0.02]
    n = len(numbers)
    width = np.exp(rng.normal(6.3, 0.5, n)).astype(np.int32)
    height = (width * np.exp(rng.normal(0, 0.4, n))).astype(np.int32)
    broken = rng.random(n) < 0.01
    width[broken] = height[broken] = 0
    missing = pa.scalar(None, pa.string())
    return pa.table(
        {
            "image_id": spell_ids(numbers),
            "shard": np.full(n, chunk, np.int32),
            "bytes": width.astype(np.int64) * height // 8,
            "width": width,
            "height": height,
            "format": ["JPEG"] * n,
            "phash": mix(numbers).view(np.int64),
            "error": pc.if_else(pa.array(broken), "broken", missing),
        }
    )


def generate(folder: pathlib.Path, pairs: int, seed: int) -> None:
    """Writes folder/pairs and folder/images, unless they are there."""
    if folder.exists():
        return
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in ("pairs", "images"):
        (temporary / name).mkdir(parents=True)
    spelled, images = spell_words(), max(1, pairs * 6 // 10)
    pool = draw_texts(np.random.default_rng((seed, 1)), max(10, pairs // 20))
    for chunk, start in enumerate(range(0, pairs, CHUNK)):
        n = min(CHUNK, pairs - start)
        table = draw_pairs(seed, chunk, n, images, pool, spelled)
        pq.write_table(table, temporary / "pairs" / f"{chunk:05}.parquet")
    for chunk, start in enumerate(range(0, images, CHUNK)):
        numbers = np.arange(start, min(start + CHUNK, images))
        table = draw_pictures(seed, chunk, numbers)
        pq.write_table(table, temporary / "images" / f"{chunk:05}.parquet")
    temporary.rename(folder)


def _build(folder: pathlib.Path, out: pathlib.Path, flags: argparse.Namespace):
    from data.corpus.builder import Build
    from data.corpus.config import EngineConfig, PictureConfig

    (out / "stages").mkdir(parents=True)
    for name in ("pairs", "images"):
        (out / "stages" / name).symlink_to((folder / name).resolve())
    config = types.SimpleNamespace(
        name="benchmark",
        engine=EngineConfig(workers=flags.threads, memory_limit=flags.memory_limit),
        rules=RuleBounds(frequent_ngrams=flags.frequent_ngrams),
        pictures=PictureConfig(max_hash_distance=-1),
        evaluation_images="",
    )
    return Build(config, out)


def run_ours(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """The stages of `data.corpus.builder.Build`."""
    build = _build(folder, out, flags)
    build.distinct()
    cut = build.ngrams()
    build.flags()
    build.keep()
    shutil.copy(build.stage("kept"), out / "kept.parquet")
    rules = build.report(cut)["rules"]
    return {r["rule"]: [r["breaks"], r["first"]] for r in rules}


def run_lengths(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """Only the rules on the number of unigrams."""
    from data.corpus.ngrams import unigrams_of

    build, bounds = _build(folder, out, flags), RuleBounds()
    pairs = build.shards("pairs")
    unigrams = unigrams_of(pairs).length()
    fits = unigrams.between(bounds.min_unigrams, bounds.max_unigrams)
    fits &= pairs.text.length().between(1, 1000)
    kept = pairs.filter(fits).select("image_id", "text", "key")
    build.engine.save(kept, out / "kept.parquet", "kept")
    return {}


def run_sql(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """DuckDB by hand."""
    import duckdb

    out.mkdir()
    settings = {
        "memory_limit": flags.memory_limit,
        "threads": flags.threads,
        "temp_directory": str(out / "spill"),
        "preserve_insertion_order": False,
    }
    database = duckdb.connect(config=settings)
    bounds = dataclasses.asdict(RuleBounds(frequent_ngrams=flags.frequent_ngrams))
    bounds["languages"] = ", ".join(f"'{name}'" for name in bounds["languages"])
    database.execute(SQL.format(folder=folder, **bounds))
    columns = [row[0] for row in database.execute("describe flags").fetchall()]
    rules = [n for n in columns if n not in ("image_id", "text", "key")]
    database.execute(
        "copy (select distinct image_id, text, key from flags where not"
        f" ({' or '.join(rules)})) to '{out}/kept.parquet'"
    )
    sums = []
    for i, rule in enumerate(rules):
        earlier = " or ".join(rules[:i]) or "false"
        sums += [f"count_if({rule})", f"count_if({rule} and not ({earlier}))"]
    found = database.execute(f"select {', '.join(sums)} from flags").fetchone()
    return {rule: list(found[2 * i : 2 * i + 2]) for i, rule in enumerate(rules)}


def run_oracle(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """Plain Python."""
    from tests.data.corpus import corpus_oracle

    out.mkdir()
    columns = ["image_id", "text", "language", "key"]
    pairs = pq.read_table(folder / "pairs", columns=columns).to_pydict()
    images = pq.read_table(
        folder / "images", columns=["image_id", "width", "height", "error"]
    ).to_pydict()
    sizes = zip(images["width"], images["height"], images["error"], strict=True)
    found = corpus_oracle.decide(
        zip(pairs["image_id"], pairs["text"], pairs["language"], strict=True),
        dict(zip(images["image_id"], sizes, strict=True)),
        RuleBounds(frequent_ngrams=flags.frequent_ngrams),
    )
    names = zip(pairs["image_id"], pairs["text"], strict=True)
    keys = dict(zip(names, pairs["key"], strict=True))
    kept = list({pair[:2] for pair, broken in found.items() if not broken})
    table = {
        "image_id": [image for image, _ in kept],
        "text": [text for _, text in kept],
        "key": [keys[pair] for pair in kept],
    }
    pq.write_table(pa.table(table), out / "kept.parquet")
    counts = corpus_oracle.count_rules(found)
    return {rule: list(pair) for rule, pair in counts.items()}


IMPLEMENTATIONS = {
    "ours": run_ours,
    "sql": run_sql,
    "oracle": run_oracle,
    "lengths": run_lengths,
}


def peak_bytes() -> int:
    """The largest resident memory of this process.

    Not ru_maxrss, which starts at what the parent held when it started us.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status; this benchmark wants Linux")


def run_child(name: str, folder: pathlib.Path, out: pathlib.Path, flags) -> None:
    """Runs one implementation here and prints what it took."""
    if name in ("ours", "lengths"):  # imports are not timed, but need memory
        import data.corpus.builder  # noqa: F401
    else:
        import duckdb  # noqa: F401

        import tests.data.corpus.corpus_oracle  # noqa: F401

    start = time.perf_counter()
    rules = IMPLEMENTATIONS[name](folder, out, flags)
    seconds = time.perf_counter() - start
    found = {
        "milliseconds": 1e3 * seconds,
        "peak_bytes": peak_bytes(),
        "kept": pq.read_metadata(out / "kept.parquet").num_rows,
        "rules": rules,
    }
    print("RESULT" + json.dumps(found))


def start(command: list[str], **arguments) -> dict:
    """Runs a process to its end; returns the result that it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **arguments)
    results = [x for x in done.stdout.splitlines() if x.startswith("RESULT")]
    if done.returncode or not results:
        tail = "\n".join(done.stderr.splitlines()[-8:])
        raise SystemExit(f"{command[:4]} ended with {done.returncode}:\n{tail}")
    return json.loads(results[-1].removeprefix("RESULT"))


def run_once(name: str, folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """One run of one implementation in a new process."""
    shutil.rmtree(out, ignore_errors=True)
    if name.startswith("data-juicer"):
        out.mkdir(parents=True)
        bounds, workers = RuleBounds(), int(name.rpartition("-")[2])
        files = sorted(map(str, folder.resolve().glob("pairs/*.parquet")))
        cache = str(out.resolve())
        arguments = [files, cache, workers, bounds.min_unigrams, bounds.max_unigrams]
        script = out / "run.py"
        script.write_text(DATA_JUICER)
        command = [flags.data_juicer, str(script.resolve()), json.dumps(arguments)]
        return start(command, cwd=out, env={**os.environ, "HF_HOME": cache})
    command = [sys.executable, "-m", "benchmarks.corpus", "--child", name]
    command += ["--pairs", str(flags.pairs), "--seed", str(flags.seed)]
    command += ["--folder", str(flags.folder), "--threads", str(flags.threads)]
    command += ["--memory-limit", flags.memory_limit]
    return start(command + ["--frequent-ngrams", str(flags.frequent_ngrams)])


def check_same(results: dict[str, dict], out: pathlib.Path) -> None:
    """Ends the benchmark where implementations differ in rows or counts."""
    names = [name for name in ("ours", "sql", "oracle") if name in results]
    order = [(n, "ascending") for n in ("image_id", "text", "key")]
    first = None
    for name in names:
        table = pq.read_table(out / name / "kept.parquet").sort_by(order)
        rules = {r: c for r, c in results[name]["rules"].items() if any(c)}
        if first is None:
            first = table, rules
        elif not table.equals(first[0].cast(table.schema)):
            raise SystemExit(f"{name} and {names[0]} keep different rows")
        elif rules != first[1]:
            raise SystemExit(f"{name} counts {rules}, {names[0]} {first[1]}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default="runs/benchmark_corpus")
    parser.add_argument("--memory-limit", default="4GB")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--frequent-ngrams", type=int, help="default: 0.6 a pair")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=IMPLEMENTATIONS)
    parser.add_argument("--data-juicer", help="Python that has py-data-juicer")
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.frequent_ngrams is None:
        flags.frequent_ngrams = flags.pairs * 6 // 10
    folder = flags.folder / f"{flags.pairs}_{flags.seed}"
    out = flags.folder / "out"
    if flags.child == "generate":
        generate(folder, flags.pairs, flags.seed)
        print("RESULT{}")
        return
    if flags.child:
        run_child(flags.child, folder, out / flags.child, flags)
        return
    out.mkdir(parents=True, exist_ok=True)
    run_once("generate", folder, out / "generate", flags)
    names = flags.only or list(IMPLEMENTATIONS)
    if flags.data_juicer:
        names = [*names, "data-juicer-1", "data-juicer-2"]
    elif not flags.only:
        print("data-juicer is left out; --data-juicer names a Python that has it")
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(flags.repeats):
        for name in names:
            runs[name].append(run_once(name, folder, out / name, flags))
    check_same({name: found[-1] for name, found in runs.items()}, out)
    report(runs, flags)


def report(runs: dict[str, list[dict]], flags: argparse.Namespace) -> None:
    """Prints the table and writes the rows."""
    print(f"{flags.pairs} pairs, {flags.threads} threads, limit {flags.memory_limit}")
    print(f"{'implementation':<15}{'ms':>9}{'/ ours':>8}{'peak MiB':>10}{'kept':>9}")
    rows = []
    for name, found in runs.items():
        times = [run["milliseconds"] for run in found]
        row = {
            "implementation": name,
            "pairs": flags.pairs,
            "milliseconds": statistics.median(times),
            "all_milliseconds": times,
            "peak_bytes": max(run["peak_bytes"] for run in found),
            "kept": found[-1]["kept"],
            "rules": found[-1].get("rules", {}),
            "memory_limit": flags.memory_limit,
            "threads": flags.threads,
        }
        rows.append(row)
        ours = [r["milliseconds"] for r in rows if r["implementation"] == "ours"]
        ratio = f"{row['milliseconds'] / ours[0]:.2f}" if ours else ""
        print(
            f"{name:<15}{row['milliseconds']:>9.0f}{ratio:>8}"
            f"{row['peak_bytes'] / 2**20:>10.0f}{row['kept']:>9}"
        )
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
