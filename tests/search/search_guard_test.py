"""The server's guard: its counts go down again, however a request ends."""

import asyncio

import httpx
import pytest
from fastapi.responses import PlainTextResponse

from align_jax.search import guard
from align_jax.search.guard import Guard

JSON = {"content-type": "application/json"}


class Held:
    """An application whose answers wait for `free`, and then succeed or fail."""

    def __init__(self):
        self.arrived, self.bodies, self.fails = 0, [], False
        self.free = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.arrived += 1
        self.bodies.append((await receive())["body"])
        await self.free.wait()
        if self.fails:
            raise RuntimeError("failed")
        await PlainTextResponse("good")(scope, receive, send)

    async def wait_for(self, count):
        while self.arrived < count:
            await asyncio.sleep(0)


def opened(app, token=""):
    transport = httpx.ASGITransport(Guard(app, token), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@pytest.mark.parametrize(("fails", "status"), [(False, 200), (True, 500)])
def test_requests_beyond_the_limit_are_refused_until_others_end(
    monkeypatch, fails, status
):
    monkeypatch.setattr(guard, "MAX_REQUESTS", 2)
    monkeypatch.setattr(guard, "MAX_LOOKUPS", 1)

    async def check():
        app = Held()
        app.fails = fails
        client = opened(app)

        def post():
            return client.post("/", content=b"{}", headers=JSON)

        for turn in range(3):
            app.free.clear()
            asked = [asyncio.create_task(post()) for _ in range(2)]
            asked += [asyncio.create_task(client.get("/"))]
            await app.wait_for(3 * turn + 3)
            for refused in (await post(), await client.get("/")):
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
            app.free.set()
            assert {(await one).status_code for one in asked} == {status}

    asyncio.run(check())


def test_bodies_are_held_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(guard, "MAX_HELD", 10)

    async def check():
        app = Held()
        client = opened(app)
        first = asyncio.create_task(client.post("/", content=b"1" * 6, headers=JSON))
        await app.wait_for(1)
        refused = await client.post("/", content=b"2" * 5, headers=JSON)
        assert refused.status_code == 429
        assert "6 bytes" in refused.text
        app.free.set()
        assert (await first).text == "good"
        answer = await client.post("/", content=b"3" * 10, headers=JSON)
        assert answer.text == "good"
        assert app.bodies == [b"1" * 6, b"3" * 10]

    asyncio.run(check())


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.01)
    monkeypatch.setattr(guard, "MAX_HELD", 2)

    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    async def check():
        app = Held()
        app.free.set()
        client, headers = opened(app), JSON | {"content-length": "2"}
        answer = await client.post("/", content=slow(), headers=headers)
        assert answer.status_code == 408
        assert not app.arrived
        answer = await client.post("/", content=b"{}", headers=JSON)
        assert answer.text == "good"

    asyncio.run(check())
