"""A small decoder, trained here on real text, for methods that prune language models while they are trained.

LLaMA's architecture as transformers has it, tokens of a byte-pair table made of the training text. Texts: Wikipedia
articles and movie snippets, each with a part that nothing is trained on. The dense model is trained once and kept in
the cache.

    python -m tools.training.decoder --cache DIR [--width 96 --layers 4 --steps 700]
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tools.bench.registry import CACHE
from tools.bench.runner import parser_of
from tools.quality import data

LENGTH, BATCH = 64, 16
"""Tokens of a sample, samples of a step."""
RATE = 3e-3
SOURCES = ("wiki", "snippets")


@dataclass(frozen=True)
class Size:
    """Of the model."""

    vocabulary: int = 512
    width: int = 96
    inner: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 700

    @property
    def name(self) -> str:
        """Of its files."""
        return f"decoder-{self.vocabulary}-{self.width}-{self.inner}-{self.layers}-{self.heads}-{self.steps}"


@dataclass(frozen=True)
class Texts:
    """Samples of tokens ``n length`` by source, to train on and to judge by."""

    train: dict[str, np.ndarray]
    held: dict[str, np.ndarray]

    def batch(self, step: int, shares: dict[str, float] | None = None, seed: int = 0) -> torch.Tensor:
        """The samples of a step: of each source by its share, of its number of samples where none is given."""
        rng = np.random.default_rng((seed, step))
        weights = np.array([len(self.train[name]) if shares is None else shares[name] for name in SOURCES], float)
        counts = rng.multinomial(BATCH, weights / weights.sum())
        rows = [
            self.train[name][rng.integers(len(self.train[name]), size=count)]
            for name, count in zip(SOURCES, counts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(rows))


def texts(cache: Path, size: Size) -> tuple[Texts, Any]:
    """The samples, and the tokenizer that made them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    articles, (snippets, _) = data.wiki_articles(cache), data.snippets(cache)
    raw = {"wiki": articles, "snippets": ["\n".join(snippets[i : i + 20]) for i in range(0, len(snippets), 20)]}
    parts = {name: ([t for i, t in enumerate(each) if i % 8], each[::8]) for name, each in raw.items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size.vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((text for train, _ in parts.values() for text in train), trainer)

    def samples(some: list[str]) -> np.ndarray:
        ids = np.concatenate([np.array(each.ids, np.int64) for each in tokenizer.encode_batch(some)])
        return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)

    made = {name: (samples(train), samples(held)) for name, (train, held) in parts.items()}
    rng = np.random.default_rng(0)
    held = {name: each[1][rng.permutation(len(each[1]))[:96]] for name, each in made.items()}
    return Texts({name: each[0] for name, each in made.items()}, held), tokenizer


def fresh(size: Size) -> Any:
    """The model with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The mean loss of the next tokens."""
    logits = model(input_ids=ids).logits[:, :-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def judged(model: Any, held: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """By source: next-token accuracy and loss."""
    found = {}
    model.eval()
    with torch.no_grad():
        for name, rows in held.items():
            ids = torch.from_numpy(rows)
            logits = torch.cat([model(input_ids=part).logits[:, :-1] for part in ids.split(16)])
            right = (logits.argmax(-1) == ids[:, 1:]).float().mean()
            loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
            found[name] = float(right), float(loss)
    return found


def accuracy(model: Any, held: dict[str, np.ndarray]) -> float:
    """Of the next token, over all sources alike."""
    return float(np.mean([right for right, _ in judged(model, held).values()]))


def dense(cache: Path, size: Size) -> tuple[Any, Texts]:
    """The trained model, from the cache where it is there, and the texts."""
    some, _ = texts(cache, size)
    model, path = fresh(size), cache / f"{size.name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval(), some
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.95))
    begin = time.process_time()
    for step in range(size.steps):
        rate = RATE * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / size.steps))
        for each in optimizer.param_groups:
            each["lr"] = rate
        model.train()
        loss = loss_of(model, some.batch(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: {loss.item():.3f}, {time.process_time() - begin:.0f} CPU s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval(), some


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    for name in ("vocabulary", "width", "inner", "layers", "heads", "steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size(), name))
    options = parser.parse_args()
    size = Size(**{name: value for name, value in vars(options).items() if name != "cache"})
    torch.set_num_threads(1)
    model, some = dense(options.cache, size)
    n = sum(each.numel() for each in model.parameters())
    print(f"{n / 1e6:.2f} million parameters, {sum(map(len, some.train.values()))} samples of {LENGTH} tokens")
    for name, (right, loss) in judged(model, some.held).items():
        print(f"{name}: next token {right:.4f}, loss {loss:.3f}")


if __name__ == "__main__":
    main()
