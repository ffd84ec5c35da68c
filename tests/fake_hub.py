"""A hub on this machine: as much of the Hugging Face Hub as takes commits and gives files.

with FakeHub() as hub:
    subprocess.run(command, env={**os.environ, **hub.environment(cache)})
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

SHA = "c0ffee" * 6 + "c0ff"
TOKEN = "hf_of_a_test"


class FakeHub:
    """files: by "OWNER/NAME/FILE". made: what was asked of each repository. requests: all of them,
    "METHOD path"."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub._get(self)

            do_HEAD = do_GET  # noqa: N815 - the names of http.server

            def do_POST(self) -> None:
                hub._post(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables by which huggingface_hub finds it; no token of this machine's is among them."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def _of(self, repo: str) -> dict[str, bytes]:
        names = (name for name in self.files if name.startswith(f"{repo}/"))
        return {name.removeprefix(f"{repo}/"): self.files[name] for name in names}

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(f"{request.command} {request.path}")
        words = request.path.partition("?")[0].strip("/").split("/")
        if words[:2] == ["api", "models"]:
            repo = "/".join(words[2:4])
            if not (there := self._of(repo)):
                self._answer(request, 404, {}, {"X-Error-Code": "RepoNotFound"})
            elif "tree" in words:
                rows = [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in there.items()
                ]
                self._answer(request, 200, rows)
            elif "nowhere" in words:
                self._answer(request, 404, {}, {"X-Error-Code": "RevisionNotFound"})
            else:
                siblings = [{"rfilename": name} for name in there]
                self._answer(request, 200, {"id": repo, "sha": SHA, "siblings": siblings})
            return
        content = self.files.get("/".join([*words[:2], *words[4:]]))  # OWNER/NAME/resolve/SHA/FILE
        if content is None:
            self._answer(request, 404, {}, {"X-Error-Code": "EntryNotFound"})
        else:
            headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            self._answer(request, 200, content, headers)

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(f"{request.command} {request.path}")
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        words = request.path.strip("/").split("/")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(request, 401, {"error": "Invalid username or password."})
        elif request.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.made[repo] = asked
            self._answer(request, 200, {"url": f"{self.address}/{repo}"})
        elif request.path == "/api/validate-yaml":
            self._answer(request, 200, {"errors": [], "warnings": []})
        elif "preupload" in words:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(request, 200, {"files": files})
        else:
            repo = "/".join(words[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])
            url = f"{self.address}/{repo}/commit/{SHA}"
            self._answer(request, 200, {"success": True, "commitUrl": url, "commitOid": SHA})

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler,
        code: int,
        content: Any,
        headers: dict[str, str] | None = None,
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
