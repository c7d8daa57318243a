"""Counts of the pairs that each rule of a build drops."""

from collections.abc import Callable
from typing import Any

import ibis

from data.corpus import rules

Execute = Callable[[ibis.Expr], Any]


def rule_names(flagged: ibis.Table) -> list[str]:
    """Returns the names of the rule columns of a table of flags, in order."""
    return [name for name in flagged.columns if name not in rules.PAIR_COLUMNS]


def count_rules(
    flagged: ibis.Table, execute: Execute, names: list[str] | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Returns the number of distinct pairs, and a row of counts for each rule.

    Args:
      flagged: distinct pairs with a boolean column per rule, true where it is broken.
      execute: function that evaluates an expression.
      names: rule columns in order; None for those of a build.

    Returns:
      The rows are {"rule", "breaks", "first"}, in the order of the columns.
    """
    names = rule_names(flagged) if names is None else names
    counts: dict[str, Any] = {"pairs": flagged.count()}
    earlier = ibis.literal(False)
    for name in names:
        counts[f"breaks {name}"] = flagged[name].cast("int64").sum()
        first = flagged[name] & ~earlier
        counts[f"first {name}"] = first.cast("int64").sum()
        earlier = earlier | flagged[name]
    row = execute(flagged.aggregate(**counts)).iloc[0]
    rows = [
        {"rule": name} | {n: int(row[f"{n} {name}"]) for n in ("breaks", "first")}
        for name in names
    ]
    return int(row["pairs"]), rows


def count_refusals(pictures: ibis.Table, execute: Execute) -> dict[str, int]:
    """Returns the number of pictures that cannot be decoded, by reason."""
    counts = execute(rules.count_refusals(pictures))
    numbers = map(int, counts["pictures"])
    return dict(sorted(zip(counts["reason"], numbers, strict=True)))
