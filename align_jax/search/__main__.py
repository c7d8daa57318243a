"""Searches for pictures by texts and pictures, which may be added and subtracted.

    python -m align_jax.search build --checkpoint=RUN --images=PLACE --out=INDEX
    python -m align_jax.search query INDEX --text='red shoes' --minus='laces'
    python -m align_jax.search query INDEX --image=a.jpg --text='in the snow'
    python -m align_jax.search serve INDEX --labels=labels.txt
    python -m align_jax.search delete INDEX ID...

RUN is anything that `align_jax.load` reads. PLACE is a folder of pictures, or
DATASET:SPLIT for a dataset in TFDS's layout, such as a corpus. INDEX is a folder or a
bucket's URL, which many machines may search at once. The same `build` command, given
again, continues an interrupted build and adds new or changed pictures. With --prune, it
also deletes the pictures that PLACE does not have.
"""

import argparse
import contextlib
import os
import secrets
import sys
import threading
import urllib.parse

from align_jax import places
from align_jax.errors import InputError, printable, run_command
from align_jax.locks import locked

LAST_PORT = 65_535


def main() -> None:
    """Reads the flags and runs the subcommand."""
    flags = read_flags()
    if flags.command == "delete":
        delete(flags)
        return
    from align_jax.devices.runtime import start

    start(tensorflow=flags.command == "build")  # for a dataset's records
    {"build": build, "query": query, "serve": serve}[flags.command](flags)


def build(flags: argparse.Namespace) -> None:
    """Embeds a collection's pictures into an index, and prints how many.

    It also prints how many files of the folder were not taken, and how many pictures of
    the index the collection does not have.

    Raises:
      InputError: the collection or the checkpoint cannot be read, or the index was made
        with another model or thumbnail size or of another collection, or --out holds
        something else.
    """
    import tqdm

    from align_jax.embed.model import load
    from align_jax.search.collection import open_collection
    from align_jax.search.indexing import (
        check_collection,
        check_place,
        index_pictures,
        writing_index,
    )
    from align_jax.search.vector_index import Description, IndexSource, create_index
    from align_jax.weights.folder import digest

    check_place(flags.out)
    collection = open_collection(flags.images)
    if not flags.prune:
        check_collection(flags.out, collection)
    model = load(flags.checkpoint, flags.batch_size, flags.width)
    found = Description(
        digest(model.weights), flags.checkpoint, model.width, flags.thumbnail
    )
    source = IndexSource(collection.prefix, collection.labels)
    deleted, total = 0, len(collection)
    # LanceDB keeps the changes of several processes apart, in a bucket as on a disk; so
    # the lock only spares two builds the same work, where it costs nothing.
    with (
        contextlib.nullcontext() if places.is_url(flags.out) else locked(flags.out),
        writing_index(flags.out),
        tqdm.tqdm(desc="index", unit="picture", total=total) as bar,
    ):
        index = create_index(flags.out, found, source)
        done = index_pictures(model, collection, index, bar.update)
        absent = [name for name in index.ids() if name not in done.seen]
        if flags.prune:
            deleted, absent = index.delete(absent), []
    print(
        f"{flags.out}: {len(index):,} pictures; {done.added:,} added, {done.kept:,}"
        f" there already, {deleted:,} deleted, {len(done.unreadable):,} unreadable"
    )
    for name, reason in list(done.unreadable.items())[:3]:
        print(printable(f"  {name}: {reason}"))
    if left_out := collection.describe_left_out():
        print(printable(f"  left out: {left_out}"))
    if absent:
        told = f"pictures of the index that {flags.images} lacks: {len(absent):,}"
        print(printable(f"  {told}; --prune deletes them"))


def query(flags: argparse.Namespace) -> None:
    """Prints score, id, path and text of the nearest pictures."""
    from align_jax.search.queries import query_embedding

    terms = read_terms(flags)
    index, model = open_with_model(flags, batch_size=1)
    for hit in index.search(query_embedding(model, terms), flags.limit, flags.exact):
        shown = f"{hit.score:.4f}  {hit.id}  {hit.path}  {hit.text}".rstrip()
        print(printable(shown))


def serve(flags: argparse.Namespace) -> None:
    """Prints the page's URL, then serves the page and the JSON API until interrupted.

    The token comes from --token, else from $ALIGN_JAX_TOKEN, else, for addresses other
    than loopback, from a random source; the URL contains it.

    Raises:
      InputError: --host is every address, and --name is not given; or the index or the
        model cannot be opened.
    """
    import uvicorn

    from align_jax.search.batching import BatchingEncoder
    from align_jax.search.bodies import MAX_ITEMS
    from align_jax.search.connections import LimitedConnection
    from align_jax.search.server import LOOPBACK, make_app

    # The comparison binds nothing.
    if flags.host in ("0.0.0.0", "::") and not flags.name:  # noqa: S104
        raise InputError(
            f"--host={flags.host} is every address of this machine; wanted --name, a"
            " host name by which clients reach the server"
        )
    index, model = open_with_model(flags, flags.batch_size)
    threading.Thread(target=index.warm, daemon=True).start()
    most = max(8 * flags.batch_size, 2 * MAX_ITEMS)
    encoder = BatchingEncoder(model, flags.batch_size, most)
    labels, captions = (read_lines(path) for path in (flags.labels, flags.captions))
    labels = labels or index.source.labels
    local = flags.host in LOOPBACK
    token = flags.token or os.environ.get("ALIGN_JAX_TOKEN", "")
    token = token or ("" if local else secrets.token_urlsafe())
    hosts = LOOPBACK if local else (*LOOPBACK, *(flags.name or [flags.host]))
    app = make_app(
        index,
        encoder,
        model.temperature,
        labels=labels,
        captions=captions,
        token=token,
        hosts=hosts,
    )
    path = f"/?token={urllib.parse.quote(token, safe='')}" if token else "/"
    print(f"http://{(flags.name or [flags.host])[0]}:{flags.port}{path}", flush=True)
    # Longer than clients keep an idle connection, so that they close it first.
    uvicorn.run(
        app,
        host=flags.host,
        port=flags.port,
        http=LimitedConnection,
        timeout_keep_alive=75,
        log_level="warning",
    )


def read_lines(path: str | None) -> list[str]:
    """Returns the stripped, non-blank lines of a text file; [] if `path` is empty."""
    if not path:
        return []
    text = places.read_bytes(places.resolve(path)).decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def open_with_model(flags: argparse.Namespace, batch_size: int) -> tuple:
    """Returns the index and its model.

    The model is read from --checkpoint, or else from the checkpoint of the build, and
    cut to the width of the index's embeddings.

    Raises:
      InputError: the index or the checkpoint does not exist, or their models differ.
    """
    from align_jax.embed.model import Model
    from align_jax.search.indexing import check_model
    from align_jax.search.vector_index import open_index
    from align_jax.weights.folder import is_dual_encoder
    from align_jax.weights.narrow import narrow
    from align_jax.weights.source import open_weights

    index = open_index(flags.index)
    weights = open_weights(flags.checkpoint or index.description.checkpoint)
    width = index.description.width
    if is_dual_encoder(weights) and weights.config.width > width:
        weights = narrow(weights, width)
    model = Model(weights, batch_size)
    check_model(index, model)
    return index, model


def read_terms(flags: argparse.Namespace) -> list:
    """Returns the query's `Term`s: texts, pictures, then those to subtract.

    Raises:
      InputError: a picture file cannot be read.
    """
    from align_jax.search.queries import IMAGE_WEIGHT, TEXT_WEIGHT, Term

    terms = []
    for texts, images, sign in (
        (flags.text, flags.image, 1.0),
        (flags.minus, flags.minus_image, -1.0),
    ):
        weight = TEXT_WEIGHT if flags.text_weight is None else flags.text_weight
        terms += [Term(text, sign * weight) for text in texts]
        weight = IMAGE_WEIGHT if flags.image_weight is None else flags.image_weight
        files = [places.read_bytes(places.resolve(path)) for path in images]
        terms += [Term(file, sign * weight) for file in files]
    return terms


def delete(flags: argparse.Namespace) -> None:
    """Deletes pictures from an index by id, and prints how many were there."""
    from align_jax.search.collection import utf8
    from align_jax.search.indexing import writing_index
    from align_jax.search.vector_index import open_index

    ids = [utf8(name) for name in flags.ids]
    with writing_index(flags.index):
        deleted = open_index(flags.index).delete(ids)
    print(f"{flags.index}: {deleted} of {len(flags.ids)} deleted")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line, with one parser for each subcommand."""
    parser = argparse.ArgumentParser(
        prog="python -m align_jax.search", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)

    made = commands.add_parser("build", help="embed pictures into an index")
    made.add_argument("--checkpoint", required=True, metavar="RUN")
    made.add_argument("--images", required=True, metavar="PLACE")
    made.add_argument("--out", required=True, metavar="INDEX")
    made.add_argument(
        "--prune", action="store_true", help="delete pictures that PLACE does not have"
    )
    made.add_argument("--batch_size", type=int, default=128)
    made.add_argument(
        "--width", type=int, help="number of the embeddings' first components to keep"
    )
    made.add_argument(
        "--thumbnail", type=int, default=224, help="longer side in pixels; 0 for none"
    )

    asked = commands.add_parser("query", help="print the nearest pictures")
    asked.add_argument("index", metavar="INDEX")
    for name in ("text", "image", "minus", "minus_image"):
        asked.add_argument(f"--{name}", action="append", default=[], help="repeatable")
    asked.add_argument("--text_weight", type=float, help="of each text; default: 2")
    asked.add_argument("--image_weight", type=float, help="of each image; default: 1")
    asked.add_argument("--limit", type=int, default=10)
    asked.add_argument(
        "--exact", action="store_true", help="compare with every picture"
    )

    served = commands.add_parser("serve", help="serve a page and a JSON interface")
    served.add_argument("index", metavar="INDEX")
    served.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to bind; any address but loopback requires a token",
    )
    served.add_argument(
        "--name",
        action="append",
        help="host name by which clients reach the server; repeatable",
    )
    served.add_argument("--port", type=int, default=8000)
    served.add_argument(
        "--token", help="default: $ALIGN_JAX_TOKEN, or a random one if required"
    )
    served.add_argument(
        "--labels", metavar="FILE", help="one per line; default: the dataset's"
    )
    served.add_argument(
        "--captions",
        metavar="FILE",
        help="one per line; default: texts of the nearest pictures",
    )
    served.add_argument("--batch_size", type=int, default=16)
    for command in (asked, served):
        command.add_argument(
            "--checkpoint", metavar="RUN", help="default: the RUN of the build"
        )

    gone = commands.add_parser("delete", help="delete pictures by id")
    gone.add_argument("index", metavar="INDEX")
    gone.add_argument("ids", nargs="+", metavar="ID")
    return parser


def read_flags() -> argparse.Namespace:
    """Reads and checks the flags of the command line; local paths become absolute.

    Raises:
      InputError: a number is out of its range, or the index's path is no plain text.
    """
    flags = make_parser().parse_args()
    for name in ("index", "out", "checkpoint"):
        if getattr(flags, name, None):
            setattr(flags, name, places.resolve(getattr(flags, name)))
    for name in ("index", "out"):
        place = getattr(flags, name, "")
        if printable(place) != place:
            raise InputError(
                f"{printable(place)} is no place for an index; wanted a path of UTF-8"
                " text without control characters"
            )
    for name, least in (("batch_size", 1), ("limit", 1), ("thumbnail", 0)):
        if getattr(flags, name, least) < least:
            value = getattr(flags, name)
            raise InputError(f"--{name} is {value}; wanted {least} or more")
    if not 0 <= getattr(flags, "port", 0) <= LAST_PORT:
        raise InputError(f"--port is {flags.port}; wanted 0 to {LAST_PORT}")
    return flags


if __name__ == "__main__":
    sys.exit(run_command("align_jax.search", main))
