"""What a bug report must not hold: each secret and each prompt in the shape in which it once got through."""

from __future__ import annotations

import pytest

from vbatch.doctor.redaction import clean, cleaned, harmless_lines

SECRET = "hunter2.hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"args=('--api-key', '{SECRET}', '--max-num-seqs', '9')",
        f"args=('--hf-token','{SECRET}')",
        f"vbatch run-worker -- --hf-token {SECRET}",
        f"--api-key={SECRET}",
        f'["--api-key", "{SECRET}"]',
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"HF_TOKEN={SECRET}",
        f'{{"token": "{SECRET}"}}',
        f"{{'password': '{SECRET} with blanks'}}",
        f"Authorization: Bearer {SECRET}",
        f"'authorization': 'Basic {SECRET}'",
        f"got Bearer {SECRET}",
        f"Authorization: Token {SECRET}",
        f"VBATCH_LABEL_STUDIO_TOKEN={SECRET}",
        f"the token eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyIjoxfQ.{SECRET} is refused",
        f"http://ann:{SECRET}@127.0.0.1:8080/health",
        f"https://host/?a=1&api_key={SECRET}&b=2",
    ],
)
def test_a_secret_is_removed(text: str) -> None:
    """Mutant: each pattern taken out lets one of these through."""
    assert SECRET not in clean(text)
    assert "hunter2" not in repr(cleaned({"a": [text]}))


@pytest.mark.parametrize(
    "text",
    [
        "secret/m: gpu_memory_utilization 0.92",
        "vbatch submit x -m my-token/model",
        "--max-num-batched-tokens 8192 --tokenizer-mode auto",
        "max_num_batched_tokens=8192",
        "postgresql://ann@127.0.0.1:5432/vbatch",
    ],
)
def test_what_only_sounds_like_one_stays(text: str) -> None:
    """Mutant: any word that holds one of the names."""
    assert clean(text) == text


LOG = """\
INFO 11-25 03:52:01 [core.py:58] Initializing a V1 LLM engine with config: model='m', dtype=bfloat16
(EngineCore_DP0 pid=7) INFO 11-25 03:52:02 [gpu_model_runner.py:9] Loading weights took 3.2 seconds
INFO 11-25 03:52:03 [logger.py:40] Received request chatcmpl-1: prompt: 'dear diary,
INFO 11-25 03:52:03 [logger.py:40] today I went to the sea', params: SamplingParams(n=1)
INFO 11-25 03:52:04 [loggers.py:9] Avg prompt throughput: 10.0 tokens/s, GPU KV cache usage: 3.0%
dear diary, a second line
{"custom_id": "a", "body": {"text": "dear diary"}}
(EngineCore_DP0 pid=7) ERROR 11-25 03:52:05 [core.py:700] Traceback (most recent call last):
(EngineCore_DP0 pid=7) ERROR 11-25 03:52:05 [core.py:700]   File "/v/core.py", line 691, in run
(EngineCore_DP0 pid=7) ERROR 11-25 03:52:05 [core.py:700]     raise ValueError(f"the diary {it}")
(EngineCore_DP0 pid=7) ERROR 11-25 03:52:05 [core.py:700] ValueError: the text "dear diary, all of it
(EngineCore_DP0 pid=7) ERROR 11-25 03:52:05 [core.py:700] and its second line about the sea"
(EngineCore_DP0 pid=7) ERROR 11-25 03:52:06 [core.py:700] ValueError: Free memory on device (1.2/15.57 GiB) on startup
WARNING 11-25 03:52:07 [x.py:1] Truncated 'dear diary, once more' to 10 tokens
ValueError: dear diary
"""


def test_no_line_of_a_prompt_is_kept() -> None:
    """Mutants: looking at single lines alone; keeping what has vLLM's prefix; keeping the words of an exception."""
    kept = "\n".join(harmless_lines(LOG.splitlines()))
    for words in ("diary", "the sea", "second line"):
        assert words not in kept, kept
    for words in (
        "Initializing a V1 LLM engine",
        "Loading weights took 3.2 seconds",
        "Avg prompt throughput: 10.0 tokens/s",
        'File "/v/core.py", line 691, in run',
        "ValueError: …",
        "ValueError: Free memory on device (1.2/15.57 GiB) on startup",
        "(2 lines that may quote a request)",
    ):
        assert words in kept, kept
