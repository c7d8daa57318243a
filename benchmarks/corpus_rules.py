"""Several implementations of the corpus rules, for `benchmarks.corpus`.

Each one reads folder/pairs and folder/images and writes the rows it keeps to
out/kept.parquet. It returns, per rule, how many pairs break it and how many break it
before any other.
"""

import argparse
import dataclasses
import pathlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from data.corpus.rules import RuleBounds

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


def make_build(folder: pathlib.Path, out: pathlib.Path, flags: argparse.Namespace):
    """Returns a build in the new folder `out` on the pairs and pictures of `folder`."""
    from data.corpus.builder import Build
    from data.corpus.config import CorpusConfig, EngineConfig, PictureConfig
    from data.sources.config import SourceConfig

    (out / "stages").mkdir(parents=True)
    for name in ("pairs", "images"):
        (out / "stages" / name).symlink_to((folder / name).resolve())
    config = CorpusConfig(
        name="benchmark",
        seed=0,
        ingest=SourceConfig(kind="parquet", path=str(folder)),
        rules=RuleBounds(frequent_ngrams=flags.frequent_ngrams),
        vocabulary_size=100_000,
        pictures=PictureConfig(max_hash_distance=-1),
        engine=EngineConfig(workers=flags.threads, memory_limit=flags.memory_limit),
    )
    return Build(config, out)


def run_ours(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """Runs the stages of `data.corpus.builder.Build`."""
    build = make_build(folder, out, flags)
    build.distinct()
    cut = build.ngrams()
    build.flags()
    build.keep()
    shutil.copy(build.stage("kept"), out / "kept.parquet")
    rules = build.report(cut)["rules"]
    return {r["rule"]: [r["breaks"], r["first"]] for r in rules}


def run_lengths(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """Applies only bounds on the numbers of unigrams and of characters."""
    from data.corpus.ngrams import unigrams_of

    build, bounds = make_build(folder, out, flags), RuleBounds()
    pairs = build.shards("pairs")
    unigrams = unigrams_of(pairs).length()
    fits = unigrams.between(bounds.min_unigrams, bounds.max_unigrams)
    fits &= pairs.text.length().between(1, 1000)
    kept = pairs.filter(fits).select("image_id", "text", "key")
    build.engine.save(kept, out / "kept.parquet", "kept")
    return {}


def run_sql(folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """Runs hand-written SQL on DuckDB."""
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
    """Runs the tests' oracle, in plain Python."""
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
