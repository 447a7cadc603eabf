"""Stands in for W&B's server: takes what a run uploads, as far as the client asks for it, and keeps it."""

import gzip
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Uploads:
    """By W&B run id: what the client said of the run, and the lines of its history and summary."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))

    def answer(self, operation: str, given: dict[str, Any], url: str) -> dict[str, Any]:
        """Of a GraphQL operation."""
        if operation == "UpsertBucket":
            self.runs.setdefault(given["name"], given)
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": given["name"], "name": given["name"], "displayName": given["displayName"], "config": "{}"}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0, "project": project}, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{url}/upload"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return {}

    def take(self, path: str, body: dict[str, Any]) -> None:
        """What is streamed to /files/ENTITY/PROJECT/RUN/file_stream."""
        run_id = path.split("/")[-2]
        for name, chunk in body.get("files", {}).items():
            self.lines[run_id][name] += [json.loads(line) for line in chunk["content"]]


@contextmanager
def wandb_server() -> Iterator[tuple[str, Uploads]]:
    """The address of a server on this machine, and what it is sent."""
    uploads = Uploads()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data
            answer: dict[str, Any] = {}
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                answer = {"data": uploads.answer(operation[1] if operation else "", asked.get("variables") or {}, url)}
            elif self.path.endswith("/file_stream"):
                uploads.take(self.path, json.loads(body))
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield url, uploads
        finally:
            server.shutdown()
            thread.join()
