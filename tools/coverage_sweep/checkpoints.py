"""Whether pruned checkpoints are checkpoints: pruned from a folder into a folder, read again, trained, given adapters.

Every row of the table below is a class of transformers with a tiny config and random weights. It is written as a
checkpoint, opened from there, pruned with ``layout="stock"`` to six tenths of its parameters and by one layer, written,
and read by stock ``from_pretrained``: no missing or unexpected key, outputs that are the same to the last bit, the same
tokens from ``generate`` with a cache. Then three steps of ``Trainer``, a resumed fourth to sixth, and three steps of a
LoRA of peft. Records are kept as they come; the table in docs/checkpoints.md is made from them.

    python -m tools.coverage_sweep.checkpoints [--only PATTERN ...] [--json checkpoints.jsonl] [--table FILE]
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tools.bench.records import Record, Records
from tools.bench.runner import parser_of

RECORDS = Path("checkpoints.jsonl")
TARGET, STEPS = 0.6, 3
TEXT = {"vocab_size": 96, "max_position_embeddings": 80}
LLAMA = {
    **TEXT, "hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
BERT = {
    **TEXT, "hidden_size": 48, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
VIT = {
    "hidden_size": 48, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.2,
}  # fmt: skip
BART = {
    **TEXT, "d_model": 48, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None, "forced_bos_token_id": None,
}  # fmt: skip
WAV = {
    "hidden_size": 48, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 32,
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 4), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}

KINDS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("decoder", "LlamaForCausalLM", LLAMA),
    "mistral": ("decoder", "MistralForCausalLM", {**LLAMA, "sliding_window": 8}),
    "qwen2": ("decoder", "Qwen2ForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "qwen3": ("decoder", "Qwen3ForCausalLM", LLAMA),
    "gemma": ("decoder", "GemmaForCausalLM", LLAMA),
    "gemma2": ("decoder", "Gemma2ForCausalLM", {**LLAMA, "sliding_window": 8}),
    "gemma3": ("decoder", "Gemma3ForCausalLM", {**LLAMA, "sliding_window": 8}),
    "phi": ("decoder", "PhiForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "phi3": ("decoder", "Phi3ForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "olmo2": ("decoder", "Olmo2ForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "gpt2": ("decoder", "GPT2LMHeadModel", {
        "vocab_size": 96, "n_positions": 80, "n_embd": 48, "n_inner": 256, "n_layer": 3, "n_head": 4,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}),
    "gpt_neox": ("decoder", "GPTNeoXForCausalLM", {**BERT, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("decoder", "OPTForCausalLM", {
        **TEXT, "hidden_size": 48, "ffn_dim": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
        "word_embed_proj_dim": 48, "init_std": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "mixtral": ("mixture of experts", "MixtralForCausalLM", {
        **LLAMA, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("mixture of experts", "Qwen2MoeForCausalLM", {
        **{k: v for k, v in LLAMA.items() if k != "head_dim"}, **EXPERTS, "num_experts": 4,
        "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("mixture of experts", "Qwen3MoeForCausalLM", {**LLAMA, **EXPERTS, "num_experts": 4}),
    "bert": ("encoder", "BertForSequenceClassification", BERT),
    "roberta": ("encoder", "RobertaForSequenceClassification", {**BERT, "max_position_embeddings": 90}),
    "distilbert": ("encoder", "DistilBertForSequenceClassification", {
        "vocab_size": 96, "max_position_embeddings": 80, "dim": 48, "hidden_dim": 256, "n_layers": 3, "n_heads": 4}),
    "electra": ("encoder", "ElectraForSequenceClassification", {**BERT, "embedding_size": 48}),
    "modernbert": ("encoder", "ModernBertForSequenceClassification", {
        **BERT, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}),
    "t5": ("encoder-decoder", "T5ForConditionalGeneration", {
        "vocab_size": 96, "d_model": 48, "d_kv": 12, "d_ff": 256, "num_layers": 3, "num_decoder_layers": 3,
        "num_heads": 4, "decoder_start_token_id": 0}),
    "bart": ("encoder-decoder", "BartForConditionalGeneration", BART),
    "pegasus": ("encoder-decoder", "PegasusForConditionalGeneration", BART),
    "vit": ("vision", "ViTForImageClassification", VIT),
    "deit": ("vision", "DeiTForImageClassification", VIT),
    "dinov2": ("vision", "Dinov2ForImageClassification", {
        **{k: v for k, v in VIT.items() if k != "intermediate_size"}, "mlp_ratio": 5}),
    "siglip": ("vision", "SiglipVisionModel", VIT),
    "whisper": ("speech", "WhisperForConditionalGeneration", {
        **{k: v for k, v in BART.items() if k != "max_position_embeddings"}, "num_mel_bins": 8,
        "max_source_positions": 32, "max_target_positions": 80, "suppress_tokens": None,
        "begin_suppress_tokens": None}),
    "wav2vec2": ("speech", "Wav2Vec2ForCTC", WAV),
    "hubert": ("speech", "HubertForCTC", WAV),
}  # fmt: skip
"""By name: what it is, the class, and its config."""
PASSED = ("stock", "generate", "trainer", "peft")


def main() -> None:
    """Runs all rows that have no record yet, and writes the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="patterns of names")
    parser.add_argument("--json", type=Path, default=RECORDS, help="where records are kept")
    parser.add_argument("--table", type=Path, help="where the table is written")
    given = parser.parse_args()
    records = Records(given.json, ("model",))
    names = [name for name in KINDS if not given.only or any(re.search(each, name) for each in given.only)]
    for key in records.missing({"model": name} for name in names):
        record: Record = dict(key)
        begin = time.perf_counter()
        try:
            with _quiet():
                measure(record)
        except Exception as error:  # noqa: BLE001  (what went wrong is what is recorded)
            record["error"] = f"{type(error).__name__}: {error}"[:300]
        record["seconds"] = round(time.perf_counter() - begin, 1)
        records.add(record)
        print(record, flush=True)
    if given.table:
        given.table.write_text(table([r for r in records if r["model"] in KINDS]) + "\n")


def measure(record: Record) -> None:
    """Takes one class from folder to folder, and trains what comes of it; what was reached stands in the record."""
    import torch
    import transformers

    import graphprune as gp

    kind, name, sizes = KINDS[record["model"]]
    record.update({"kind": kind, "class": name, **dict.fromkeys(PASSED, False)})
    torch.manual_seed(0)
    built: Any = getattr(transformers, name)
    model = built(built.config_class(**sizes)).eval()
    with tempfile.TemporaryDirectory() as place:
        whole, small = Path(place, "whole"), Path(place, "small")
        model.save_pretrained(whole)
        session = gp.Session(str(whole))
        options: dict[str, Any] = {"target": {"params": TARGET}, "layout": "stock", "verify": False}
        try:
            result, record["depth"] = session.prune(layers=1, **options), True
        except gp.GraphpruneError as error:
            record["depth"], record["no_depth"] = False, str(error)[:300]
            result = session.prune(**options)
        record["params"] = round(result.report.cost("params").fraction, 3)
        (check,) = result.save_pretrained(small)
        record["stock"] = check.passed
        record["generates"] = "same tokens" in check.note
        record["config"] = {
            row.path.removeprefix("config."): [row.before, row.after]
            for row in result.report.attributes
            if re.fullmatch(r"config\.\w+", row.path)
        }
        record["generate"] = record["generates"] or not _generates(result.module)
        example = {key: value for key, value in _arguments(session).items() if isinstance(value, torch.Tensor)}
        record["trainer"] = trained(small, built, example, Path(place, "trained"))
        record["peft"] = adapted(small, built, example)


def _generates(module: Any) -> bool:
    return bool(getattr(module, "can_generate", lambda: False)())


def _arguments(session: Any) -> dict[str, Any]:
    args, kwargs = session.host.example
    assert not args
    return dict(kwargs)


def trained(folder: Path, kind: Any, example: Mapping[str, Any], place: Path) -> bool:
    """Three steps of Trainer, then three more from its checkpoint, whose sizes are the pruned ones."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Squares(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            output = model(**inputs)
            loss = next(value for value in output.values() if isinstance(value, torch.Tensor)).float().square().mean()
            return (loss, output) if return_outputs else loss

    def run(steps: int, *, resume: bool) -> Any:
        arguments = TrainingArguments(
            output_dir=str(place), max_steps=steps, save_steps=STEPS, per_device_train_batch_size=1, report_to=[],
            use_cpu=True, disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
        )  # fmt: skip
        rows = [{name: value[0] for name, value in example.items()}] * (2 * STEPS)
        trainer = Squares(model=kind.from_pretrained(folder), args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run(STEPS, resume=False)
    again = run(2 * STEPS, resume=True)
    kept = kind.from_pretrained(place / f"checkpoint-{2 * STEPS}")
    same = all(torch.equal(a, b) for a, b in zip(again.model.parameters(), kept.parameters(), strict=True))
    return again.state.global_step == 2 * STEPS and same


def adapted(folder: Path, kind: Any, example: Mapping[str, Any]) -> bool:
    """Three steps of a LoRA on all linear layers; the adapter is written, and read on the pruned checkpoint."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    module = get_peft_model(kind.from_pretrained(folder), LoraConfig(r=2, target_modules="all-linear"))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(STEPS):
        output = module(**example)
        loss = next(value for value in output.values() if isinstance(value, torch.Tensor)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        module.eval().save_pretrained(place)
        again = PeftModel.from_pretrained(kind.from_pretrained(folder), place).eval()
        one, other = (next(iter(each(**example).values())) for each in (module, again))
    return bool(torch.equal(one, other)) and bool(torch.isfinite(one).all())


def table(records: list[Record]) -> str:
    """The table of the documentation."""
    lines = ["| kind | class | parameters left | a layer less | stock reload | generate | Trainer | LoRA | config |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for record in records:
        done = ["yes" if record.get(key) else "no" for key in PASSED]
        done[1] = done[1] if record.get("generates") else "none" if done[1] == "yes" else "no"
        numbers = {key: pair for key, pair in record.get("config", {}).items() if not isinstance(pair[0], list)}
        config = ", ".join(f"`{key}` {b}" if a is None else f"`{key}` {a} → {b}" for key, (a, b) in numbers.items())
        left = f"{record['params']:.0%}" if "params" in record else "none"
        if not record.get("stock"):
            done, config = ["no"] * len(PASSED), record.get("error", "").partition(":")[2].strip()
        deep = "yes" if record.get("depth") else "no"
        lines.append(
            f"| {record.get('kind')} | {record.get('class')} | {left} | {deep} | {' | '.join(done)} | {config} |"
        )
    return "\n".join(lines)


@contextmanager
def _quiet() -> Iterator[None]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
