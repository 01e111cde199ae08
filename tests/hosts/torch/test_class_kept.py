"""What it takes for the user's own class to come back, and what the graph module costs where it does not."""

from __future__ import annotations

import copy
import io
from itertools import product

import onnx
import pytest
import torch
from torch import nn
from vision_nets import Attention as VitAttention
from vision_nets import made, train_step

import graphprune as gp
from graphprune.hosts.torch.attention import Attention
from graphprune.hosts.torch.resizes import Resize


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("c2f", 0.5),
        ("res2net", 0.5),
        ("sknet", 0.3),
        ("edgenext", 0.5),
        ("sections", 0.5),
        ("c2psa", 0.3),
        ("beit", 0.3),
        ("folded heads", 0.5),
        ("cait", 0.5),
        ("encoder", 0.3),
        ("detr", 0.5),
        ("dit", 0.5),
        ("wavenet", 0.5),
        ("swin", 0.5),
    ],
)
def test_the_class_comes_back_and_trains_with_any_batch(name: str, target: float):
    net, inputs = made(name)
    result = gp.prune(net, inputs, target={"macs": target}, verify=False)
    assert type(result.module) is type(net), result.report.notes
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert norms == train_step(result.module, inputs)


LAYERS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "own widths": {"kdim": 12, "vdim": 20},
    "learned key": {"add_bias_kv": True, "batch_first": True},
    "learned and empty key": {"add_bias_kv": True, "add_zero_attn": True},
}
MASKS = {
    "none": None,
    "boolean": torch.arange(35).reshape(5, 7) % 3 == 1,
    "of each head": torch.linspace(-1, 1, 8 * 35).reshape(8, 5, 7),
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_attention_is_torchs_own_where_nothing_was_cut(options: dict):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, **options).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    ours = copy.deepcopy(layer)
    ours.__class__ = Attention
    q, k, v = (
        torch.randn(2, 5, 16),
        torch.randn(2, 7, options.get("kdim", 16)),
        torch.randn(2, 7, options.get("vdim", 16)),
    )
    padding = torch.tensor([[0.0] * 5 + [float("-inf")] * 2, [0.0] * 7])
    if not options.get("batch_first"):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    for mask, padded, weights, mean in product(MASKS.values(), (False, True), (False, True), (False, True)):
        boolean = mask is not None and mask.dtype == torch.bool
        call = {
            "attn_mask": mask, "need_weights": weights, "average_attn_weights": mean,
            "key_padding_mask": (padding < 0 if boolean else padding) if padded else None,
        }  # fmt: skip
        expected, got = layer(q, k, v, **call), ours(q, k, v, **call)
        for a, b in zip(expected, got, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    one = [x[0] if options.get("batch_first") else x[:, 0] for x in (q, k, v)]
    for a, b in zip(layer(*one), ours(*one), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_pruned_attention_drops_out_in_training_and_asks_for_a_mask():
    net, inputs = made("multihead")
    module = gp.prune(net, inputs, target={"macs": 0.5}, verify=False).module
    layer = module.blocks[0].attn.mha
    assert (Attention, True) == (type(layer), layer.num_heads < 4)
    x = torch.randn(1, 6, 32)
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.train()
    assert not torch.equal(layer(x, x, x, need_weights=False)[0], layer(x, x, x, need_weights=False)[0])
    with pytest.raises(RuntimeError, match=r"^Need attn_mask if specifying the is_causal hint\.$"):
        layer(x, x, x, is_causal=True)


@pytest.mark.parametrize(
    ("asked", "n_elements", "expected"),
    [
        ((2, 17, 32), 2 * 17 * 24, (2, 17, 24)),
        ((2, -1, 32), 2 * 17 * 24, (2, -1, 24)),
        ((2, 17, 32), 2 * 17 * 32, None),
        ((2, 32, 17), 2 * 17 * 24, None),
        ((2, 17, 1, 32), 2 * 17 * 24, None),
    ],
)
def test_a_number_is_replaced_where_it_is_meant(asked, n_elements: int, expected):
    assert expected == Resize("reshape", 3, {2: (32, 24)}).of(asked, n_elements)


def test_replaced_sizes_survive_copies_files_and_another_round():
    net, inputs = made("vit")
    result = gp.prune(net, inputs, target={"macs": 0.7}, verify=False)
    module = result.module
    names = "'blocks.0.attn', 'blocks.1.attn'"
    assert (
        "in the module, sizes that code takes from other sizes are replaced where they are given to a reshape or split, "
        f"in the forward of {names}"
    ) in result.report.notes
    assert type(module.blocks[0].attn) is VitAttention
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert torch.equal(module(*inputs), other(*inputs))
        other.blocks[0].attn.proj.weight.data.zero_()
        assert not torch.equal(module(*inputs), other(*inputs))
    again = gp.prune(module, inputs, target={"macs": 0.7})
    assert type(again.module) is type(net)


class Focal(nn.Module):
    """Pieces of the width of the input and a few gates, by a list of computed sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 35, 1), nn.Conv2d(16, 16, 1)
        self.context, self.head = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        c = x.shape[1]
        query, context, gates = torch.split(self.mix(x), [c, c, 3], dim=1)
        y = sum(self.context(context) * gates[:, i : i + 1] for i in range(3))
        return self.head(x + self.out(query * y))


def test_sizes_given_to_a_split_are_replaced():
    result = gp.prune(Focal().eval(), (torch.randn(1, 3, 8, 8),), target={"macs": 0.7}, only=("stem.weight[0]",))
    assert (Focal, True) == (
        type(result.module),
        result.report.notes[-1].endswith("in the forward of the module itself"),
    )
    train_step(result.module, (torch.randn(1, 3, 8, 8),))


class Stubborn(nn.Module):
    """Refuses other widths than its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16 * 25, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        if len(self.norm.weight) != 16:
            raise ValueError("16 channels or nothing")
        return self.head(x.reshape(x.shape[0], -1))


class Mixing(Stubborn):
    """Its samples see each other."""

    def forward(self, x):
        y = super().forward(x)
        return y + y.mean(0)


SINCE = (
    "the module is a graph module of torch.export, since a sliced copy of '{}' is not the pruned model: it fails with "
    "'16 channels or nothing'; it is without dropout and without the methods of your class, with batch norms that do "
    "not learn; "
)


@pytest.mark.parametrize(
    ("net", "sizes"),
    [
        (Stubborn, "it takes any batch, other sizes as in the example"),
        (Mixing, "sizes are those of the example, also the batch of 1"),
    ],
)
def test_a_graph_module_takes_any_batch_where_that_is_the_same(net: type[nn.Module], sizes: str, tmp_path):
    model, x = net().eval(), torch.randn(1, 3, 7, 7)
    result = gp.prune(model, (x,), target={"macs": 0.5})
    assert SINCE.format(net.__name__) + sizes in result.report.notes
    if net is Stubborn:
        both = torch.cat([x, -x])
        torch.testing.assert_close(result.module(both), torch.cat([result.module(x), result.module(-x)]))
        result.module(both).sum().backward()
    result.save_onnx(tmp_path / "net.onnx")
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 7, 7]
