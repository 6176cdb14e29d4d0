"""Notify of the end of a batch, or of its blocking: by a command of this machine's configuration, or by a webhook.

A command stands only in the configuration of the process that runs it, never in the store: who can write to the store
cannot have anything run. A webhook is OpenAI's event object, signed as https://www.standardwebhooks.com says.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time

from vbatch import recovery
from vbatch.batches.documents import batch_document
from vbatch.batches.workers import Blocks, blocks
from vbatch.config import Settings
from vbatch.config.tables import webhook_key
from vbatch.errors import NoSuchBatch, UsageError, VbatchError
from vbatch.outbound import http
from vbatch.store import Store, catalog, events
from vbatch.store.events import Event
from vbatch.store.records import Batch
from vbatch.system import commands
from vbatch.text import one_line

log = logging.getLogger(__name__)

SECONDS = 20.0  # that a delivery may take
AT_ONCE = 5.0  # seconds that a command takes to notify of what it has ended
_LEAST = 1.0  # seconds; with less time left no delivery is begun


class _NotDelivered(Exception):
    """Why a try failed; the text holds no secret."""


def check_target(settings: Settings, target: str) -> str:
    """Return a target that can be used. Raises UsageError for a name that is not configured, or a wrong URL."""
    if "://" in target:
        try:
            http.check(target)
        except http.Refused as error:
            raise UsageError(f"--notify: {error}", hint="--notify https://example.org/hook") from None
        return target
    if target not in settings.notify:
        known = ", ".join(settings.notify) or "none"
        raise UsageError(
            f"--notify {target}: the configuration has no command of this name; it has {known}",
            hint=f'write it into config.toml: [notify.{target}] command = ["notify-send", "vbatch"]',
        )
    return target


def notify_at_once(store: Store, settings: Settings, batch: Batch) -> None:
    """Deliver that a command has just ended this batch, where no worker does: one try, what fails stays for a worker.

    The command has done what it was for: nothing that goes wrong here is its failure.
    """
    try:
        if not recovery.alive(store):
            deliver_due(store, settings, seconds=AT_ONCE, batch=batch.pk)
    except VbatchError as error:
        log.debug("notify.stopped reason=%s", error)


def deliver_for_workers(store: Store, settings: Settings) -> None:
    """Deliver what is due where no live worker would."""
    if not recovery.alive(store):
        deliver_due(store, settings, seconds=AT_ONCE)


def deliver_due(store: Store, settings: Settings, *, seconds: float, batch: int | None = None) -> int:
    """Deliver what is due, of one batch or of all, in so much time at most; return how many events were delivered."""
    end = time.monotonic() + seconds
    done = 0
    while (rest := end - time.monotonic()) >= _LEAST:
        event = events.take_due(store, names=settings.notify, batch=batch)
        if event is None:
            break
        done += _deliver(store, settings, event, seconds=min(rest, SECONDS))
    return done


def leave_to_others(store: Store, settings: Settings) -> None:
    """Report what is due for a name that the configuration of this process does not have: another one may have it."""
    for event in events.leave_unknown(
        store, names=settings.notify, problem="no process that knows this name ran yet"
    ):
        log.warning("notify.unknown_name event=%s target=%s", event.type, event.target)


def _deliver(store: Store, settings: Settings, event: Event, *, seconds: float) -> bool:
    target = http.shown(event.target) if "://" in event.target else event.target
    try:
        batch = catalog.by_pk(store, pk=event.batch)
        if "://" in event.target:
            _post(settings, event, batch.id, seconds=seconds)
        else:
            blocked = blocks(store, pks=[batch.pk]).get(batch.pk, Blocks())
            document = batch_document(batch, blocked) | {"event": event.type}
            _run(settings, event, json.dumps(document).encode(), seconds=seconds)
    except NoSuchBatch:
        events.delivered(store, event)  # it was deleted
        return False
    except (_NotDelivered, http.Refused) as error:
        _failed(store, event, target, str(error))
        return False
    except OSError as error:
        _failed(store, event, target, http.reason(error))
        return False
    events.delivered(store, event)
    log.info("notify.delivered event=%s target=%s batch=%s", event.type, target, batch.id)
    return True


def _failed(store: Store, event: Event, target: str, reason: str) -> None:
    if events.failed(store, event, reason):
        log.warning("notify.failed event=%s target=%s reason=%s", event.type, target, reason)
    else:
        log.error("notify.given_up event=%s target=%s reason=%s", event.type, target, reason)


def _post(settings: Settings, event: Event, batch_id: str, *, seconds: float) -> None:
    document = {
        "id": event.id,
        "object": "event",
        "type": event.type,
        "created_at": int(event.created_at.timestamp()),
        "data": {"id": batch_id},
    }
    body = json.dumps(document).encode()
    headers = {"Content-Type": "application/json", **_signed(settings, event.id, body)}
    http.post(event.target, body, headers, seconds=seconds, private=settings.notify_private)


def _signed(settings: Settings, event_id: str, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook; without a secret it is not signed."""
    moment = str(int(time.time()))
    headers = {"webhook-id": event_id, "webhook-timestamp": moment}
    if settings.notify_secret is None:
        return headers
    key = webhook_key(settings.notify_secret)
    signature = hmac.new(key, f"{event_id}.{moment}.".encode() + body, hashlib.sha256).digest()
    return headers | {"webhook-signature": f"v1,{base64.b64encode(signature).decode()}"}


def _run(settings: Settings, event: Event, document: bytes, *, seconds: float) -> None:
    """Run a command without a shell, with the batch on its standard input."""
    command = settings.notify[event.target].command
    try:
        code, said = commands.run(command, document, seconds=seconds)
    except TimeoutError:
        raise _NotDelivered(f"{command[0]} ran longer than {seconds:.0f} s") from None
    except OSError as error:
        raise _NotDelivered(
            f"{command[0]} cannot be started: {(error.strerror or str(error)).lower()}"
        ) from None
    if code != 0:
        raise _NotDelivered(
            f"{command[0]} exited with {code}" + (f": {one_line(said, limit=200)}" if said else "")
        )
