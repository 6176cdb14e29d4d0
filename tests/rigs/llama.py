"""A tiny Llama with random weights, made here: it writes nonsense, and can be split over 2 or 4 processes."""

from __future__ import annotations

from pathlib import Path

NAME = "llama-random"
HEADS = 4  # each of 32 numbers, the fewest that vLLM's CPU attention has
FLAGS = ("--max-model-len", "512", "--gpu-memory-utilization", "0.1", "--enforce-eager", "--dtype", "float32")
END = "<|end|>"
CHAT = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def llama(folder: Path) -> Path:
    """Write a model and its tokenizer, one token per byte, into a folder, and return it."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    end = tokenizer.token_to_id(END)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 63,  # a multiple of 64
        hidden_size=32 * HEADS,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=end,
        eos_token_id=end,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, unk_token=END)
    wrapped.chat_template = CHAT
    wrapped.save_pretrained(folder)
    return folder
