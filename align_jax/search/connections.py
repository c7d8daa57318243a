"""Limits the connections of the search server, and how long they may stay silent.

`Guard` sees a request once its head has arrived. A connection that sends no head, or
only a part of one, is seen here.
"""

import asyncio
import itertools
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512  # below the 1,024 files that a process may usually open
HEAD_SECONDS = 10  # for the head of a request to arrive

_arrivals = itertools.count()  # orders what arrives; the loop's clock has equal times


class LimitedConnection(H11Protocol):
    """A connection that is closed if it stays silent, or if others need its place.

    It is closed if a request's head takes longer than `HEAD_SECONDS`. If there are more
    than `MAX_CONNECTIONS`, the server closes one without a request under way: if
    possible one that never had a request, and of these the one that has been silent
    longest. If all have a request under way, it closes the new one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._active = next(_arrivals)  # when the connection last received bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the deadline of the first request."""
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > MAX_CONNECTIONS:
            connections = cast(set[LimitedConnection], self.connections)
            waiting = [c for c in connections if c.awaits_request()]
            closed = min(waiting, key=LimitedConnection._worth, default=self)
            closed.transport.abort()
            self.connections.discard(closed)  # the next one to arrive must not see it

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the deadline."""
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads bytes; starts or ends the deadline of a request's head."""
        self._active = next(_arrivals)
        super().data_received(data)
        if self.awaits_request():
            self._expect_head()
        else:
            self._end_deadline()

    def awaits_request(self) -> bool:
        """Returns whether no request is under way: its head has not arrived."""
        return self.conn.their_state is h11.IDLE

    def _worth(self) -> tuple[bool, int]:
        """Returns (whether it had a request, when it last received bytes)."""
        return self.cycle is not None, self._active

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
