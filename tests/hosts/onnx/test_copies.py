"""Copies of constants that are one again, whatever the order in which a graph lists them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.hosts.onnx.copies import merged, merged_names
from graphprune.hosts.onnx.store import Stored, header
from graphprune.ir.graph import Use

NAMES = ("bias@a:1", "bias@b:1", "bias@c:1")


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], (NAMES[1], NAMES[0], NAMES[2])], ids=["uses", "turned", "mixed"])
def test_equal_copies_keep_their_data(order: tuple[str, ...]) -> None:
    store = {name: Stored(ir.Tensor(np.zeros(300, np.float32), name=name)) for name in NAMES}
    nodes = [onnx.helper.make_node("Add", ["x", name], [f"y{i}"]) for i, name in enumerate(NAMES)]
    graph = onnx.helper.make_graph(nodes, "net", [], [], [header(name, store[name]) for name in order])
    proto = onnx.helper.make_model(graph)
    renamed = merged_names(proto, store, {name: Use("bias", name.partition("@")[2], name) for name in NAMES})
    assert renamed == {NAMES[1]: NAMES[0], NAMES[2]: NAMES[0]}
    found, kept = merged(proto, store, renamed)
    assert [tensor.name for tensor in found.graph.initializer] == [NAMES[0]]
    assert list(kept) == [NAMES[0]]
    assert [node.input[1] for node in found.graph.node] == [NAMES[0]] * 3
    assert set(store) == set(NAMES)
