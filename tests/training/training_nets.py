"""Small nets of several kinds, and a loop, for tests of pruning while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import graphprune as gp


class Residual(nn.Module):
    """A stem, a residual block with batch norms, and a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.a_bn = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.b_bn = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_bn(self.stem(x)))
        x = functional.relu(x + self.b_bn(self.b(functional.relu(self.a_bn(self.a(x))))))
        return self.head(functional.relu(self.depth(x)).mean((2, 3)))


class Attention(nn.Module):
    """One block of a transformer: heads, parts of heads, neurons behind a GELU, and a residual width behind norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.embed = nn.Linear(6, 16)
        self.up, self.down, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm(x)
        q, k, v = (layer(h).view(*h.shape[:2], 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        x = x + self.o(y)
        return self.head((x + self.down(functional.gelu(self.up(self.norm2(x))))).mean(1))


EXAMPLES: dict[type[nn.Module], tuple[int, ...]] = {Residual: (3, 6, 6), Attention: (7, 6)}


def made(cls: type[nn.Module], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A net in training mode, and an example of two inputs."""
    torch.manual_seed(seed)
    return cls().to(dtype).train(), torch.randn(2, *EXAMPLES[cls], dtype=dtype)


def batch(step: int, example: Tensor, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, *example.shape[1:], generator=generator, dtype=torch.float64).to(example.dtype)
    return x, torch.randint(0, 5, (size,), generator=generator)


def trained(model: nn.Module, pruner: gp.Pruner, optimizer: Any, example: Tensor, steps: range) -> None:
    """The loop of the documents."""
    for step in steps:
        x, y = batch(step, example)
        functional.cross_entropy(model(x), y).backward()
        pruner.before_step()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
