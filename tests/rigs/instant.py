"""vLLM's engine without its computing: every request is scheduled as ever, and each step's tokens are there at once.

``--distributed-executor-backend tests.rigs.instant.InstantExecutor`` loads the model and never runs it. The process
of the engine, its scheduler and its socket are vLLM's own, so what remains is the cost of everything around the model.
A step takes the ``step`` seconds of ``--additional-config '{"step": 0.005, "at_once": false}'``. ``at_once`` gives the
tokens of a whole answer in one step (with ``--no-async-scheduling``, which counts one token for each).
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput

TOKENS = (504, 2365, 282, 260)  # words of SmolLM2's


class InstantExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM is not looked into here
    """Answers each step with a token for every request whose prompt has been read, or with its embedding."""

    def _init_executor(self) -> None:
        super()._init_executor()
        self._prompts: dict[str, int] = {}
        self._tokens: dict[str, int] = {}  # that a request gets in a step
        self._step: Any = None
        self._seconds = float(self.vllm_config.additional_config.get("step", 0))
        self._at_once = bool(self.vllm_config.additional_config.get("at_once"))
        self._embedding = torch.nn.functional.normalize(
            torch.arange(1.0, self.model_config.get_hidden_size() + 1), dim=0
        )

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Keep what is scheduled for ``sample_tokens``; a pooling model has its answers at once."""
        for gone in scheduler_output.finished_req_ids:
            self._prompts.pop(gone, None)
            self._tokens.pop(gone, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._prompts[new.req_id] = len(new.prompt_token_ids)
            if self._at_once:
                self._tokens[new.req_id] = new.sampling_params.max_tokens
        self._step = scheduler_output
        time.sleep(self._seconds)
        pooling = self.model_config.runner_type == "pooling"
        output = self._output() if pooling or not scheduler_output.total_num_scheduled_tokens else None
        return _done(output) if non_block else output

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:  # noqa: ARG002  (vLLM's signature)
        """Return a token for each request that is past its prompt."""
        return _done(self._output()) if non_block else self._output()

    def _output(self) -> ModelRunnerOutput:
        step, cached = self._step, self._step.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        ids = list(computed)
        ready = [
            before + step.num_scheduled_tokens[name] >= self._prompts[name]
            for name, before in computed.items()
        ]
        output = ModelRunnerOutput(
            req_ids=ids, req_id_to_index={name: place for place, name in enumerate(ids)}
        )
        if self.model_config.runner_type == "pooling":
            output.pooler_output = [self._embedding if each else None for each in ready]
        else:
            output.sampled_token_ids = [
                [TOKENS[computed[name] % len(TOKENS)]] * self._tokens.get(name, 1) if each else []
                for name, each in zip(ids, ready, strict=True)
            ]
        return output


def _done(output: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(output)
    return future
