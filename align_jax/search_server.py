"""Search over HTTP: a page for people and a JSON interface for programs.

What is uploaded is decoded in memory, embedded and forgotten. Pictures are shown by the
thumbnails that the index holds: a request reads that index and no other file.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import io
from collections.abc import Sequence

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from PIL import Image

from align_jax.batching import BatchingEncoder, Busy
from align_jax.errors import InputError
from align_jax.model import TEMPLATE
from align_jax.pages import render
from align_jax.queries import IMAGE_WEIGHT, TEXT_WEIGHT, Term, query_embedding
from align_jax.search_bodies import (
    MAX_BODY,
    MAX_ITEMS,
    ClassifyAnswer,
    ClassifyBody,
    EmbedAnswer,
    EmbedBody,
    HitBody,
    Scored,
    SearchAnswer,
    SearchBody,
    TermBody,
)
from align_jax.vector_index import VectorIndex

MAX_PIXELS = 25_000_000  # of an uploaded picture
MAX_SCANS = 100  # of a JPEG, each of which is decoded over the whole picture
# Formats whose header Pillow reads without decoding or starting another program.
FORMATS = tuple("JPEG PNG GIF WEBP BMP TIFF AVIF".split())
BODY_SECONDS = 20  # within which a request has come
MAX_REQUESTS = 64  # under way at a time; further ones are to come again
RETRY = {"Retry-After": "1"}  # seconds
START_OF_SCAN = b"\xff\xda"
COOKIE = "align_jax_token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SHOWN = 5  # labels and captions of a picture


class Texts:
    """Texts that pictures are compared with, embedded once."""

    def __init__(self, encoder: BatchingEncoder, texts: Sequence[str], template="{}"):
        """Embeds them.

        Args:
          encoder: of the texts.
          texts: N of them.
          template: with a {} for each.
        """
        self.texts = list(texts)
        filled = [template.format(text) for text in texts]
        parts = [
            encoder.encode_texts(filled[start : start + MAX_ITEMS])
            for start in range(0, len(filled), MAX_ITEMS)
        ]
        self.embeddings = np.concatenate(parts) if parts else None  # (N, D)

    def cosines(self, image: np.ndarray) -> np.ndarray:
        """With an image (D,), (N,)."""
        if self.embeddings is None:
            return np.zeros(0, np.float32)
        return self.embeddings @ image


def make_app(
    index: VectorIndex,
    encoder: BatchingEncoder,
    temperature: float,
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    token: str = "",
    hosts: Sequence[str] = LOOPBACK,
) -> FastAPI:
    """Makes the application.

    Args:
      index: that is searched.
      encoder: of the index's model.
      temperature: of its softmax, for labels.
      labels: that a picture is sorted into unless a request has its own.
      captions: of which the best are shown for a picture.
      token: that every request must have, as `Authorization: Bearer TOKEN` or, from
        the page, as a cookie that `/?token=TOKEN` sets; "" for none.
      hosts: names by which the server may be asked; others are refused.
    """
    app = FastAPI(title="align_jax search", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])
    known = Texts(encoder, labels, TEMPLATE)
    told = Texts(encoder, captions)

    _add_guards(app, token)
    _add_refusals(app)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        text = render(
            "search.html.jinja",
            count=len(index),
            text_weight=TEXT_WEIGHT,
            image_weight=IMAGE_WEIGHT,
            max_bytes=MAX_BODY * 3 // 4 - 4096,
        )
        policy = (
            "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline';"
            " script-src 'unsafe-inline'; connect-src 'self'; form-action 'none';"
            " base-uri 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.post("/api/search")
    def search(body: SearchBody) -> SearchAnswer:
        """Finds the pictures nearest to a sum of texts and pictures."""
        terms = [_read_term(term, index) for term in body.terms]
        query = query_embedding(encoder, terms)
        hits = index.search(query, body.limit, body.exact)
        return SearchAnswer(
            hits=[HitBody(id=h.id, score=h.score, text=h.text) for h in hits]
        )

    @app.post("/api/embed")
    def embed(body: EmbedBody) -> EmbedAnswer:
        """Embeds texts and pictures."""
        images = [read_upload(image) for image in body.images]
        return EmbedAnswer(
            texts=encoder.encode_texts(body.texts).tolist() if body.texts else [],
            images=encoder.encode_images(images).tolist() if images else [],
        )

    @app.post("/api/classify")
    def classify(body: ClassifyBody) -> ClassifyAnswer:
        """Sorts a picture into labels, and finds captions that fit it."""
        (image,) = encoder.encode_images([read_upload(body.image)])
        own = Texts(encoder, body.labels, TEMPLATE) if body.labels else known
        logits = own.cosines(image).astype(np.float64) / temperature
        odds = np.exp(logits - logits.max(initial=-np.inf))
        return ClassifyAnswer(
            labels=_best(own.texts, odds / max(odds.sum(), 1e-300)),
            captions=_best(told.texts, told.cosines(image)),
        )

    @app.get("/api/thumbnail", response_class=Response)
    def thumbnail(id: str) -> Response:
        """The small JPEG that the index holds of a picture."""
        found = index.rows([id], "thumbnail").get(id)
        if found is None or not found["thumbnail"]:
            raise HTTPException(404, "no such picture, or no thumbnail of it")
        return Response(found["thumbnail"], media_type="image/jpeg")

    return app


def _add_guards(app: FastAPI, token: str) -> None:
    """Limits the requests under way, and refuses what has no token or no fit body."""
    running = 0

    @app.middleware("http")
    async def count(request: Request, call_next):
        nonlocal running  # of one event loop
        if running >= MAX_REQUESTS:
            await _drain(request)
            return _problem(429, f"{running} requests are under way", RETRY)
        running += 1
        try:
            return await call_next(request)
        finally:
            running -= 1

    @app.middleware("http")
    async def guard(request: Request, call_next):
        if token and not _has_token(request, token):
            given = request.query_params.get("token", "")
            if request.url.path == "/" and hmac.compare_digest(
                given.encode(), token.encode()
            ):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, token, httponly=True, samesite="lax")
                return answer
            return _problem(401, "wanted the token: Authorization: Bearer TOKEN")
        if request.method == "POST" and (refusal := await _read_body(request)):
            return refusal
        answer = await call_next(request)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return answer


async def _read_body(request: Request) -> JSONResponse | None:
    """Reads a request's body; the answer to one that is not taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":
        return _problem(415, f"content type {kind!r}; wanted application/json")
    length = request.headers.get("content-length", "")
    if not length.isdigit() or "transfer-encoding" in request.headers:
        return _problem(411, "wanted a Content-Length")
    if int(length) > MAX_BODY:
        return _problem(413, f"{length} bytes; at most {MAX_BODY} are taken")
    try:
        await asyncio.wait_for(request.body(), BODY_SECONDS)
    except TimeoutError:
        return _problem(408, f"the request took over {BODY_SECONDS} seconds")
    return None


def _add_refusals(app: FastAPI) -> None:
    """Answers what cannot be used, or not now, in one line."""

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy):
        return _problem(429, f"{error}; ask again in a second", RETRY)

    @app.exception_handler(RequestValidationError)
    async def misshapen(request: Request, error: RequestValidationError):
        first = error.errors()[0]  # nothing of what was sent is sent back
        where = ".".join(str(part)[:40] for part in first["loc"][:4])
        return _problem(422, f"{where}: {first['msg']}"[:300])

    @app.exception_handler(InputError)
    async def bad(request: Request, error: InputError):
        return _problem(422, str(error))


async def _drain(request: Request) -> None:
    """Reads a refused request, so that its sender reads the answer and not a reset."""

    async def read() -> None:
        received = 0
        async for part in request.stream():
            received += len(part)
            if received > MAX_BODY:
                return

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(read(), BODY_SECONDS)


def _has_token(request: Request, token: str) -> bool:
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    sent = sent or request.cookies.get(COOKIE, "")
    return hmac.compare_digest(sent.encode(), token.encode())


def _problem(status: int, message: str, headers: dict | None = None) -> JSONResponse:
    told = message.encode("utf-8", "replace").decode()
    return JSONResponse({"detail": told}, status, headers)


def _read_term(term: TermBody, index: VectorIndex) -> Term:
    if term.text is not None:
        return Term(term.text, term.weight)
    if term.image is not None:
        return Term(read_upload(term.image), term.weight)
    found = index.rows([term.id], "embedding").get(term.id)
    if found is None:
        raise InputError(f"the index has no picture {term.id!r}")
    return Term(np.float32(found["embedding"]), term.weight)


def read_upload(content: str) -> bytes:
    """The picture's file of a base64 text.

    Raises:
      InputError: it is no base64, no picture, or one of too many pixels.
    """
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the picture is no base64: {error}") from error
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as picture:  # its header
            pixels = picture.width * picture.height
    except Image.DecompressionBombError as error:
        raise InputError(f"the picture has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # parsers of untrusted bytes raise anything
        known = ", ".join(FORMATS)
        message = f"the file is no picture that can be read ({known})"
        raise InputError(message) from error
    if file.count(START_OF_SCAN) > MAX_SCANS and file.startswith(b"\xff\xd8"):
        raise InputError(f"the picture has more than {MAX_SCANS} scans")
    if pixels > MAX_PIXELS:
        raise InputError(f"the picture has {pixels:,} pixels; at most {MAX_PIXELS:,}")
    return file


def _best(texts: Sequence[str], scores: np.ndarray) -> list[Scored]:
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    return [Scored(text=texts[i], score=float(scores[i])) for i in order]
