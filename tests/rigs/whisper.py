"""A small Whisper with random weights, made here: it hears nothing, but it is loaded and answers as a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "whisper-random"
# What vLLM writes before each transcription, and the languages that a test names.
LANGUAGES = ("en", "de", "fr")
TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
LETTERS = 256  # tokens that are no special ones
FLAGS = ("--max-model-len", "64", "--gpu-memory-utilization", "0.3", "--enforce-eager", "--dtype", "float32")


def whisper(folder: Path) -> Path:
    """Write a model, its tokenizer and its feature extractor into a folder, and return it."""
    import torch
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    tokenizer = _tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in tokenizer.get_vocab()}
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=64,
        num_mel_bins=80,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # of tied weights: it writes letters, and no special token
        model.model.decoder.embed_tokens.weight[LETTERS:] = 0
    model.generation_config.suppress_tokens = None
    model.generation_config.begin_suppress_tokens = None
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    wrapped.save_pretrained(folder)
    named = folder / "tokenizer_config.json"
    settings = json.loads(named.read_text()) | {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
    }
    named.write_text(json.dumps(settings))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def _tokenizer() -> Any:
    """One token per byte, as GPT-2 has them before any merge, and Whisper's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>"]
    special += [f"<|{name}|>" for name in (*LANGUAGES, *TASKS)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * step:.2f}|>", special=False) for step in range(1501)])
    return tokenizer
