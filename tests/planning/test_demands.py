"""Units by name: what a demand says, which groups it means, and what cannot be had."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import GraphpruneError, OptionError
from graphprune.planning.demanded import demanded
from graphprune.planning.demands import read_demand, written


class Attention(nn.Module):
    """Four key-value heads of two query heads each, or as many of both."""

    def __init__(self, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        self.q, self.o = nn.Linear(32, heads * 4), nn.Linear(heads * 4, 32)
        self.k, self.v = nn.Linear(32, shared * 4), nn.Linear(32, shared * 4)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (
            each(x).view(b, n, h, 4).transpose(1, 2)
            for each, h in ((self.q, self.heads), (self.k, self.shared), (self.v, self.shared))
        )
        k, v = (each.repeat_interleave(self.heads // self.shared, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = Attention(8, 4), nn.LayerNorm(32)
        self.mlp = nn.ModuleDict({"up": nn.Linear(32, 24), "down": nn.Linear(24, 32)})

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.mlp["down"](F.relu(self.mlp["up"](x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"stem": nn.Linear(6, 32), "layers": nn.ModuleList(Layer() for _ in range(2))})
        self.mid, self.head = nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.model["stem"](x)
        for layer in self.model["layers"]:
            x = layer(x)
        return self.head(F.relu(self.mid(x)))


X = (torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)),)


@cache
def session() -> Any:
    torch.manual_seed(0)
    return gp.Session(Net().eval(), X)


@cache
def analysis() -> Any:
    return session().analyze()


# -- the written form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("layers.3.attn=0,5", ("layers.3.attn=0,5",)),
        ("fc1=5,0,1,2", ("fc1=0-2,5",)),
        (["a=0-3,9", "head=count:6"], ("a=0-3,9", "head=count:6")),
        ({"layers.3.attn": [5, 0], "head": 6}, ("layers.3.attn=0,5", "head=count:6")),
        ({"head:layers.*": range(4)}, ("head:layers.*=0-3",)),
        ({"fc": "1-2"}, ("fc=1-2",)),
        ("odd=name=3", ("odd=name=3",)),
    ],
)
def test_demands_have_one_written_form(given: Any, texts: tuple[str, ...]) -> None:
    assert written("keep", given) == texts
    assert written("keep", texts) == texts
    recipe = gp.Recipe.of(remove=given)
    assert recipe.select.remove == texts
    assert gp.Recipe.from_dict(recipe.to_dict()) == recipe


def test_a_toml_table_says_units_of_names() -> None:
    text = '[select.remove]\n"layers.3.attn" = [0, 5]\nhead = 2\n'
    assert gp.Recipe.from_toml(text).select.remove == ("layers.3.attn=0,5", "head=count:2")


def test_a_file_gives_lists_or_the_first_of_rankings(tmp_path: Path) -> None:
    path = tmp_path / "experts.json"
    path.write_text(json.dumps({"layers.0": [7, 1, 3], "layers.1": [2, 0, 5]}))
    whole = ("layers.0=1,3,7", "layers.1=0,2,5")
    assert written("keep", path) == written("keep", f"@{path}") == whole
    assert written("keep", (f"@{path}:2", "fc=0")) == ("layers.0=1,7", "layers.1=0,2", "fc=0")
    with pytest.raises(OptionError) as error:
        written("keep", f"@{path}:4")
    assert str(error.value) == (
        f"keep '@{path}:4' takes the first 4 of each list, and 'layers.0' has 3 entries; take fewer, or give longer lists"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fc1", "cannot read keep 'fc1'; expected a name and units, like 'layers.3.self_attn=0,5', 'head=count:6' or "
                "'@file.json'"),
        ("fc1=", "cannot read keep 'fc1='; expected a name and units, like 'layers.3.self_attn=0,5', 'head=count:6' or "
                 "'@file.json'"),
        ("fc1=a", "cannot read 'a' of keep 'fc1=a'; expected indices like '0,5' or '0-7,12', or 'count:6' for so many "
                  "units"),
        ("fc1=5-3", "cannot read '5-3' of keep 'fc1=5-3'; expected indices like '0,5' or '0-7,12', or 'count:6' for so "
                    "many units"),
        ("fc1=count:0", "cannot read the number of keep 'fc1=count:0'; expected one like 'head=count:6'"),
        ({"fc1": []}, "keep of 'fc1' lists no unit; expected indices of units, from 0"),
        ({"fc1": [-1]}, "keep of 'fc1' lists unit -1; expected indices of units, from 0"),
        ({"fc1": [1, 1]}, "keep of 'fc1' lists unit 1 twice; list each once"),
        ({"fc1": True}, "keep of 'fc1' is True; expected a list of indices like [0, 5], or a number of units"),
        ({"fc1": [0.5]}, "keep of 'fc1' is [0.5]; expected a list of indices like [0, 5], or a number of units"),
        ({"fc1": 0}, "keep of 'fc1' is 0 units; expected a number of 1 or more, or a list"),
        ({3: [0]}, "keep names 3; expected the name of a module, a group or a kind"),
        (7, "keep is 7; expected texts like 'layers.3.mlp=0,5', or a mapping of names"),
        ("@none.json", "cannot read keep 'none.json': No such file or directory; give an object of names and lists of "
                       "indices"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(given: Any, message: str) -> None:
    with pytest.raises(OptionError) as error:
        gp.Recipe.of(keep=given)
    assert str(error.value) == message


# -- names ---------------------------------------------------------------------------------------------------------


def groups_of(*texts: str, option: str = "keep") -> list[tuple[str, str, int]]:
    held = demanded(analysis(), [read_demand(option, text) for text in texts])
    return [(each.group.name.removeprefix("model."), each.group.kind, each.n_kept) for each in held]


KV, MLP = ("layers.{}.attn.q.weight[0]", "kv-group"), ("layers.{}.mlp.up.weight[0]", "neuron")


def at(place: tuple[str, str], *layers: int, n: int) -> list[tuple[str, str, int]]:
    return [(place[0].format(i), place[1], n) for i in layers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.layers.1.attn=0,2", at(KV, 1, n=2)),
        ("layers.1.attn=0,2", at(KV, 1, n=2)),  # the end of one path
        ("layers.*.attn=0,2", at(KV, 0, 1, n=2)),
        ("*.mlp=count:16", at(MLP, 0, 1, n=16)),
        ("neuron:layers.1=count:16", at(MLP, 1, n=16)),
        ("kv-group:model.layers=count:2", at(KV, 0, 1, n=2)),
        ("kv-group=count:2", at(KV, 0, 1, n=2)),
        ("kind:kv-group=count:2", at(KV, 0, 1, n=2)),
        ("model.layers.0.mlp.up.weight[0]=3", at(MLP, 0, n=1)),  # a group by its name
        ("*.up.weight[0]=3", at(MLP, 0, 1, n=1)),
        ("*.down.weight[1]=3", at(MLP, 0, 1, n=1)),
        ("group:model.layers.0.mlp.up.weight[0]=3", at(MLP, 0, n=1)),
        ("layers.0.mlp.up=3", at(MLP, 0, n=1)),  # what it gives, not what it reads
        ("layers.0.mlp.down=0-29", [("stem.weight[0]", "width", 30)]),
        ("layers.0.norm=0-29", [("stem.weight[0]", "width", 30)]),
        ("name:mid=0-7", [("mid.weight[0]", "neuron", 8)]),
        ("query-head:layers.0.attn=1", [("layers.0.attn.q.weight[0]#2", "query-head", 1)]),
    ],
)
def test_names_mean_groups(text: str, expected: list[tuple[str, str, int]]) -> None:
    assert groups_of(text) == expected


def test_removals_add_up_and_agree_with_what_stays() -> None:
    assert groups_of("mid=0", "mid=3-4", option="remove") == [("mid.weight[0]", "neuron", 13)]
    both = [read_demand("remove", "mid=0-7"), read_demand("keep", "mid=8-15"), read_demand("keep", "mid=count:8")]
    (held,) = demanded(analysis(), both)
    assert held.kept is not None
    assert held.kept.tolist() == [*range(8, 16)]


SEVERAL = "'{}' of keep may be any of 2 groups of 'model.layers.0'; write "


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("layers.0=0",), SEVERAL.format("layers.0") + "'kv-group:layers.0' or 'neuron:layers.0'"),
        (("mlp=0",), "'mlp' of keep may be any of 'model.layers.0.mlp', 'model.layers.1.mlp'; write the whole name, or "
                     "'*.mlp' for all of them"),
        (("layers.1.atn=0",), "'layers.1.atn' (did you mean 'model.layers.1.attn' or 'model.layers.1.attn.v' or "
                              "'model.layers.1.attn.q'?) of keep names no module, group or kind of unit of this model; groups "
                              "are called 'model.stem.weight[0]', 'model.layers.0.attn.q.weight[0]', "
                              "'model.layers.0.attn.q.weight[0]#2', the kinds are: width, kv-group, query-head, qk-dim, "
                              "value-dim, neuron ('graphprune inspect' lists all)"),
        (("head=0",), "'head' of keep cannot be cut: axis of the model's output 'linear_14' keeps head.bias[0] whole"),
        (("expert:layers.0=0",), "'layers.0' of keep has no units of kind 'expert'; the kinds there are: width, kv-group, "
                                 "query-head, qk-dim, value-dim, neuron"),
        (("mid.weight[2]=0",), "'mid.weight[2]' of keep names axis 2, 'mid.weight' has 2 axes, from 0"),
        (("layers.1.attn=0,4",), "'keep layers.1.attn=0,4' asks for unit 4, and group 'model.layers.1.attn.q.weight[0]' "
                                 "(kv-group, 4 units) counts from 0 to 3: key-value heads, each with its query heads"),
        (("mid=count:17",), "'keep mid=count:17' asks for 17 units, and group 'mid.weight[0]' (neuron, 16 units) counts "
                            "from 0 to 15: neurons of linear layers"),
        (("mid=0", "mid=0,1"), "'keep mid=0' and 'keep mid=0,1' contradict each other: both say what stays of group "
                               "'mid.weight[0]' (neuron, 16 units); leave one of them out"),
        (("mid=0,1", "mid=count:3"), "'keep mid=0,1' and 'keep mid=count:3' contradict each other: both say what stays "
                                     "of group 'mid.weight[0]' (neuron, 16 units); leave one of them out"),
    ],
)  # fmt: skip
def test_what_names_cannot_mean(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError) as error:
        groups_of(*texts)
    assert str(error.value) == message


def test_something_stays() -> None:
    with pytest.raises(OptionError) as error:
        groups_of("layers.1.attn=0-3", option="remove")
    assert str(error.value) == (
        "'remove layers.1.attn=0-3' leaves 0 units of group 'model.layers.1.attn.q.weight[0]' (kv-group, 4 units): at "
        "least 1 must stay; 'remove_blocks' leaves out a whole branch"
    )


# -- pruning -------------------------------------------------------------------------------------------------------


def kept(result: Any) -> dict[str, Any]:
    return {group.name: list(group.kept) for group in result.plan.groups}


def test_without_a_target_only_what_is_named_goes() -> None:
    result = session().prune(remove={"layers.1.attn": [0, 2], "mid": [5]}, keep={"layers.0.mlp": [1, 3]})
    assert kept(result) == {
        "model.layers.0.mlp.up.weight[0]": [1, 3],
        "model.layers.1.attn.q.weight[0]": [1, 3],
        "mid.weight[0]": [i for i in range(16) if i != 5],
    }
    layer = result.module.model["layers"][1].attn
    assert torch.equal(
        layer.k.weight, session().host.source.model["layers"][1].attn.k.weight[[*range(4, 8), *range(12, 16)]]
    )
    assert {row.name: row.asked for row in result.report.groups if row.asked} == {
        "model.layers.0.mlp.up.weight[0]": "keep layers.0.mlp=1,3",
        "model.layers.1.attn.q.weight[0]": "remove layers.1.attn=0,2",
        "mid.weight[0]": "remove mid=5",
    }
    assert (
        "3 groups keep the units that were asked for, whatever the target: 'keep layers.0.mlp=1,3', 'remove "
        "layers.1.attn=0,2', 'remove mid=5'"
    ) in result.report.notes
    assert gp.Recipe.from_dict(result.plan.recipe).select.remove == ("layers.1.attn=0,2", "mid=5")


@pytest.mark.parametrize("allocation", ["isomorphic", "uniform", "dp", "kwon"])
@pytest.mark.parametrize("target", ["params=0.7", "macs=0.6"])
def test_a_target_is_met_by_the_others(allocation: str, target: str) -> None:
    named = {"keep": {"layers.0.mlp": [0, 7, 23]}, "remove": {"mid": [4]}}
    result = session().prune(target=target, allocation=allocation, align=1, criterion="l1", verify=False, **named)
    found = kept(result)
    assert found["model.layers.0.mlp.up.weight[0]"] == [0, 7, 23]
    assert found["mid.weight[0]"] == [i for i in range(16) if i != 4]
    assert len(found) > 2
    metric, fraction = target.split("=")
    assert float(fraction) - 0.06 < result.report.cost(metric).fraction <= float(fraction)


def test_numbers_leave_the_choice_to_importance() -> None:
    scores = session().prune(keep={"mid": 6}, criterion="l1", verify=False)
    least = session().prune(remove={"mid": 10}, criterion="l1", verify=False)
    assert kept(scores) == kept(least)
    assert len(kept(scores)["mid.weight[0]"]) == 6
    assert kept(scores)["mid.weight[0]"] != [*range(6)]


def test_everything_stays_where_that_is_asked_for() -> None:
    result = session().prune(keep={"mid": range(16), "layers.*.attn": 4}, target="params=0.7", verify=False)
    assert "neuron" in {group.kind for group in result.plan.groups} <= {"neuron", "query-head", "qk-dim", "value-dim"}
    assert "mid.weight[0]" not in kept(result)


REFUSED = [
    ({"remove": {"mid": [0]}, "protect": "kind:neuron"},
     "'remove mid=0' is about group 'mid.weight[0]' (neuron, 16 units), which 'protect' keeps whole; leave one of them out"),
    ({"remove": {"mid": [0]}, "protect": "mid"}, "'mid' of remove cannot be cut: protected by 'mid' keeps mid.bias[0] whole"),
    ({"keep": {"layers.1.mlp": 4}, "remove_blocks": "layers.1"},
     "'keep layers.1.mlp=count:4' is about group 'model.layers.1.mlp.up.weight[0]', which goes as a whole with "
     "'model.layers.1.attn.o.weight..model.layers.1.mlp.down.weight'; leave one of them out"),
    ({"keep": {"mid": 15}, "only": "kv-group", "target": "params=0.2"}, "target 'params=0.2' cannot be met: "),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_had_beside_a_demand(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphpruneError) as error:
        session().prune(criterion="l1", verify=False, **options)
    assert str(error.value).startswith(message)


def test_layers_go_that_hold_nothing_that_was_named() -> None:
    for i in (0, 1):
        result = session().prune(layers=1, remove={f"layers.{i}.mlp": [0]}, verify=False)
        assert all(name.startswith(f"model.layers.{1 - i}.") for name in result.state.removed[0].tensors)


def test_exchanges_leave_units_that_are_named() -> None:
    text = (
        "select{keep=mid=0-5},analyze,calibrate{products=true},score{criterion=obs},allocate{targets=params=0.6 align=1},"
        "exchange-units,slice-groups,remove-dead-nodes"
    )
    result = session_with_data().prune(pipeline=text)
    assert kept(result)["mid.weight[0]"] == [*range(6)]


@cache
def session_with_data() -> Any:
    torch.manual_seed(0)
    return gp.Session(Net().eval(), X, data=gp.Inputs("random", samples=16))


def test_a_pipeline_with_demands_needs_no_target() -> None:
    assert kept(session().prune(pipeline="select{remove=mid=1},analyze,score,allocate,slice-groups")) == {
        "mid.weight[0]": [i for i in range(16) if i != 1]
    }
    with pytest.raises(GraphpruneError) as error:
        session().prune(pipeline="select{only=neuron},analyze,score,allocate,slice-groups")
    assert str(error.value).startswith("no target given; ")
