"""A LoRA adapter with random weights for the small model: of the shape that vLLM loads, with another answer."""

from __future__ import annotations

import json
from pathlib import Path

RANK = 24  # above vLLM's default of 16


def make(folder: Path, model: Path, *, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> Path:
    """Write an adapter for the model in this folder. Needs torch and safetensors, which vLLM brings."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    widths = {"q_proj": heads * head, "v_proj": config["num_key_value_heads"] * head}
    torch.manual_seed(7)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            place = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{place}.lora_A.weight"] = torch.randn(RANK, hidden) * 0.5
            weights[f"{place}.lora_B.weight"] = torch.randn(widths[target], RANK) * 0.5
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(targets),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder
