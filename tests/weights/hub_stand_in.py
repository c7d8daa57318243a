"""An imitation of the Hugging Face hub: the requests of one upload, and their state."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading


class Hub:
    """Model repositories on a local server.

    Attributes:
      url: address of the server.
      repos: {name: {file: content}}; a new repository has a .gitattributes.
      stored: uploaded contents by SHA-256.
      token: the token that may write.
      broken: whether the server drops the connection during an upload.
      requests: "METHOD path" of each request.
    """

    def __init__(self):
        self.url = ""
        self.repos, self.stored, self.requests = {}, {}, []
        self.token, self.broken = "hf_right", False

    def answer(self, method, path, headers, body):
        """Returns the status and the JSON value, or None to drop the connection."""
        self.requests.append(f"{method} {path}")
        if headers.get("Authorization") != f"Bearer {self.token}":
            if method != "PUT":  # the link to a store is signed
                return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "org":
                return 403, {"error": "You don't have the rights"}
            if name in self.repos:
                return 409, {"error": "exists", "url": f"{self.url}/{name}"}
            self.repos[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if match := re.fullmatch(r"/store/(\w+)", path):
            if self.broken:
                return None
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.stored[match[1]] = body
            return 200, {}
        if match := re.fullmatch(r"/(\S+/\S+)\.git/info/lfs/objects/batch", path):
            objects = [self._place(found) for found in json.loads(body)["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/\w[\w-]*)?(?:/main)?", path)
        name, action = match[1], match[2]
        if name not in self.repos:
            return 404, {"error": "Repository not found"}
        files = self.repos[name]
        if action is None or action == "/revision":
            found = [{"rfilename": file} for file in files]
            return 200, {"id": name, "siblings": found, "sha": "0" * 40}
        if action == "/tree":
            return 200, [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in files.items()
            ]
        if action == "/preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": (
                        "lfs" if file["path"].endswith(".safetensors") else "regular"
                    ),
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        assert action == "/commit", path
        self._commit(files, [json.loads(line) for line in body.splitlines()])
        url = f"{self.url}/{name}/commit/1"
        return 200, {"commitUrl": url, "commitOid": "1" * 40}

    def _place(self, found):
        if found["oid"] in self.stored:
            return found
        upload = {"href": f"{self.url}/store/{found['oid']}"}
        return found | {"actions": {"upload": upload}}

    def _commit(self, files, lines):
        header, *operations = lines
        assert header["key"] == "header"
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]


@contextlib.contextmanager
def serving():
    """Yields a hub whose server runs inside the `with` statement."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _serve(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = self.path.partition("?")[0]
            found = hub.answer(self.command, path, self.headers, body)
            if found is None:
                self.connection.close()
                return
            status, value = found
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
