"""The server's connections: silent ones are closed, and their number is limited."""

import contextlib
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from fastapi.responses import PlainTextResponse

from align_jax.search import connections
from align_jax.search.connections import LimitedConnection

HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 6)
    config = uvicorn.Config(
        PlainTextResponse("good"), port=0, http=LimitedConnection, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join()


def ask(connection):
    """Sends a request and reads the whole answer."""
    connection.sendall(HEAD + b"\r\n")
    answer = b""
    while not answer.endswith(b"good"):
        part = connection.recv(100)
        assert part
        answer += part


def is_closed(connection):
    """Returns whether the server closes a connection within a minute."""
    connection.settimeout(60)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_a_connection_whose_head_does_not_arrive_is_closed(server, sent):
    with socket.create_connection(server) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_a_second_request_has_a_deadline_too_and_a_pause_before_it_has_not(server):
    with socket.create_connection(server) as connection:
        ask(connection)
        time.sleep(0.8)
        ask(connection)
        connection.sendall(HEAD)
        assert is_closed(connection)


def test_a_client_that_was_answered_keeps_its_connection(server, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(server))
        for _ in range(2):
            ask(client)
            for _ in range(20):
                stack.enter_context(socket.create_connection(server))


@pytest.mark.parametrize("sent", [b"", HEAD])
def test_silent_connections_leave_room_for_a_client(server, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url="http://127.0.0.1"))
        opened = []
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection(server))
            connection.sendall(sent)
            opened.append(connection)
            assert client.get(f"http://127.0.0.1:{server[1]}/").text == "good"
        assert all(is_closed(connection) for connection in opened[:15])
        opened[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            opened[-1].recv(1)
