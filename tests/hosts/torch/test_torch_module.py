"""The user's own class, sliced: exact, or refused in favour of the graph module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_proof import Proof, prove

import graphprune as gp
from graphprune.hosts.torch.module import sliced_module


class Attention(nn.Module):
    """Heads, their width and their product are attributes, as in most models."""

    def __init__(self, dim: int = 12, n_heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_size = n_heads, dim // n_heads, dim
        self.scale = self.head_dim**-0.5
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, self.num_heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.softmax(q @ k.transpose(2, 3) * self.scale, -1) @ v
        return self.out(y.transpose(1, 2).reshape(b, s, self.all_head_size))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm = nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(self.dropout(F.gelu(self.up(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 12)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def greedy(self, ids):
        return self.forward(ids).argmax(-1)


IDS = (torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]),)


def sliced(model: nn.Module, example: Any, only: set[str] | None = None) -> tuple[nn.Module | None, str, Proof]:
    proof = prove(model, example)
    made = sliced_module(model, proof.host, proof.pruned)
    return made.module, " ".join(made.notes), proof


def test_transformer_keeps_its_class_ties_and_training_flag() -> None:
    model = Model().train()
    model.up_frozen = model.blocks[0].up.requires_grad_(requires_grad=False)
    module, reason, _ = sliced(model, IDS)
    assert reason == ""
    assert type(module) is Model
    assert module.training
    assert module.head.weight is module.embed.weight
    assert not module.blocks[0].up.weight.requires_grad
    assert module.greedy(*IDS).shape == IDS[0].shape
    assert model.blocks[0].up.weight.shape == (20, 12)


def test_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1),
        nn.GroupNorm(3, 12), nn.Flatten(), nn.Linear(12 * 16, 5),
    )  # fmt: skip
    module, reason, _ = sliced(model, (torch.randn(2, 3, 8, 8),))
    assert reason == ""
    assert isinstance(module, nn.Sequential)
    assert (module[3].in_channels, module[3].out_channels, module[3].groups) == (4, 4, 4)
    assert (module[1].num_features, module[5].num_groups) == (4, 1)
    assert module[0].weight is not model[0].weight


def test_attribute_that_is_baked_into_code_is_refused() -> None:
    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x)
            if x.shape[1] != 8:
                raise ValueError("not 8 wide")
            return self.b(x)

    module, reason, _ = sliced(Baked(), (torch.randn(2, 6),))
    assert module is None
    assert "a sliced copy of 'Baked' is not the pruned model: it fails with" in reason


def test_silently_wrong_module_is_refused() -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x)
            return self.b(x / x.shape[-1])

    module, reason, _ = sliced(Averaged(), (torch.randn(2, 6),))
    assert module is None
    assert reason.startswith("a sliced copy of 'Averaged' is not the pruned model: its outputs differ by")


def test_user_module_is_not_touched() -> None:
    model = Model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prove(model, IDS)
    assert model.training
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor)


@pytest.mark.parametrize("n_heads", [2, 3, 4, 6])
def test_ambiguous_head_sizes(n_heads: int) -> None:
    torch.manual_seed(0)
    module, reason, _ = sliced(Attention(12, n_heads), (torch.randn(2, 5, 12),))
    assert reason == ""
    assert isinstance(module, Attention)


def test_a_state_saved_in_half_precision_comes_back_in_half_precision(tmp_path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.up, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.table.weight
            self.register_buffer("scale", torch.full((16,), 0.5))

        def forward(self, x):
            return self.head(torch.relu(self.up(self.table(x) * self.scale)))

    example = (torch.arange(6).reshape(2, 3),)
    result = gp.prune(Tied().eval(), example, target={"macs": 0.7}, align=1, verify=False)
    result.module.half()
    result.save_state(tmp_path)
    again = gp.restore(Tied().eval(), tmp_path, example)
    assert {torch.float16} == {tensor.dtype for tensor in again.state_dict().values()}
    assert again.head.weight is again.table.weight
    assert all(
        torch.equal(a, b) for a, b in zip(result.module.state_dict().values(), again.state_dict().values(), strict=True)
    )
