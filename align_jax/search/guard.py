"""Checks each request's token, and limits the requests that the server handles at once.

If too many requests or bytes are under way, a request is refused with status 429, so
that no queue builds up.
"""

import asyncio
import collections
import contextlib
import hmac

from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from align_jax.search.bodies import MAX_BODY

MAX_REQUESTS = 16  # POST requests, which compute, at a time
MAX_LOOKUPS = 64  # other requests at a time: pages and thumbnails
MAX_HELD = 16 * MAX_BODY  # bytes of all request bodies being read or answered
BODY_SECONDS = 20  # for a request to arrive completely
RETRY = {"Retry-After": "1"}  # seconds
COOKIE = "align_jax_token"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware that refuses requests before they reach the application.

    The status is 401 without the token, 411, 413 or 415 for invalid headers, 408 for a
    body that arrives too slowly, and 429 if too much is under way.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        """Wraps an application.

        Args:
          app: application that answers the accepted requests.
          token: secret that every request must carry; "" for none.
        """
        self._app, self._token = app, token
        self._running: collections.Counter[bool] = collections.Counter()
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses an HTTP request, or passes it to the application, with `HEADERS`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        request = Request(scope, receive)
        answer = self._check_token(request) or _check_head(request)
        if answer is None:
            with contextlib.suppress(ClientDisconnect):
                await self._hold(request, send_with_headers)
        else:
            await answer(scope, receive, send_with_headers)

    def _check_token(self, request: Request) -> Response | None:
        """Returns the answer to a request that may not pass; None if it may.

        It may pass with the token, as bearer or cookie, or if no token is wanted. If
        the page's URL has the token, the answer redirects to "/" and sets the cookie;
        otherwise it is a refusal.
        """
        if not self._token or _is(_sent_token(request), self._token):
            return None
        given = request.query_params.get("token", "")
        if request.url.path == "/" and _is(given, self._token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="lax")
            return answer
        bearer = {"WWW-Authenticate": "Bearer"}
        return problem(401, "wanted the token: Authorization: Bearer TOKEN", bearer)

    async def _hold(self, request: Request, send: Send) -> None:
        """Reads a request's body and passes it on.

        The request is refused if the bodies under way have too many bytes (429), or the
        body is too slow (408). Only POST requests have a body.
        """
        scope, receive = request.scope, request.receive
        length = int(request.headers["content-length"]) if _computes(request) else 0
        if self._held + length > MAX_HELD:
            await _drain(request)
            answer = problem(429, f"{self._held} bytes of uploads are held", RETRY)
            await answer(scope, receive, send)
            return
        self._held += length
        try:
            if length:
                try:
                    body = await asyncio.wait_for(request.body(), BODY_SECONDS)
                except TimeoutError:
                    late = f"the request took over {BODY_SECONDS} seconds"
                    await problem(408, late)(scope, receive, send)
                    return
                receive = _replay(body, receive)
            await self._count(_computes(request), scope, receive, send)
        finally:
            self._held -= length

    async def _count(
        self, computes: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Passes a request on; refuses it (429) if too many like it are under way.

        POST requests (`computes` is true) and other requests are counted separately.
        """
        running = self._running[computes]  # one event loop: no lock is needed
        if running >= (MAX_REQUESTS if computes else MAX_LOOKUPS):
            answer = problem(429, f"{running} requests are under way", RETRY)
            await answer(scope, receive, send)
            return
        self._running[computes] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running[computes] -= 1


def problem(status: int, message: str, headers: dict | None = None) -> JSONResponse:
    """Makes the JSON answer {"detail": message}."""
    told = message.encode("utf-8", "replace").decode()
    return JSONResponse({"detail": told}, status, headers)


def _check_head(request: Request) -> JSONResponse | None:
    """Returns the refusal of a POST request with invalid headers; else None."""
    if not _computes(request):
        return None
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":
        return problem(415, f"content type {kind!r}; wanted application/json")
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in request.headers:
        return problem(411, "wanted a Content-Length")
    if int(length) > MAX_BODY:
        return problem(413, f"{length} bytes; at most {MAX_BODY} are taken")
    return None


def _computes(request: Request) -> bool:
    return request.method == "POST"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Makes a `receive` that gives a body already read, then all later messages."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return parts.pop() if parts else await receive()

    return again


async def _drain(request: Request) -> None:
    """Reads a refused request to its end, for `BODY_SECONDS` at the longest.

    If a part of it stayed unread, the sender would see a reset instead of the answer.
    """

    async def read() -> None:
        async for _ in request.stream():
            pass  # at most Content-Length bytes, which was checked

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(read(), BODY_SECONDS)


def _sent_token(request: Request) -> str:
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return sent.strip()
    return request.cookies.get(COOKIE, "")


def _is(sent: str, token: str) -> bool:
    return hmac.compare_digest(sent.encode(), token.encode())
