"""Small classes that are written with a config, as those of transformers are, but are none of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

IDS = torch.randint(0, 19, (1, 6), generator=torch.Generator().manual_seed(0))


class Config:
    """Numbers of a small net; kinds of layers are listed one by one, as transformers lists them."""

    def __init__(self, **values: Any) -> None:
        sizes = {"hidden": 16, "inner": 24, "heads": 4, "head": 4, "layers": 3, "scale": 1.0}
        self.__dict__.update({**sizes, "kinds": None, **values})
        if self.kinds is None:
            self.kinds = ["relu", "silu", "silu"][: self.layers]
        if len(self.kinds) != self.layers:
            raise ValueError("a kind for each layer")

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.__dict__)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        return cls(**data)


class Layer(nn.Module):
    def __init__(self, config: Config, place: int) -> None:
        super().__init__()
        self.config, self.place, self.kind = config, place, config.kinds[place]
        self.scale = config.head**-0.5
        width = config.heads * config.head
        self.q, self.k, self.v = (nn.Linear(config.hidden, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, config.hidden, bias=False)
        self.up, self.down = nn.Linear(config.hidden, config.inner), nn.Linear(config.inner, config.hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in range(2))

    def forward(self, x):
        b, n, _ = x.shape
        y = self.norms[0](x)
        heads = [each(y).view(b, n, self.config.heads, -1).transpose(1, 2) for each in (self.q, self.k, self.v)]
        y = F.softmax(heads[0] @ heads[1].transpose(2, 3) * self.scale, -1) @ heads[2]
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        act = F.relu if self.kind == "relu" else F.silu
        return x + self.down(act(self.up(self.norms[1](x))))


class Net(nn.Module):
    """Sizes are read from the config in the forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(19, config.hidden)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm, self.head = nn.LayerNorm(config.hidden), nn.Linear(config.hidden, 19)

    def forward(self, ids):
        x = self.embed(ids)
        for i in range(self.config.layers):
            x = self.layers[i](x)
        return self.head(self.norm(x))

    def save_pretrained(self, folder: Any, **_: Any) -> None:
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config.to_dict()))
        torch.save(self.state_dict(), folder / "weights.pt")

    @classmethod
    def from_pretrained(cls, folder: Any, *, output_loading_info: bool = False, **_: Any) -> Any:
        folder = Path(folder)
        made = cls(Config.from_dict(json.loads((folder / "config.json").read_text()))).eval()
        found = made.load_state_dict(torch.load(folder / "weights.pt"), strict=False)
        told = {"missing_keys": set(found.missing_keys), "unexpected_keys": set(found.unexpected_keys)}
        return (made, told) if output_loading_info else made


def net(**values: Any) -> Net:
    """A net with random weights."""
    torch.manual_seed(0)
    return Net(Config(**values)).eval()
