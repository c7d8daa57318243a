"""The report page of a finished corpus: counts and sample pictures of each rule.

The page is one HTML file that has no scripts and loads nothing from elsewhere. Texts
and pictures of a crawl can be hostile. So texts are escaped, pictures are decoded and
encoded again as small JPEG files, and pornographic pictures are withheld. The engine
computes the counts. The samples are the pairs of lowest shuffle key, hence random.
"""

import base64
import json
import pathlib
from collections.abc import Callable
from typing import Any

import ibis
import jinja2

from align_jax import places
from align_jax.pictures import PictureError, small_jpeg
from data.corpus.engines import Execute
from data.corpus.pair_steps import list_step_rules
from data.corpus.picture_rules import PICTURE_RULES, PictureRule
from data.corpus.plots import draw_balance, draw_cosines, draw_plots
from data.corpus.rules import RULES, Rule
from data.corpus.score_ranks import draw_scores

TEMPLATES = pathlib.Path(__file__).parent

KEPT_PAIRS = 24
DROPPED_PAIRS = 8  # per rule
SHOWN_CHARACTERS = 240  # of a text
THUMBNAIL_SIDE = 144  # pixels
JPEG_QUALITY = 70


def write_page(
    report: dict[str, Any],
    tables: dict[str, ibis.Table],
    read_pictures: Callable[[list[str]], dict[str, bytes]],
    path: pathlib.Path,
    execute: Execute,
) -> None:
    """Writes the report page of a corpus.

    Args:
      report: the build's report: `pairs_in`, `pairs_kept` and `rules` (list of
        {"rule", "breaks", "first"}, in order: the name, the number of pairs that break
        the rule, and of those that break no earlier rule). Optional: `name`, `config`,
        `pairs_raw`, `images_kept`, `ngram_cut`, `drops` ({reason: count} of unreadable
        source rows), `off` (list of {"rule", "reason"}), `not_embedded` ({label:
        count}) and the parts of the steps by their names, see `PAIR_STEPS`.
      tables: the stages `pictures`, `ngrams` and `kept`; `flags` with a column for
        every rule; `scores` if pictures were compared by their embeddings;
        `pair_scores` if pairs were scored; `copies` if copies were dropped;
        `entry_counts` if concepts were balanced.
      read_pictures: function from image ids to the files' bytes by image id; some
        pictures may be missing from its result.
      path: path of the page.
      execute: function that evaluates an expression on the engine of the tables.
    """
    config = report.get("config") or {}
    samples = sample_pairs(report, tables, execute)
    samples["copies"] = sample_copies(tables.get("copies"), execute)
    show_pictures(samples, tables["pictures"], read_pictures, execute)
    page = render(
        "page.html",
        name=report.get("name") or config.get("name") or path.parent.name,
        figures=headline(report),
        off=report.get("off", []),
        not_embedded=report.get("not_embedded", {}),
        rules=describe_rules(report),
        drops=report.get("drops", {}),
        plots=draw_plots(report, tables, execute)
        + draw_cosines(report, tables, execute)
        + draw_pair_scores(report, tables, execute)
        + draw_balance(report, tables, execute),
        balance=describe_entries(report.get("balance")),
        kept=samples.pop("kept"),
        copies=samples.pop("copies"),
        samples=samples,
        settings=describe_config(config),
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )
    places.write_text(path, page)


def render(template: str, **fields: Any) -> str:
    """Fills a template of this folder; texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**fields)


def read_files(
    images: ibis.Table, execute: Execute, image_ids: list[str]
) -> dict[str, bytes]:
    """Returns the files of pictures by image id, as far as they are in `images`."""
    found = images.filter(images.image_id.isin(image_ids))
    frame = execute(found.select("image_id", "image"))
    rows = zip(frame["image_id"], frame["image"], strict=True)
    return {name: bytes(image) for name, image in rows if image is not None}


def headline(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the figures at the top of the page, as (label, formatted figure)."""
    names = {
        "pairs_raw": "raw pairs",
        "pairs_in": "distinct pairs",
        "pairs_kept": "pairs kept",
        "images_kept": "pictures kept",
    }
    figures = [(n, f"{report[k]:,}") for k, n in names.items() if k in report]
    kept = share(report["pairs_kept"], report["pairs_in"])
    return [*figures, ("of the distinct pairs kept", kept)]


def list_rules() -> dict[str, Rule | type[PictureRule]]:
    """Returns all rules by name; each has `meaning`, `bound` and `withheld`."""
    return {**RULES, **PICTURE_RULES, **list_step_rules()}


def describe_rules(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of rules.

    A row has the report's fields and "meaning", "bound" (formatted), "share" (formatted
    share of pairs that this rule drops first), "width" (that share in percent) and
    "off" (whether the rule is off).
    """
    config = report.get("config") or {}
    bounds = {**config.get("pictures", {}), **config.get("rules", {})}
    bounds |= report.get("pair_scores", {})
    copies = config.get("copies", {})
    bounds["max_copy_distance"] = copies.get("max_hash_distance")
    bounds["max_copy_cosine"] = copies.get("max_cosine")
    off = {row["rule"] for row in report.get("off", [])}
    known = list_rules()
    rows = []
    for row in report["rules"]:
        rule = known.get(row["rule"])
        bound = bounds.get(rule.bound, "") if rule else ""
        if isinstance(bound, list | tuple):
            bound = ", ".join(map(str, bound))
        elif isinstance(bound, int):
            bound = f"{bound:,}"
        elif isinstance(bound, float):
            bound = f"{bound:.6g}"
        rows.append(
            {
                **row,
                "meaning": rule.meaning if rule else "",
                "bound": bound,
                "share": share(row["first"], report["pairs_in"]),
                "width": 100 * row["first"] / max(report["pairs_in"], 1),
                "off": row["rule"] in off,
            }
        )
    return rows


def draw_pair_scores(
    report: dict[str, Any], tables: dict[str, ibis.Table], execute: Execute
) -> list[dict[str, str]]:
    """Draws the histogram of the likeness of pictures and texts.

    Returns:
      One result of `plot` in a list; an empty list if `tables` has no `pair_scores`.
    """
    if "pair_scores" not in tables:
        return []
    scores = tables["pair_scores"]
    kept = scores.semi_join(tables["kept"], ["image_id", "text"])
    bound = round(report["pair_scores"]["min_score"], 6)
    series = {"all": scores, "kept": kept}
    return [draw_scores("cosine of picture and text", series, bound, execute)]


def describe_entries(balance: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the balance of concepts with printable entries; None if it is off."""
    if balance is None:
        return None
    top = [row | {"entry": printable(row["entry"])} for row in balance["top"]]
    return balance | {"top": top}


def share(part: int, whole: int) -> str:
    """Formats part / whole in percent; only exact 0 and 100 give 0.0 % and 100.0 %."""
    percent = 100 * part / max(whole, 1)
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %"


def describe_config(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the config's non-empty scalar fields as (name, text); cuts long texts."""
    return [
        (name, str(value)[:SHOWN_CHARACTERS])
        for name, value in config.items()
        if not isinstance(value, dict | list | tuple) and value not in ("", None)
    ]


def sample_pairs(
    report: dict[str, Any], tables: dict[str, ibis.Table], execute: Execute
) -> dict[str, list[dict[str, Any]]]:
    """Returns samples of the kept pairs and of the pairs that each rule dropped first.

    Args:
      report: the report of the build.
      tables: the stages `kept` and `flags`, see `write_page`.
      execute: function that evaluates an expression.

    Returns:
      Pairs as {"image_id", "text"}, by rule name or "kept". A rule's pairs break it and
      no earlier rule.
    """
    kept, flags = tables["kept"], tables["flags"]
    samples = {"kept": lowest_pairs(kept, KEPT_PAIRS, execute)}
    earlier = ibis.literal(False)
    for row in report["rules"]:
        broken = flags[row["rule"]].fill_null(False)
        samples[row["rule"]] = []
        if row["first"]:
            first = flags.filter(broken & ~earlier)
            samples[row["rule"]] = lowest_pairs(first, DROPPED_PAIRS, execute)
        earlier = earlier | broken
    return samples


def sample_copies(copies: ibis.Table | None, execute: Execute) -> list[dict[str, Any]]:
    """Returns dropped copies, each followed by the better picture, as samples."""
    if copies is None:
        return []
    rows = execute(copies.order_by("image_id").limit(DROPPED_PAIRS))
    samples = []
    for dropped, better in zip(rows["image_id"], rows["better"], strict=True):
        samples.append({"image_id": dropped, "text": "dropped"})
        samples.append({"image_id": better, "text": "better"})
    return samples


def lowest_pairs(
    pairs: ibis.Table, count: int, execute: Execute
) -> list[dict[str, Any]]:
    """Returns the pairs of the lowest keys, a random sample, as `sample_pairs` does."""
    picked = pairs.order_by("key", "image_id", "text").limit(count)
    cut = pairs.text.substr(0, SHOWN_CHARACTERS + 1).name("shown")
    rows = execute(picked.select("image_id", shown=cut)).to_dict("records")
    return [
        {"image_id": row["image_id"], "text": printable(row["shown"])} for row in rows
    ]


def printable(text: str) -> str:
    """Replaces control characters by spaces and cuts a long text, with an ellipsis."""
    clean = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)
    return clean[:SHOWN_CHARACTERS] + "…" * (len(clean) > SHOWN_CHARACTERS)


def show_pictures(
    samples: dict[str, list[dict[str, Any]]],
    pictures: ibis.Table,
    read_pictures: Callable[[list[str]], dict[str, bytes]],
    execute: Execute,
) -> None:
    """Adds a thumbnail and a note to each sample pair, in place.

    A picture in the sample of a rule with `withheld` gets no thumbnail anywhere.

    Args:
      samples: result of `sample_pairs`; each pair receives "thumbnail" (data URI or
        None) and "note" (size and format, or why there is no thumbnail).
      pictures: the stage `pictures`.
      read_pictures: function from image ids to files, see `write_page`.
      execute: function that evaluates an expression.
    """
    pairs = [(rule, pair) for rule, sample in samples.items() for pair in sample]
    names = sorted({pair["image_id"] for _, pair in pairs if pair["image_id"]})
    facts: dict[str, dict[str, Any]] = {}
    if names:
        known = pictures.filter(pictures.image_id.isin(names)).select(
            "image_id",
            width=pictures.width.fill_null(0),
            height=pictures.height.fill_null(0),
            format=pictures.format.fill_null(""),
            error=pictures.error.fill_null(""),
        )
        rows = execute(known).to_dict("records")
        facts = {row["image_id"]: row for row in rows}
    withheld = {name for name, rule in list_rules().items() if rule.withheld}
    hidden = {pair["image_id"] for rule, pair in pairs if rule in withheld}
    wanted = [name for name in names if name not in hidden]
    files = read_pictures(wanted) if wanted else {}
    thumbnails = {n: thumbnail(files[n]) for n in wanted if files.get(n)}
    for _, pair in pairs:
        name = pair["image_id"]
        fact = facts.get(name)
        pair["thumbnail"] = thumbnails.get(name)
        pair["note"] = "no picture"
        if name in hidden:
            pair["note"] = "withheld"
        elif fact and fact["error"]:
            pair["note"] = printable(fact["error"])
        elif fact and fact["width"]:
            pair["note"] = f"{fact['width']} × {fact['height']} {fact['format']}"
        elif name in thumbnails or files.get(name):
            pair["note"] = "" if pair["thumbnail"] else "cannot be decoded"


def thumbnail(picture: bytes) -> str | None:
    """Returns a small JPEG as a data URI, or None if the picture cannot be decoded."""
    try:
        small = small_jpeg(picture, THUMBNAIL_SIDE, JPEG_QUALITY)
    except PictureError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
