"""Prune small decoders of many families and decode with their caches: what ``generate`` gives is what was proven.

    python -m tools.proofs.decoders [--only FAMILY ...] [--target params=0.6] [--json FILE]

Each decoder has 12 layers and 4 key-value heads where the family has such, so that sizes that pruning changes equal the
indices of layers. Needs transformers; weights are random, nothing is loaded. A row fails where the pruned module is not
the family's class, where a layer has another index than in the original, or where the logits with a cache differ from
those without by more than 1e-5 of the largest (seen here by ``generate`` of its own, beside the proof's check).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

import graphprune as gp
from tools.bench.records import Record
from tools.bench.records import table as text_table
from tools.bench.runner import Sweep, arguments, run

N_LAYERS, N_TOKENS, N_NEW = 12, 12, 8
LIMIT, SECONDS = 1e-5, 30.0

_GENERAL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 8,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_GENERAL, "num_key_value_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1}

DECODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 64}),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "qwen3_moe": ("Qwen3Moe", {**_GROUPED, **_EXPERTS, "head_dim": 8}),
    "gemma2": ("Gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}),
    "phi": ("Phi", _GROUPED),
    "phi3": ("Phi3", _GROUPED),
    "olmo2": ("Olmo2", _GROUPED),
    "stablelm": ("StableLm", _GROUPED),
    "gpt_neox": ("GPTNeoX", _GENERAL),
    "gpt2": ("GPT2", {**_GENERAL, "n_inner": 96}),
    "opt": ("OPT", {**_GENERAL, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "starcoder2": ("Starcoder2", _GROUPED),
    "granite": ("Granite", _GROUPED),
    "falcon": ("Falcon", {**_GENERAL, "num_kv_heads": 4, "new_decoder_architecture": True, "alibi": False}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_GENERAL,
            "num_key_value_heads": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 12,
            "first_k_dense_replace": 4,
            "kv_lora_rank": 12,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "mamba2": (
        "Mamba2",
        {**_GENERAL, "num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8, "expand": 2},
    ),
}
"""By family: the name of its classes, and the configuration."""


def decoder(family: str) -> nn.Module:
    """A small decoder with random weights, in evaluation mode."""
    name, options = DECODERS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def indices(model: nn.Module) -> dict[str, int]:
    """The numbers of layers that parts of a decoder keep."""
    return {
        path: part.layer_idx
        for path, part in model.named_modules()
        if isinstance(getattr(part, "layer_idx", None), int)
    }


def cache_error(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> float:
    """The largest difference of logits with a cache to those without, by the class's own ``generate``; greedy."""
    found = {
        cached: model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=N_NEW,
            min_new_tokens=N_NEW,
            do_sample=False,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
            **(options if cached else {}),
        )
        for cached in (True, False)
    }
    if not torch.equal(found[True].sequences, found[False].sequences):
        return float("inf")
    with_cache, without = (torch.stack(found[cached].logits) for cached in (True, False))
    return float((with_cache - without).abs().max() / without.abs().max())


def measure(record: Record) -> None:
    """Prunes one decoder and decodes with it."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    model = decoder(record["family"])
    ids = torch.randint(3, 96, (2, N_TOKENS))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    record["passed"] = False
    begin = time.perf_counter(), time.process_time()
    result = gp.prune(model, {"input_ids": ids}, target=record["target"])
    record.update(prune_seconds=time.perf_counter() - begin[0], prune_cpu_seconds=time.process_time() - begin[1])
    module = result.module
    same_class = type(module) is type(model)
    check = next((check for check in result.report.proof if check.name == "cached"), None)
    record.update(
        {
            "class": type(module).__name__,
            "params": result.report.cost("params").fraction,
            "layer_idx_intact": indices(module) == indices(model) if same_class else None,
            "attributes": {row.path: [row.before, row.after] for row in result.report.attributes},
            "proof": None if check is None else [check.difference, check.tolerance, check.note],
            "notes": list(result.report.notes),
        }
    )
    original = cache_error(model, ids, mask)
    error = cache_error(module, ids, mask) if same_class else None
    record.update(original=original, cached=error)
    good = same_class and record["layer_idx_intact"] and check is not None and error is not None
    quick = record["prune_cpu_seconds"] < SECONDS
    record["passed"] = bool(good and quick and error <= max(LIMIT, 2 * original))


def line(record: Record) -> str:
    """A record in short."""
    return f"{record['family']}: {record.get('error') or ('passed' if record['passed'] else 'FAILED')}"


def table(records: list[Record]) -> str:
    """All families."""
    head = ("family", "class", "params", "layer_idx", "attributes", "cached", "original", "CPU seconds", "")
    rows = []
    for record in records:
        if "error" in record:
            rows.append([record["family"], record["error"][:60], *[None] * 6, "FAILED"])
            continue
        names = {path.rpartition(".")[2] for path in record["attributes"]}
        rows.append(
            [
                record["family"], record["class"], f"{record['params']:.0%}", record["layer_idx_intact"],
                ", ".join(sorted(names)), record["cached"], record["original"],
                f"{record['prune_cpu_seconds']:.1f}", "passed" if record["passed"] else "FAILED",
            ]
        )  # fmt: skip
    return text_table(head, rows)


def main() -> int:
    """Runs the families; 1 if one does not pass."""
    parser = arguments(__doc__, seconds=600)
    parser.add_argument("--target", default="params=0.6")
    options = parser.parse_args()
    sweep = Sweep(("family", "target"), measure, line, table, fork=True)
    found = run(sweep, [{"family": family, "target": options.target} for family in DECODERS], options)
    return int(not all(record.get("passed") for record in found))


if __name__ == "__main__":
    sys.exit(main())
