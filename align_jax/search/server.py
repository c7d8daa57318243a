"""Search over HTTP: a page for people and a JSON interface for programs.

Uploads are decoded in memory, embedded and forgotten. The pictures shown are the
thumbnails of the index: no request can name a file to read.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer

from align_jax.embed.model import TEMPLATE
from align_jax.errors import InputError
from align_jax.report.pages import render
from align_jax.search.batching import BatchingEncoder, Busy
from align_jax.search.bodies import (
    MAX_BODY,
    MAX_ITEMS,
    ClassifyAnswer,
    ClassifyBody,
    EmbedAnswer,
    EmbedBody,
    HitBody,
    Problem,
    Scored,
    SearchAnswer,
    SearchBody,
    TermBody,
)
from align_jax.search.guard import BODY_SECONDS, RETRY, Guard, problem
from align_jax.search.queries import IMAGE_WEIGHT, TEXT_WEIGHT, Term, query_embedding
from align_jax.search.uploads import read_upload
from align_jax.search.vector_index import VectorIndex

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PAGE = pathlib.Path(__file__).with_name("search.html.jinja")
SHOWN = 5  # labels, and captions, in an answer
NEAR = 24  # nearest pictures whose texts are candidates if no captions are given
NO_LABELS = (
    "no labels: the collection has none; start the server with --labels=FILE, or give"
    " some in the request"
)
NO_CAPTIONS = (
    "no captions: the pictures near to it have no texts; start the server with"
    " --captions=FILE"
)
Responses = dict[int | str, dict[str, Any]]  # OpenAPI descriptions by status
REFUSALS = {
    408: f"the body took longer than {BODY_SECONDS} seconds",
    411: "no Content-Length",
    413: f"a body of more than {MAX_BODY:,} bytes",
    415: "a body that is not application/json",
    422: "what cannot be used, and why",
    429: "too much is under way; come again after Retry-After seconds",
}


class Texts:
    """Texts to compare pictures with, embedded once."""

    def __init__(
        self, encoder: BatchingEncoder, texts: Sequence[str], template: str = "{}"
    ) -> None:
        """Embeds the texts.

        Args:
          encoder: encoder of the texts.
          texts: N texts.
          template: prompt in which each text replaces the {}; `cosines` compares with
            the prompts.
        """
        self.texts = list(texts)
        filled = [template.format(text) for text in texts]
        parts = [
            encoder.encode_texts(filled[start : start + MAX_ITEMS])
            for start in range(0, len(filled), MAX_ITEMS)
        ]
        self.embeddings = np.concatenate(parts) if parts else None  # (N, D)

    def cosines(self, image: np.ndarray) -> np.ndarray:
        """Returns the cosine of an image's embedding (D,) with each text's, (N,)."""
        if self.embeddings is None:
            return np.zeros(0, np.float32)
        return self.embeddings @ image


@dataclasses.dataclass(frozen=True)
class Service:
    """Answers requests from an index and its model.

    Attributes:
      index: index to search.
      encoder: encoder with the index's model.
      temperature: divisor of the cosines in the softmax over labels; the model's.
      labels: candidates for a picture's label, unless a request gives labels.
      captions: candidates for a picture's caption; if there are none, the texts of the
        nearest pictures.
    """

    index: VectorIndex
    encoder: BatchingEncoder
    temperature: float
    labels: Texts
    captions: Texts

    def page(self) -> HTMLResponse:
        """Returns the search page, with a Content-Security-Policy."""
        text = render(
            PAGE,
            count=len(self.index),
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

    def search(self, body: SearchBody) -> SearchAnswer:
        """Finds the indexed pictures nearest to a sum of texts and pictures."""
        terms = [self._read_term(term) for term in body.terms]
        query = query_embedding(self.encoder, terms)
        hits = self.index.search(query, body.limit, body.exact)
        return SearchAnswer(
            hits=[HitBody(id=h.id, score=h.score, text=h.text) for h in hits]
        )

    def embed(self, body: EmbedBody) -> EmbedAnswer:
        """Embeds texts and pictures as vectors of unit length."""
        images = [read_upload(image) for image in body.images]
        encoder = self.encoder
        return EmbedAnswer(
            texts=encoder.encode_texts(body.texts).tolist() if body.texts else [],
            images=encoder.encode_images(images).tolist() if images else [],
        )

    def classify(self, body: ClassifyBody) -> ClassifyAnswer:
        """Returns the labels and the captions that fit a picture best, 5 or fewer."""
        (image,) = self.encoder.encode_images([read_upload(body.image)])
        labels, captions = self.labels, self.captions
        if body.labels:
            labels = Texts(self.encoder, body.labels, TEMPLATE)
        if not captions.texts:
            captions = self._texts_near(image)
        logits = labels.cosines(image).astype(np.float64) / self.temperature
        odds = np.exp(logits - logits.max(initial=-np.inf))
        absent = [NO_LABELS] * (not labels.texts) + [NO_CAPTIONS] * (not captions.texts)
        return ClassifyAnswer(
            labels=_best(labels.texts, odds / max(odds.sum(), 1e-300)),
            captions=_best(captions.texts, captions.cosines(image)),
            absent=absent,
        )

    def thumbnail(self, id: str) -> Response:
        """Returns the JPEG thumbnail of a picture in the index."""
        found = self.index.rows([id], "thumbnail").get(id)
        if found is None or not found["thumbnail"]:
            raise HTTPException(404, "no such picture, or no thumbnail of it")
        # A shared cache, or the browser after the token has changed, must not keep it.
        kept = {"Cache-Control": "no-store"}
        return Response(found["thumbnail"], media_type="image/jpeg", headers=kept)

    def _texts_near(self, image: np.ndarray) -> Texts:
        """Embeds the distinct texts of the `NEAR` pictures nearest to an image (D,)."""
        texts = (hit.text for hit in self.index.search(image, NEAR))
        return Texts(self.encoder, [*dict.fromkeys(filter(None, texts))])

    def _read_term(self, term: TermBody) -> Term:
        if term.text is not None:
            return Term(term.text, term.weight)
        if term.image is not None:
            return Term(read_upload(term.image), term.weight)
        found = self.index.rows([term.id], "embedding") if term.id is not None else {}
        if term.id not in found:
            raise InputError(f"the index has no picture {term.id!r}")
        embedding = np.asarray(found[term.id]["embedding"], np.float32)
        return Term(embedding, term.weight)


def make_app(
    index: VectorIndex,
    encoder: BatchingEncoder,
    temperature: float,
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    token: str = "",
    hosts: Sequence[str] = LOOPBACK,
) -> FastAPI:
    """Makes the application, and embeds the labels and captions.

    Args:
      index: the index to search.
      encoder: encoder with the index's model.
      temperature: the model's temperature, see `Service`.
      labels: candidates for a picture's label, see `Service`.
      captions: candidates for a picture's caption, see `Service`.
      token: secret that every request must carry, as `Authorization: Bearer TOKEN` or,
        from the page, as the cookie that `/?token=TOKEN` sets; "" for none.
      hosts: host names that requests may address; other names are refused.
    """
    app = FastAPI(
        title="align_jax search",
        docs_url=None,
        redoc_url=None,
        # Only describes the token in OpenAPI; `Guard` checks it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
        responses={401: _refusal("no token, or a wrong one")} if token else {},
    )
    app.add_middleware(Guard, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])
    _add_refusals(app)
    service = Service(
        index,
        encoder,
        temperature,
        labels=Texts(encoder, labels, TEMPLATE),
        captions=Texts(encoder, captions),
    )
    refused: Responses = {s: _refusal(reason) for s, reason in REFUSALS.items()}
    app.get("/", response_class=HTMLResponse, include_in_schema=False)(service.page)
    app.post("/api/search", responses=refused)(service.search)
    app.post("/api/embed", responses=refused)(service.embed)
    app.post("/api/classify", responses=refused)(service.classify)
    app.get(
        "/api/thumbnail",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}}},
            404: _refusal("no such picture, or no thumbnail of it"),
            422: refused[422],
            429: refused[429],
        },
    )(service.thumbnail)
    return app


def _refusal(description: str) -> dict:
    """Returns the OpenAPI description of an answer that refuses a request."""
    return {"model": Problem, "description": description}


def _add_refusals(app: FastAPI) -> None:
    """Adds handlers that answer with one line of text.

    The status is 422 for an invalid request, and 429 if too many texts and pictures are
    waiting.
    """

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return problem(429, f"{error}; ask again in a second", RETRY)

    @app.exception_handler(RequestValidationError)
    async def misshapen(
        request: Request, error: RequestValidationError
    ) -> JSONResponse:
        first = error.errors()[0]  # its "input", the value sent, is not echoed
        where = ".".join(str(part)[:40] for part in first["loc"][:4])
        # A field's name may hold half of a surrogate pair, which no answer can.
        detail = f"{where}: {first['msg']}".encode(errors="backslashreplace")
        return problem(422, detail.decode()[:300])

    @app.exception_handler(InputError)
    async def bad(request: Request, error: InputError) -> JSONResponse:
        return problem(422, str(error))


def _best(texts: Sequence[str], scores: np.ndarray) -> list[Scored]:
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    return [Scored(text=texts[i], score=float(scores[i])) for i in order]
