"""Writes the model card, README.md, of a folder for the Hugging Face hub."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from align_jax import places
from align_jax.config import CONFIG_FILE
from align_jax.errors import InputError
from align_jax.input.wordpiece import WordPiece
from align_jax.models.dual_encoder import ModelConfig
from align_jax.report.corpora import read_corpora
from align_jax.runs.results import (
    PUBLISHED,
    number_remarks,
    published_columns,
    read_results,
    table_rows,
)
from align_jax.runs.workdir import RESULTS_FILE
from align_jax.training.training_runs import TRAINING
from align_jax.weights.clip_config import find_form
from align_jax.weights.clip_forms import CLIP, SIGLIP
from align_jax.weights.folder import Weights, is_dual_encoder

CARD_FILE = "README.md"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def make_card(
    source: str, weights: Weights[Any], name: str, licence: str | None = None
) -> str:
    """Describes a dual encoder in Markdown, with the hub's fields at its beginning.

    Config, corpora and scores are those of the training run, if the source is one. The
    scores of a finished run are those of its last checkpoint, so they are left out if
    the weights are another one.

    Args:
      source: source of the weights, see `open_weights`.
      weights: the weights, not narrowed.
      name: name of the model on the hub, "ORG/NAME", or of its folder.
      licence: the hub's identifier of the licence, such as "apache-2.0", or None.

    Raises:
      InputError: the weights are not those of a dual encoder, the licence is no
        identifier, or a file of the run is damaged.
    """
    if not is_dual_encoder(weights) or weights.preprocess is None:
        raise InputError(f"a card is for a dual encoder; this is a {weights.kind}")
    if licence is not None and not LICENCE.fullmatch(licence):
        raise InputError(
            f"the licence is {licence!r}; wanted an identifier of the hub, such as"
            " 'apache-2.0' or 'other'"
        )
    workdir, fields = _find_run(source)
    corpora = read_corpora(fields)
    parts = [
        _front_matter(licence, weights.config),
        f"# {name.rpartition('/')[2]}",
        f"A dual encoder of pictures and texts after {_family(weights.config).after},"
        f" {'trained with' if fields else 'converted by'} align_jax.",
        _use(name, weights.config),
        *_describe_model(weights),
        *(_describe_training(fields, corpora) if fields else []),
        *_describe_scores(workdir, weights.step),
        *_describe_limits(weights, corpora),
        *([_config(fields)] if fields else []),
    ]
    return "\n\n".join(parts) + "\n"


def _find_run(source: str) -> tuple[str | None, Mapping[str, Any]]:
    """Returns the workdir of a source and its literal config; (None, {}) if no run."""
    place = places.resolve(source).rstrip("/")
    for folder in (place, os.path.dirname(os.path.dirname(place))):
        path = os.path.join(folder, CONFIG_FILE)
        if places.exists(path):
            fields = places.read_object(path)
            if fields.get("run") in TRAINING:
                return folder, fields
    return None, {}


class Family(NamedTuple):
    """The models of transformers that a model is written as.

    Attributes:
      after: name and address of the paper.
      model: class of the model.
      processor: class of its processor.
      tag: the hub's tag.
    """

    after: str
    model: str
    processor: str
    tag: str


FAMILIES = {
    "align": Family(
        "ALIGN ([arXiv 2102.05918](https://arxiv.org/abs/2102.05918))",
        "AlignModel",
        "AlignProcessor",
        "align",
    ),
    CLIP: Family(
        "CLIP ([arXiv 2103.00020](https://arxiv.org/abs/2103.00020))",
        "CLIPModel",
        "CLIPProcessor",
        "clip",
    ),
    SIGLIP: Family(
        "SigLIP ([arXiv 2303.15343](https://arxiv.org/abs/2303.15343))",
        "SiglipModel",
        "SiglipProcessor",
        "siglip",
    ),
}


def _family(config: ModelConfig) -> Family:
    is_vit = config.image_tower.kind == "vit"
    return FAMILIES[find_form(config) if is_vit else "align"]


def _front_matter(licence: str | None, config: ModelConfig) -> str:
    lines = [
        "---",
        *([f"license: {licence}"] if licence else []),
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        "tags:",
        f"- {_family(config).tag}",
        "- dual-encoder",
        "---",
    ]
    return "\n".join(lines)


def _use(name: str, config: ModelConfig) -> str:
    _, model, processor, _ = _family(config)
    return f"""## Use

```python
from transformers import {model}, {processor}

model = {model}.from_pretrained("{name}")
processor = {processor}.from_pretrained("{name}")
```

`align_jax.load` reads a local copy of this folder."""


def _describe_model(weights: Weights[ModelConfig]) -> Iterator[str]:
    config, preprocess = weights.config, weights.preprocess
    assert preprocess is not None
    image, text = config.image_tower, config.text_tower
    count = sum(a.size for path, a in weights.variables.items() if path[0] == "params")
    facts = {
        "parameters": f"{count:,}",
        "image tower": f"{image.kind}, {preprocess.image_size} pixels",
        "text tower": f"{text.kind}, {text.max_tokens} tokens",
        "vocabulary": str(weights.tokenizer),
        "embedding": f"{config.width} numbers",
        "training steps": "unknown" if weights.step is None else f"{weights.step:,}",
    }
    yield "## Model"
    yield _table(["", ""], [[name, value] for name, value in facts.items()])


def _describe_training(
    fields: Mapping[str, Any], corpora: Mapping[str, Any]
) -> Iterator[str]:
    batch = fields["virtual_cores"] * fields["pairs_per_core"]
    yield "## Training"
    yield f"{fields['total_steps']:,} steps of {batch:,} pairs were planned, on:"
    lines = []
    for name in fields["input"]["datasets"]:
        corpus = corpora.get(name, {})
        line = f"* {name}"
        if "pairs_kept" in corpus:
            line += (
                f": a corpus of {corpus['pairs_kept']:,} pairs, which rules chose among"
                f" {corpus['pairs_in']:,}"
            )
        lines.append(line)
    yield "\n".join(lines)
    for name, corpus in corpora.items():
        dropped = [
            [rule["rule"], f"{rule['first']:,}"]
            for rule in corpus["rules"]
            if rule["first"]
        ]
        if dropped:
            yield f"Pairs that the rules of {name} dropped:"
            yield _table(["rule", "pairs"], dropped)


def _describe_scores(workdir: str | None, step: int | None) -> Iterator[str]:
    yield "## Scores"
    path = os.path.join(workdir or "", RESULTS_FILE)
    results = read_results(path) if workdir and places.exists(path) else {}
    rows = table_rows(results) if results.get("step") == step else []
    if not rows:
        yield "There are no scores of these weights."
        return
    columns = published_columns([row.published for row in rows])
    titles = ["measure", "these weights", "before training", "chance", "queries"]
    titles += [PUBLISHED["columns"][i] for i in columns]
    yield (
        f"Scores after step {step:,}, beside those of a random order and, where there"
        " are any, published ones."
    )
    yield _table(
        titles,
        [
            [
                f"{row.name.removeprefix('eval/')} {row.marks}".strip(),
                *map(_number, (row.value, row.untrained, row.chance)),
                "" if row.queries is None else f"{row.queries:,}",
                *(_number(row.published[i]) for i in columns),
            ]
            for row in rows
        ],
    )
    remarks = number_remarks(row.name for row in rows)[1]
    if columns:
        yield f"Published scores: {PUBLISHED['source']}"
    if remarks:
        yield "\n".join(f"{i}. {text}" for i, text in enumerate(remarks, 1))


def _describe_limits(
    weights: Weights[ModelConfig], corpora: Mapping[str, Any]
) -> Iterator[str]:
    assert weights.preprocess is not None
    side, tokens = weights.preprocess.image_size, weights.config.text_tower.max_tokens
    squashed = weights.preprocess.evaluation_resize == "squash"
    resized = "resized to a square" if squashed else "resized by its shorter side"
    no_case = isinstance(weights.tokenizer, WordPiece)
    lines = [
        "* Only the scores above were measured. How the model treats groups of people"
        " was not.",
        "* Texts of the web are often wrong about their pictures, and the model learned"
        " from them. Its answers are similarities, not facts.",
        f"* A picture is {resized} and cut to {side} x {side} pixels; smaller details"
        " are lost.",
        f"* A text is cut after {tokens} tokens"
        + (", and letters have no case." if no_case else "."),
    ]
    off = [
        f"{rule['rule']} ({name})"
        for name, corpus in corpora.items()
        for rule in corpus.get("off", ())
    ]
    if off:
        lines.append(f"* No pair was dropped by these rules: {', '.join(off)}.")
    yield "## Limits"
    yield "\n".join(lines)


def _config(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    return f"## Config of the run\n\n```json\n{text}\n```"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
