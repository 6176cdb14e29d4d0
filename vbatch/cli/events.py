"""The worker's log events as sentences, for a person at a terminal; journals and files get ``event key=value``."""

from __future__ import annotations

import logging
import re

from vbatch import logs
from vbatch.text import count, duration, harmless

# ``{chunks:chunk}`` is a number with its noun, ``{seconds:time}`` a duration, ``{model}`` the value itself.
SENTENCES = {
    "batch.cancelled": "{batch} is cancelled: {completed:request} answered, {failed} failed",
    "batch.completed": "{batch} is completed: {completed:request} answered, {failed} failed",
    "batch.expired": "{batch} has expired: its requests that have not run yet will not run",
    "batch.left": "{batch} only lacks its files: {host} writes them, at any vbatch command there",
    "batch.output_refused": "cannot write the output of {batch}: {error}; trying again in {retry_seconds:time}",
    "batch.output_renamed": "{taken} exists: the lines of {batch} are in {file}",
    "batch.validated": "{batch} is {status}: {requests:request}",
    "chat.failed": "a chat at {path} failed: {error}",
    "chat.listening": "chat is answered at {socket}",
    "chat.unavailable": "no chat: cannot make a socket in {folder} ({error})",
    "chunks.rejected": "unsaved answers are dropped: another worker holds the lease of {count:chunk}",
    "chunks.revoked": "stopped {count:chunk}: cancelled, or taken over by another worker",
    "chunks.strayed": "{count:chunk} of this worker put back into the queue",
    "endpoint.blocked": "the requests for {model} at {url} wait: {cause}",
    "endpoint.reopened": "{model} has changed; its next load shows at which endpoints it answers",
    "engine.died": "the engine of {model} crashed: {cause}",
    "engine.figures": "{model}: {prefix_hits} % of the prompt tokens came from its cache, {preemptions:preemption}",
    "engine.idle": "nothing to do for {seconds:time}: the engine is unloaded",
    "engine.loaded": "{model} is loaded; up to {max_inflight:request} at once",
    "engine.loading": "loading {model} (attempt {attempt})",
    "engine.processes": "the engine's processes: {pids}",
    "engine.start_failed": "{model} could not be loaded (attempt {attempt}): {cause}",
    "engine.state_refused": "cannot write to {folder}: {error}; trying again in {retry_seconds:time}",
    "engine.unloaded": "{model} is unloaded",
    "engine.version": "vLLM {version} is newer than those that vbatch is tested with ({tested})",
    "engine.without_effect": "flags without effect in a worker: {flags}",
    "machine.slept": "the machine slept: the engine is loaded again, and no request is blamed",
    "metrics.serving": "metrics at {url}",
    "metrics.unavailable": "no metrics: port {port} cannot be used ({reason})",
    "model.blocked": "{model} cannot be loaded, its requests wait: {cause}",
    "model.left_alone": "{requests:request} for {model} left to a worker with {engine}: {command}",
    "notify.delivered": "notified {target} of {batch}",
    "notify.failed": "{target} cannot be notified: {reason}",
    "notify.given_up": "{target} cannot be notified, no further try: {reason}",
    "notify.unknown_name": "{target} is not notified here: config.toml has no [notify.{target}]",
    "notify.crashed": "notifications have failed",
    "model.unblocked": "{model} can be loaded again",
    "orphan.ended": "engine process {pid} of the dead worker {worker}: {outcome}",
    "server.behind": "{part} of the server: {error}; trying again",
    "server.behind_crashed": "{part} of the server has failed; trying again",
    "server.expired": "removed {files:file} whose time has passed",
    "server.listening": "listening at {url}, opening the database",
    "server.ready": "serving at {url}",
    "server.store_replaced": "{reason}; the server continues with what the store holds now",
    "server.stopped": "server stopped",
    "server.files_unknown": "the store does not know {files:file}: kept in {folder}, and used again when a store does",
    "server.swept": "removed {files:file} that a server that crashed left behind",
    "remote.blocked": "the endpoint {endpoint} {cause}",
    "remote.down": "the endpoint {endpoint} cannot be reached: {cause}; it is asked again until it is back",
    "remote.models": "the endpoint {endpoint} has {models}",
    "remote.paused": "the endpoint {endpoint} has a pause of {seconds:time}, then {limit:request} at once",
    "remote.up": "the endpoint {endpoint} answers",
    "store.back": "the store is reachable again after {seconds:time}",
    "store.backed_up": "the store was backed up to {file}",
    "store.migrated": "the store has the schema {revision} now",
    "store.replaced": "{reason}; the worker registers again and continues with what the store holds now",
    "store.waiting": "waiting for the store: {reason} ({seconds:time})",
    "submit.swept": "removed what {abandoned:submit} that crashed left in the store",
    "worker.draining": "stopping: {running:request} still running",
    "worker.heartbeat_failed": "the store did not record the heartbeat: {error}",
    "worker.hung": "no progress for {silent_seconds:time}: the leases are no longer renewed",
    "worker.interrupted": "interrupted",
    "worker.ended": "the worker of GPU {gpu} has ended (exit code {exit_code})",
    "worker.parent_ended": "the process that started this worker has ended: stopping",
    "worker.killed": "the kernel ended the worker {worker}: {of} ran out of memory",
    "worker.drain_paused": "{reason}: the worker ends, and what is not finished waits",
    "worker.paused": "{reason}: running requests finish, then the model is unloaded",
    "worker.resumed": "the pause is over",
    "worker.ready": "worker started ({engine} engine)",
    "worker.recovered": "{chunks:chunk} of the dead worker {worker} put back into the queue",
    "worker.runtime_over": "the time of this worker ends in {seconds:time}: stopping",
    "worker.share": "the GPUs that this process was given: {gpus}",
    "worker.stopped": "worker stopped",
    "worker.unsaved": "{results:result} could not be saved, the store is unreachable: those requests run again",
}

_ARGUMENT = re.compile(r"(?:(\w+)=)?%[.\d]*[sdf]")  # of a message such as "engine.idle seconds=%.0f"


class SentenceFormatter(logs.EventFormatter):
    """Formats a record as its sentence; one without a sentence as ``event key=value``."""

    def event(self, record: logging.LogRecord) -> str:
        """Return the sentence of this event."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        event = str(record.msg).partition(" ")[0]
        event %= arguments[: event.count("%s")]
        sentence = SENTENCES.get(event)
        names = _ARGUMENT.findall(str(record.msg))
        values = {name: _Value(argument) for name, argument in zip(names, arguments, strict=False)}
        if sentence is None:
            return super().event(record)
        try:
            return sentence.format_map(values)
        except KeyError:  # a value was renamed: its plain line is better than none
            return super().event(record)


class _Value:
    """A value of an event that formats itself for people."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        value = self._value
        if isinstance(value, int | float) and spec:
            return duration(value) if spec == "time" else count(int(value), spec)
        return f"{value:,}" if isinstance(value, int) else harmless(str(value))
