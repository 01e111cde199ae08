"""Small PyTorch models to plant faults in; every builder returns a module in eval mode and its example inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

Built = tuple[nn.Module, Any]


class Block(nn.Module):
    """Attention and an MLP, each behind a layer scale."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.gamma1 * self.out(y)
        return x + self.gamma2 * self.down(functional.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """A vision transformer of two blocks on patches."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 4, 16) * 0.1)
        self.blocks = nn.ModuleList(Block(16, 4, scale) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Bottleneck(nn.Module):
    """A residual block whose last norm or last convolution begins at zero, as recipes of training ask for."""

    def __init__(self, width: int, last: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width)
        with torch.no_grad():
            for bn in (self.bn1, self.bn2, self.bn3):
                bn.running_mean.normal_(0, 0.3)
                bn.running_var.uniform_(0.5, 1.5)
                bn.weight.uniform_(0.5, 1.5)
                bn.bias.normal_(0, 0.3)
            if last == "zero":
                self.bn3.weight.zero_()
                self.bn3.bias.zero_()
            elif last == "tiny":
                self.bn3.weight.mul_(1e-6)
                self.bn3.bias.mul_(1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(x + self.bn3(self.conv3(y)))


class Residual(nn.Module):
    """A residual CNN with a zero-initialised and a tiny last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(Bottleneck(12, "zero"), Bottleneck(12, "tiny"), Bottleneck(12, ""))
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(functional.relu(self.stem(x))).mean((2, 3)))


class Unet(nn.Module):
    """Down and up with a joined skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 12)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.c, self.d = nn.Conv2d(16, 10, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = functional.relu(self.a(x))
        deep = functional.silu(self.norm(self.b(first)))
        return self.d(functional.relu(self.c(torch.cat([first, self.up(deep)], 1))))


class Experts(nn.Module):
    """Two of four experts for each token, and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 12)
        self.router = nn.Linear(12, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, 12, 10) * 12**-0.5)
        self.down = nn.Parameter(torch.randn(4, 10, 12) * 10**-0.5)
        self.shared = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))
        self.head = nn.Linear(12, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        gates, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = torch.zeros(*x.shape[:2], 4, dtype=x.dtype).scatter(-1, chosen, gates)
        hidden = functional.silu(torch.einsum("bsc,ech->bseh", x, self.up))
        mixed = torch.einsum("bseh,ehc,bse->bsc", hidden, self.down, weights)
        return self.head(x + mixed + self.shared(x))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.block = Block(16, 2, 1.0)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 24, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.embed(ids))))


class Recurrent(nn.Module):
    """Two layers of LSTM and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(4, 8, batch_first=True), nn.LSTM(8, 6, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x)[0])[0][:, -1]
        return self.fc2(torch.tanh(self.fc1(x)))


def _seeded(seed: int) -> torch.Generator:
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def vit(seed: int, scale: float = 1e-5) -> Built:
    generator = _seeded(seed)
    return Vit(scale).eval(), (torch.randn(2, 3, 8, 8, generator=generator),)


def vit_bf16(seed: int) -> Built:
    model, (x,) = vit(seed, 0.5)
    return model.bfloat16(), (x.bfloat16(),)


def residual(seed: int) -> Built:
    generator = _seeded(seed)
    return Residual().eval(), (torch.randn(2, 3, 6, 6, generator=generator),)


def unet(seed: int) -> Built:
    generator = _seeded(seed)
    return Unet().eval(), (torch.randn(1, 3, 8, 8, generator=generator),)


def experts(seed: int) -> Built:
    generator = _seeded(seed)
    return Experts().eval(), (torch.randint(0, 32, (2, 5), generator=generator),)


def tied(seed: int) -> Built:
    generator = _seeded(seed)
    return Tied().eval(), (torch.randint(0, 24, (2, 5), generator=generator),)


def recurrent(seed: int) -> Built:
    generator = _seeded(seed)
    return Recurrent().eval(), (torch.randn(2, 5, 4, generator=generator),)


def llama(seed: int, layers: int = 4) -> Built:
    """A decoder of transformers with a cache: as many layers as a head count can be mistaken for."""
    import transformers

    generator = _seeded(seed)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        initializer_range=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return model, {"input_ids": torch.randint(3, 48, (1, 8), generator=generator)}


def llama_fp16(seed: int) -> Built:
    model, inputs = llama(seed, 2)
    return model.half(), inputs
