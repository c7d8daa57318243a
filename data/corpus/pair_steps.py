"""Steps that compare the pairs that no rule dropped, one after the other.

To add a step, add one `PairStep` to `PAIR_STEPS`; its rules' columns, counts and part
of the page follow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ibis

from data.corpus.balance import (
    BALANCE_RULES,
    balance_pairs,
    check_balance,
    describe_balance,
    judge_balance,
)
from data.corpus.config import CorpusConfig
from data.corpus.copies import (
    COPY_RULES,
    describe_copies,
    judge_copies,
    keep_originals,
)
from data.corpus.embedding_copies import (
    EMBEDDING_COPY_RULES,
    describe_embedding_copies,
    judge_embedding_copies,
    keep_embedding_originals,
)
from data.corpus.pair_embeddings import check_pair_model
from data.corpus.pair_scores import (
    PAIR_SCORE_RULES,
    describe_scores,
    judge_scores,
    keep_scored,
)
from data.corpus.rules import Rule
from data.corpus.stage_tables import StageTables


@dataclasses.dataclass(frozen=True)
class PairStep:
    """A step after all rules on single pairs and pictures.

    Attributes:
      rules: rules of the step by name; `breaks` is not used.
      is_on: function that returns whether a config asks for the step.
      check: function that raises InputError if something is missing; the build calls it
        before anything is written.
      keep: function from the pairs that are left, columns image_id, text and key, to
        those that the step keeps. It writes the stages that `judge` needs.
      judge: function that adds a boolean column for each rule to any pairs, true where
        a pair breaks it. A pair that did not reach the step breaks no rule.
      describe: function that returns the step's part of the report.
    """

    rules: dict[str, Rule]
    is_on: Callable[[CorpusConfig], bool]
    check: Callable[[CorpusConfig], None]
    keep: Callable[[StageTables, ibis.Table], ibis.Table]
    judge: Callable[[StageTables, ibis.Table], ibis.Table]
    describe: Callable[[StageTables], dict[str, Any]]


# By the name of the step's part of the report, in order.
PAIR_STEPS: dict[str, PairStep] = {
    "copies": PairStep(
        rules=COPY_RULES,
        is_on=lambda config: config.copies.max_hash_distance >= 0,
        check=lambda config: None,
        keep=keep_originals,
        judge=judge_copies,
        describe=describe_copies,
    ),
    "embedding_copies": PairStep(
        rules=EMBEDDING_COPY_RULES,
        is_on=lambda config: bool(config.copies.max_cosine),
        # The next step, if it is on, loads the same model.
        check=lambda config: (
            None
            if config.embeddings.bounds
            else check_pair_model(config.embeddings.model)
        ),
        keep=keep_embedding_originals,
        judge=judge_embedding_copies,
        describe=describe_embedding_copies,
    ),
    "pair_scores": PairStep(
        rules=PAIR_SCORE_RULES,
        is_on=lambda config: bool(config.embeddings.bounds),
        check=lambda config: check_pair_model(config.embeddings.model),
        keep=keep_scored,
        judge=judge_scores,
        describe=describe_scores,
    ),
    "balance": PairStep(
        rules=BALANCE_RULES,
        is_on=lambda config: bool(config.balance.entries),
        check=lambda config: check_balance(config.balance),
        keep=balance_pairs,
        judge=lambda stages, flagged: judge_balance(flagged, stages.shards("balance")),
        describe=describe_balance,
    ),
}

# The steps that drop copies; each writes the copies to a stage of the step's name.
COPIES = ("copies", "embedding_copies")


def list_steps(config: CorpusConfig) -> dict[str, PairStep]:
    """Returns the steps that a config asks for, by name, in order."""
    return {name: step for name, step in PAIR_STEPS.items() if step.is_on(config)}


def list_step_rules() -> dict[str, Rule]:
    """Returns the rules of all steps by name."""
    return {n: rule for step in PAIR_STEPS.values() for n, rule in step.rules.items()}
