"""A stand-in for Label Studio's API: its answers are those of 1.23.2, recorded from a real one.

``tests/batches/test_label_real.py`` runs the same steps against a real server.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "0123456789abcdef0123456789abcdef01234567"  # legacy
REFRESH = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"  # personal
MOMENT = "2026-11-26T14:49:32.008937Z"
LOST = 0  # in place of a status: the connection ends without an answer


@dataclass
class StandIn:
    """``before_import`` is called with the number of an import (1, 2, …) and may return a status in place of 201.

    Where it returns ``LOST``, the tasks are imported, and the client gets no answer.
    """

    port: int = 0
    projects: dict[int, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    imports: int = 0
    before_import: Callable[[int], int] = lambda _number: 201
    access: int = 0  # tokens given for the personal one
    expired: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def custom_ids(self, project: int) -> list[str]:
        with self.lock:
            return [task["data"]["custom_id"] for task in self.tasks.values() if task["project"] == project]

    def annotate(self, task: int, results: list[dict[str, Any]], *, cancelled: bool = False) -> None:
        """What a person does in the browser."""
        made = {
            "id": 1 + sum(len(each["annotations"]) for each in self.tasks.values()),
            "result": results,
            "completed_by": 1,
            "was_cancelled": cancelled,
            "created_at": MOMENT,
            "updated_at": MOMENT,
        }
        self.tasks[task]["annotations"].append(made)

    def answer(  # noqa: PLR0911  (one for each path)
        self, method: str, target: str, body: Any, authorization: str
    ) -> tuple[int, Any]:
        """Return status and document of one request."""
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        with self.lock:
            self.requests.append(f"{method} {parts.path}")
            self.headers.append(authorization)
            if parts.path == "/api/token/refresh":
                if body != {"refresh": REFRESH}:
                    return self._error(401, "Token is invalid")
                self.access, self.expired = self.access + 1, False
                return 200, {"access": f"access-{self.access}"}
            if authorization not in (f"Token {TOKEN}", f"Bearer access-{self.access}") or self.expired:
                return self._error(401, "Invalid token.")
        match (method, [part for part in parts.path.split("/") if part]):
            case ("POST", ["api", "projects"]):
                return self._create(body)
            case ("GET", ["api", "projects"]):
                found = [each for each in self.projects.values() if query["title"] in each["title"]]
                return 200, {"count": len(found), "next": None, "previous": None, "results": found}
            case ("GET", ["api", "projects", number]):
                project = self.projects.get(int(number))
                return (200, project) if project else self._error(404, "No Project matches the given query.")
            case ("POST", ["api", "projects", number, "import"]):
                return self._import(int(number), body)
            case ("GET", ["api", "tasks"]):
                return self._list(query)
            case ("DELETE", ["api", "tasks", number]):
                with self.lock:
                    return (
                        (204, None) if self.tasks.pop(int(number), None) else self._error(404, "Not found.")
                    )
        return self._error(404, "Not found.")

    def _create(self, body: Any) -> tuple[int, Any]:
        if len(body["title"]) > 50:
            return self._error(
                400, "Validation error", {"title": ["Ensure this field has no more than 50 characters."]}
            )
        with self.lock:
            number = len(self.projects) + 1
            self.projects[number] = {"id": number, "description": "", **body}
            return 201, self.projects[number]

    def _import(self, project: int, body: Any) -> tuple[int, Any]:
        with self.lock:
            self.imports += 1
            number = self.imports
        status = self.before_import(number)
        if status >= 400:
            return self._error(status, "Internal error")
        shown = set(re.findall(r'="\$(\w+)"', self.projects[project]["label_config"]))
        for place, task in enumerate(body):
            for name in sorted(shown - task["data"].keys()):
                words = f'Error at item {place}: "{name}" key is expected in task data'
                return self._error(
                    400, "Validation error", {"non_field_errors": [f"{words} [assume: item] :: {task}"]}
                )
        with self.lock:
            first = max(self.tasks, default=0) + 1
            for place, task in enumerate(body):
                kept = {"predictions": [], **task, "id": first + place, "project": project, "annotations": []}
                self.tasks[first + place] = kept
        return status, {
            "task_count": len(body),
            "annotation_count": 0,
            "prediction_count": sum(len(task.get("predictions", ())) for task in body),
            "duration": 0.09,
            "file_upload_ids": [],
            "task_ids": list(range(first, first + len(body))),
        }

    def _list(self, query: dict[str, str]) -> tuple[int, Any]:
        asked = json.loads(query["query"])
        assert asked["ordering"] == ["tasks:id"]
        page, size = int(query["page"]), int(query["page_size"])
        with self.lock:
            found = [task for task in self.tasks.values() if task["project"] == int(query["project"])]
            if "filters" in asked:
                found = [task for task in found if _annotations(task)]
            chosen = found[(page - 1) * size : page * size]
            if not chosen and page > 1:
                return self._error(404, "Invalid page.")
            listed = [_listed(task, query) for task in chosen]
            return 200, {
                "total_annotations": sum(map(_annotations, found)),
                "total_predictions": sum(len(task["predictions"]) for task in found),
                "total": len(found),
                "tasks": listed,
            }

    @staticmethod
    def _error(status: int, detail: str, errors: dict[str, list[str]] | None = None) -> tuple[int, Any]:
        document = {
            "id": "4592a9a2",
            "status_code": status,
            "version": "1.23.2",
            "detail": detail,
            "exc_info": None,
        }
        return status, document | ({"validation_errors": errors} if errors else {})


def _annotations(task: dict[str, Any]) -> int:
    return sum(not each["was_cancelled"] for each in task["annotations"])


def _listed(task: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
    whole = {
        **task,
        "total_annotations": _annotations(task),
        "total_predictions": len(task["predictions"]),
        "is_labeled": bool(task["annotations"]),
        "created_at": MOMENT,
    }
    if "include" in query:
        return {name: whole[name] for name in query["include"].split(",")}
    assert query["fields"] == "all"
    return whole


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """Keep one running."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            status, document = state.answer(
                self.command, self.path, body, self.headers.get("Authorization", "")
            )
            if status == LOST:
                self.close_connection = True
                return
            content = b"" if document is None else json.dumps(document).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _handle  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
