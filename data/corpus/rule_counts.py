"""The rule columns of a table of flags, and counts of the rows that each drops."""

from typing import Any

import ibis

from data.corpus import rules
from data.corpus.engines import Execute


def rule_names(flagged: ibis.Table) -> list[str]:
    """Returns the names of a table's rule columns, its boolean ones, in order."""
    return [name for name, kind in flagged.schema().items() if kind.is_boolean()]


def unbroken(flagged: ibis.Table) -> ibis.Table:
    """Returns the rows that break no rule."""
    broken = [flagged[name] for name in rule_names(flagged)]
    return flagged.filter(~ibis.or_(*broken)) if broken else flagged


def count_rules(
    flagged: ibis.Table, execute: Execute
) -> tuple[int, list[dict[str, Any]]]:
    """Returns the number of rows, and a row of counts for each rule.

    Args:
      flagged: rows with a boolean column per rule, true where it is broken.
      execute: function that evaluates an expression.

    Returns:
      The rows are {"rule", "breaks", "first"}, in the order of the columns.
    """
    names = rule_names(flagged)
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
