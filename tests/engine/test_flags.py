"""vLLM's flags as a worker takes them: parsed by the real parser of the installed vLLM."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from vbatch.engine import flags  # noqa: E402


def test_lists_add_up() -> None:
    """As the configuration and the command line give them. Mutant: the last one wins, as vLLM has it."""
    words = ["--lora-modules", "a=/a", "b=/b", "--model", "m", "--lora-modules", "c=/c"]
    assert [module.name for module in flags.parse(words).lora_modules] == ["a", "b", "c"]
    assert [module.name for module in flags.parse(["--lora-modules", "d=/d"]).lora_modules] == ["d"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--headless"], ("--headless",)),
        (["--api-server-count", "4", "--port", "80"], ("--api-server-count", "--port")),
        (["--served-model-name", "x"], ("--served-model-name",)),
        (["--distributed-executor-backend", "ray"], ("--distributed-executor-backend ray",)),
        (["--data-parallel-backend=ray"], ("--data-parallel-backend ray",)),
        (["--max-model-len", "10"], ()),
    ],
)
def test_what_does_nothing_is_named(words: list[str], named: tuple[str, ...]) -> None:
    """Mutant: an empty list of them."""
    arguments = flags.parse(words)
    assert flags.switch_off(arguments) == named
    assert flags.switch_off(arguments) == (), "it is off"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--enable-auto-tool-choice", "--tool-call-parser", "hermess"], "invalid tool call parser: hermess"),
        (["--reasoning-parser", "qwen4711"], "invalid reasoning parser: qwen4711"),
    ],
)
def test_a_parser_that_is_not_there(words: list[str], complaint: str) -> None:
    """Before the load. Mutant: without ``validate_api_server_args`` the model is loaded, and each request fails."""
    with pytest.raises(flags.ParserUnknown, match=complaint):
        flags.parse(words)
