"""Measures the search server under load: 200 clients for a minute, on one machine.

    python -m benchmarks.search_server --index=INDEX --clients=200 --seconds=60

Starts the server and queries it by text, by uploaded picture and by indexed picture in
turn. Prints the number and latency of answers by status, the server's memory over time,
and the processor time that the server and the clients took. Each client has one
connection; after status 429 it waits for the time that the answer gives.

With --silent=2000, as many further connections are held open: half of them send
nothing, the other half a part of a request. One that the server closes is opened again.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import io
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
import urllib.parse

import httpx
import numpy as np
from PIL import Image

WORDS = "red blue dog cat flag face hand clock tree fruit car arrow".split()


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def processor_seconds(pid: int) -> float:
    """Returns the processor time that a process has taken; Linux only."""
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Returns the memory that a process holds; Linux only."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def picture(seed: int) -> str:
    """Returns a random picture of 256 x 256 pixels, as JPEG in base64."""
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((256, 256)).save(file, "jpeg")
    return base64.b64encode(file.getvalue()).decode()


async def ask(
    url: str,
    bodies: list[dict],
    first: int,
    end: float,
    found: dict[int | str, list[float]],
) -> None:
    """Sends one request after the other until `end`, as one client does."""
    turn = first
    async with httpx.AsyncClient(base_url=url, timeout=60, verify=False) as client:
        while time.perf_counter() < end:
            start = time.perf_counter()
            body = bodies[turn % len(bodies)]
            turn += 1
            try:
                answer = await client.post("/api/search", json=body)
            except httpx.HTTPError as error:
                found[type(error).__name__].append(time.perf_counter() - start)
                continue
            found[answer.status_code].append(time.perf_counter() - start)
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]))


async def stay_silent(url: str, sent: bytes, end: float, closed: list[float]) -> None:
    """Holds a connection open until `end`; opens another when the server closes it."""
    address = urllib.parse.urlsplit(url)
    while (now := time.perf_counter()) < end:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(
                address.hostname, address.port
            )
            writer.write(sent)
            with contextlib.suppress(TimeoutError, OSError):
                await asyncio.wait_for(reader.read(1), end - now)
                closed.append(time.perf_counter() - now)
            writer.close()
        await asyncio.sleep(0.5)


async def load(
    url: str, pid: int, clients: int, seconds: float, silent: int = 0
) -> tuple[dict[int, list[float]], list[float]]:
    """Runs the clients; returns latencies by status, and memory every five seconds."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        hits = await client.post("/api/search", json={"terms": [{"text": "red"}]})
    ids = [hit["id"] for hit in hits.json()["hits"]]
    bodies = [{"terms": [{"text": word}]} for word in WORDS]
    bodies += [{"terms": [{"image": picture(i)}, {"text": "red"}]} for i in range(6)]
    bodies += [{"terms": [{"id": name}]} for name in ids[:6]]
    found = collections.defaultdict(list)
    end = time.perf_counter() + seconds
    tasks = [
        asyncio.create_task(ask(url, bodies, i, end, found)) for i in range(clients)
    ]
    closed: list[float] = []
    heads = (b"", b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    tasks += [
        asyncio.create_task(stay_silent(url, heads[i % 2], end, closed))
        for i in range(silent)
    ]
    memory = []
    while time.perf_counter() < end:
        memory.append(memory_mib(pid))
        await asyncio.sleep(5)
    await asyncio.gather(*tasks)
    memory.append(memory_mib(pid))
    if silent:
        print(f"silent connections: {silent} at a time, {len(closed)} closed")
    return found, memory


def main() -> None:
    """Starts the server, runs the clients and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", required=True)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--silent", type=int, default=0)
    flags = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "align_jax.search", "serve", flags.index]
    server = subprocess.Popen(
        [*command, f"--port={port}"], stdout=subprocess.PIPE, text=True
    )
    # Each connection is an open file of this process; the server has another limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        url = server.stdout.readline().strip()
        for _ in range(600):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        before = processor_seconds(server.pid), processor_seconds(os.getpid())
        run = load(url, server.pid, flags.clients, flags.seconds, flags.silent)
        found, memory = asyncio.run(run)
        after = processor_seconds(server.pid), processor_seconds(os.getpid())
    finally:
        server.terminate()
        server.wait()
    for status, taken in sorted(found.items(), key=str):
        p50, p99 = 1e3 * np.percentile(taken, [50, 99])
        print(f"{status}: {len(taken)} answers, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    shown = ", ".join(f"{value:.0f}" for value in memory)
    print(f"server's memory every 5 s, MiB: {shown}")
    served, asked = (b - a for a, b in zip(before, after, strict=True))
    print(f"time of processors: server {served:.0f} s, clients {asked:.0f} s")


if __name__ == "__main__":
    main()
