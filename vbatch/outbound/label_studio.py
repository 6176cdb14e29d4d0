"""The part of Label Studio's API that vbatch uses: projects, and tasks in pages. Tried with Label Studio 1.23.2.

The token is legacy (``Authorization: Token …``), or a personal one: a refresh token of JWT, which two dots show, and
for which the server gives access tokens of a few minutes. It appears in no message.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from vbatch.errors import ConfigError, LabelStudioError
from vbatch.outbound.api import Api, Reply, Unreachable
from vbatch.outbound.http import Refused, shown

TRIES = 5
PAUSE = 2.0  # seconds before the second try; twice as long before each further one
LONGEST_PAUSE = 60.0
IMPORT_SECONDS = 600.0  # a page of a thousand tasks took 4 s on a small machine
_PROJECT = ("id", "title", "label_config")
LISTED = 500  # tasks asked for at once without annotations
PULLED = 100  # tasks asked for at once with annotations and predictions
_ANNOTATED = {
    "conjunction": "and",
    "items": [
        {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    ],
}
_TOKEN_HINT = "export VBATCH_LABEL_STUDIO_TOKEN=…   # Label Studio: Account & Settings, Access Token"


class Uncertain(Exception):
    """No answer to an import: whether the tasks are there must be looked up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project: its number, title and labeling configuration."""

    id: int
    title: str
    config: str


@dataclass
class LabelStudio:
    """A server. ``sleep`` takes the seconds before a further try."""

    api: Api
    token: str = field(repr=False)
    sleep: Callable[[float], object] = time.sleep
    _access: str | None = field(default=None, repr=False)

    def project(self, number: int) -> Project:
        """Return a project. Raises LabelStudioError where there is none."""
        reply = self._ask("GET", f"/api/projects/{number}/")
        if reply.status == 404:
            raise LabelStudioError(f"{self._name} has no project {number}", hint="--project new")
        return _project(self._good(reply, f"project {number}", *_PROJECT))

    def find(self, title: str) -> Project | None:
        """Return the newest project of exactly this title."""
        reply = self._ask("GET", "/api/projects/", title=title, page_size=100)
        found = [_project(each) for each in self._good(reply, "the list of projects", "results")["results"]]
        return max((each for each in found if each.title == title), key=lambda each: each.id, default=None)

    def create(self, title: str, config: str) -> Project:
        """Make a project. It is not tried again, for there would be two."""
        body = msgspec.json.encode({"title": title, "label_config": config})
        try:
            reply = self._once("POST", "/api/projects/", body)
        except Unreachable as error:
            raise LabelStudioError(f"{self._name}: {error}", hint="run the same command again") from None
        return _project(self._good(reply, "a new project", *_PROJECT))

    def add(self, project: int, tasks: Sequence[bytes]) -> None:
        """Import tasks, each encoded. Raises Uncertain where it is unknown whether they are there."""
        path = f"/api/projects/{project}/import?return_task_ids=true"
        try:
            reply = self._once("POST", path, b"[" + b",".join(tasks) + b"]", seconds=IMPORT_SECONDS)
        except Unreachable as error:
            raise Uncertain(str(error)) from None
        if reply.status >= 500 or reply.status in (408, 429):
            raise Uncertain(f"HTTP {reply.status}")
        added = self._good(reply, "these tasks").get("task_count")
        if added != len(tasks):
            raise Uncertain(f"{added} tasks imported of {len(tasks)}")

    def tasks(self, project: int) -> Iterator[Mapping[str, Any]]:
        """Yield id, data and number of annotations of all tasks of a project, the oldest first."""
        return self._pages(project, {}, LISTED, include="id,data,total_annotations")

    def annotated(self, project: int) -> Iterator[Mapping[str, Any]]:
        """Yield the tasks of a project that have an annotation, with annotations, the oldest first."""
        return self._pages(project, {"filters": _ANNOTATED}, PULLED, fields="all")

    def delete(self, task: int) -> None:
        """Remove a task; one that is gone is well."""
        reply = self._ask("DELETE", f"/api/tasks/{task}/")
        if reply.status != 404:
            self._good(reply, f"task {task}")

    def _pages(
        self, project: int, query: Mapping[str, Any], size: int, **fields: object
    ) -> Iterator[Mapping[str, Any]]:
        """Yield tasks page by page. A server may give fewer per page than asked for: the total decides."""
        text = msgspec.json.encode({**query, "ordering": ["tasks:id"]}).decode()
        seen, page = 0, 1
        while True:
            wanted = {"project": project, "page": page, "page_size": size, "query": text, **fields}
            reply = self._ask("GET", "/api/tasks", **wanted)
            if reply.status == 404 and page > 1:  # tasks were deleted meanwhile
                return
            found = self._good(reply, f"the tasks of project {project}", "tasks", "total")
            yield from found["tasks"]
            seen += len(found["tasks"])
            if seen >= found["total"] or not found["tasks"]:
                return
            page += 1

    def _ask(self, method: str, path: str, **query: object) -> Reply:
        """Ask until there is an answer that a further try would not change. Raises LabelStudioError."""
        cause = ""
        for attempt in range(TRIES):
            if attempt:
                self.sleep(pause(attempt))
            try:
                reply = self._once(method, path, None, query=query)
            except Unreachable as error:
                cause = str(error)
                continue
            if reply.status < 500 and reply.status not in (408, 429):
                return reply
            cause = f"HTTP {reply.status}"
        raise LabelStudioError(f"{self._name} does not answer: {cause}", hint="--url http://HOST:8080")

    def _once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        seconds: float | None = None,
        query: Mapping[str, object] | None = None,
    ) -> Reply:
        """Send one request; with a personal token once more when its access token has expired."""
        for last in (False, True):
            try:
                api = replace(self.api, headers=self._headers(), seconds=seconds or self.api.seconds)
                reply = api.get(path, **query) if query else api.send(method, path, body)
            except Refused as error:
                raise LabelStudioError(f"{self._name}: {error}", hint="--url http://HOST:8080") from None
            if reply.status != 401 or last or not self._is_personal:
                return reply
            self._access = None
        raise AssertionError  # the second time always returns

    def _headers(self) -> dict[str, str]:
        if not self._is_personal:
            return {"Authorization": f"Token {self.token}"}
        if self._access is None:
            reply = self.api.post("/api/token/refresh", {"refresh": self.token})
            if reply.status == 401:
                raise ConfigError(f"{self._name} refuses the personal token (HTTP 401)", hint=_TOKEN_HINT)
            access = self._good(reply, "an access token").get("access")
            if not isinstance(access, str):
                raise LabelStudioError(f"{self._name} gave no access token")
            self._access = access
        return {"Authorization": f"Bearer {self._access}"}

    @property
    def _is_personal(self) -> bool:
        return self.token.count(".") == 2

    @property
    def _name(self) -> str:
        return f"Label Studio at {shown(self.api.url).removesuffix('/…')}"

    def _good(self, reply: Reply, what: str, *names: str) -> Any:
        """Return the object of an answer of status 2xx, which has these names; nothing of an empty one.

        Raises LabelStudioError, ConfigError.
        """
        if reply.status == 204 or (
            reply.succeeded and isinstance(reply.document, dict) and reply.document.keys() >= set(names)
        ):
            return reply.document
        if reply.status in (401, 403):
            raise ConfigError(f"{self._name} refuses the token (HTTP {reply.status})", hint=_TOKEN_HINT)
        if reply.succeeded or (300 <= reply.status < 400):
            raise LabelStudioError(
                f"{self._name} is no Label Studio, or at another URL (HTTP {reply.status})", hint="--url URL"
            )
        raise LabelStudioError(
            f"{self._name} refuses {what} (HTTP {reply.status}): {_detail(reply.document)}"
        )


def pause(attempt: int) -> float:
    """Return how many seconds are waited before this further try."""
    return min(PAUSE * 2.0 ** (attempt - 1), LONGEST_PAUSE)


def _project(document: Mapping[str, Any]) -> Project:
    return Project(id=document["id"], title=document["title"], config=document["label_config"])


def _detail(document: Any) -> str:
    """Return in one line why a server refused something."""
    match document:
        case {"validation_errors": dict(errors)} if all(isinstance(each, list) for each in errors.values()):
            text = "; ".join(
                str(each)
                for listed in errors.values()
                for each in (listed if isinstance(listed, list) else [listed])
            )
        case {"detail": detail}:
            text = str(detail)
        case _:
            text = "no reason given"
    return text.split(" :: ")[0][:300]  # after it stands the whole task
