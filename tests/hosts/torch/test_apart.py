"""One build tells what no number of a config can say apart; what one can is sought."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configured_nets import IDS, Config, Net, net
from torch import nn

import graphprune as gp
from graphprune.hosts.torch.checkpoints import adopt as adopting
from graphprune.hosts.torch.checkpoints import apart
from graphprune.hosts.torch.checkpoints.apart import inseparable
from graphprune.hosts.torch.checkpoints.twins import Twin, shapes_of


class Wide(Config):
    """Layers are as wide as a list says, or the first as one number and the others as another."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"widths": None, "first": None, **values})


class WideNet(Net):
    """A net whose layers differ in width where its config says so."""

    def __init__(self, config: Wide) -> None:
        super().__init__(config)
        for i, layer in enumerate(self.layers):
            width = config.widths[i] if config.widths else config.first if config.first and not i else config.inner
            layer.up, layer.down = nn.Linear(config.hidden, width), nn.Linear(width, config.hidden)


def wide(**values: Any) -> WideNet:
    return WideNet(Wide(**values)).eval()


def with_widths(source: nn.Module, *widths: int) -> dict[str, tuple[int, ...]]:
    shapes = shapes_of(source)
    for i, width in enumerate(widths):
        shapes |= {f"layers.{i}.up.weight": (width, 16), f"layers.{i}.up.bias": (width,)}
        shapes[f"layers.{i}.down.weight"] = (16, width)
    return shapes


# what the class is built from, the widths of its layers, the two layers that nothing says apart
ROWS: list[tuple[nn.Module, tuple[int, ...], tuple[int, int] | None]] = [
    (net(), (24, 16, 24), (0, 1)),
    (net(), (16, 16, 16), None),
    (wide(), (24, 24, 16), (0, 2)),
    (wide(widths=[24, 24, 24]), (24, 16, 24), None),
    (wide(widths=[24, 24, 24]), (8, 16, 24), None),
    (wide(first=24), (16, 24, 24), None),
    (wide(first=24), (24, 24, 16), (1, 2)),
]


@pytest.mark.parametrize(("source", "widths", "torn"), ROWS)
def test_what_one_build_tells(source: nn.Module, widths: tuple[int, ...], torn: tuple[int, int] | None) -> None:
    reason = inseparable(source, shapes_of(source), with_widths(source, *widths))
    if torn is None:
        assert reason == ""
        return
    one, other = torn
    assert reason == (
        f"no config of '{type(source).__name__}' was found that says its shape: 'layers.{one}.up.weight' and 'layers.{other}.up.weight' "
        f"had 24 units and have {widths[one]} and {widths[other]}, which no number of its config says apart"
    )


def test_it_takes_one_build_and_where_nothing_is_torn_none(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    of = Twin.of
    monkeypatch.setattr(apart.Twin, "of", lambda *given: built.append(given) or of(*given))
    source = net()
    inseparable(source, shapes_of(source), with_widths(source, 16, 16, 16))
    assert built == []
    inseparable(source, shapes_of(source), with_widths(source, 24, 16, 8))
    assert len(built) == 1


def test_a_class_that_refuses_other_numbers_is_asked_config_by_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart.Twin, "of", lambda *_: None)
    source = net()
    assert inseparable(source, shapes_of(source), with_widths(source, 24, 16, 24)) == ""


def test_no_config_is_sought_for_what_is_pruned_freely(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    model = net()
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            for tensor in (layer.up.weight, layer.up.bias, layer.down.weight.T):
                tensor[: 8 * i] *= 1e-3
    monkeypatch.setattr(adopting, "find_statement", refuse)
    result = gp.prune(model, (IDS,), target="params=0.8", allocation="global", criterion="l1", verify=False)
    assert len({layer.up.out_features for layer in result.module.layers}) > 1
    with pytest.raises(gp.OutputError, match="which no number of its config says apart"):
        result.module.save_pretrained("nowhere")
