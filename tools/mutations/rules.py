"""Wrong coupling rules, each of an operator in a small net, at places where its effect is easy to overlook.

The rule is wrong for the analysis and so for the pruned model and the masks; only the operators themselves know better.
Whether a rule did harm is told by the same net where nothing hides it: there, in float64, the pruned model must differ
from the original whose removed positions are zero in every stored tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune import ops
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ops import Call, Row, Rule
from tools.mutations.models import Case
from tools.mutations.onnx_models import Drawing

WIDTH = 12
ROWS = 6


@dataclass(frozen=True)
class WrongRule:
    """An operator in a net, and a wrong rule for it.

    Attributes:
        op: The operator whose rule is replaced.
        add: Adds the operator to a net, on a value ``[rows, width]``; returns the result, of the same shape.
        row: The wrong rule.
    """

    op: str
    add: Callable[[Drawing, str], str]
    row: Row


def _text(rule: str, **sizes: int) -> Row:
    """The rule of a text; operands that the text leaves out are of no interest."""

    def row(call: Call) -> Rule:
        operands, _, results = rule.partition("->")
        given = operands.split(",")
        padded = [*given, *["_"] * (len(call.operands) - len(given))]
        return ops.parse_rule(",".join(padded) + "->" + results, call.operands, call.results, **sizes)

    return row


def _only(op: str, right: Callable[[Call], bool], wrong: Row) -> Row:
    """A wrong rule for some calls of an operator; the others keep theirs."""
    from graphprune.hosts.onnx.ops.table import ROWS as KNOWN

    return lambda call: wrong(call) if right(call) else KNOWN[op](call)


def _reversed(net: Drawing, x: str) -> str:
    parts = {"from": [-1], "to": [-(2**31)], "axis": [1], "step": [-1]}
    return net.add("Slice", [x, *(net.store(f"s.{k}", np.array(v)) for k, v in parts.items())], "op")


def _joined(net: Drawing, x: str) -> str:
    net.add("Split", [x, net.store("halves", np.array([4, 8]))], ["p", "q"], axis=1)
    return net.add("Concat", ["p", "q"], "op", axis=1)


def _split(net: Drawing, x: str) -> str:
    net.add("Split", [x, net.store("halves", np.array([6, 6]))], ["p", "q"], axis=1)
    return net.add("Concat", [net.add("Neg", ["p"], "pn"), "q"], "op", axis=1)


def _shuffled(net: Drawing, x: str) -> str:
    y = net.add("Reshape", [x, net.store("apart", np.array([ROWS, 3, 4]))], "apart.y")
    y = net.add("Transpose", [y], "turned", perm=[0, 2, 1])
    return net.add("Reshape", [y, net.store("flat", np.array([ROWS, -1]))], "op")


def _tiled(net: Drawing, x: str) -> str:
    y = net.add("MatMul", [x, net.weight("narrow", WIDTH, 4)], "narrow.y")
    return net.add("Tile", [y, net.store("times", np.array([1, 3]))], "op")


def _sliced(net: Drawing, x: str) -> str:
    y = net.add("MatMul", [x, net.weight("wide", WIDTH, WIDTH + 6)], "wide.y")
    parts = {"from": [4], "to": [4 + WIDTH], "axis": [1]}
    return net.add("Slice", [y, *(net.store(f"s.{k}", np.array(v)) for k, v in parts.items())], "op")


def _padded(net: Drawing, x: str) -> str:
    y = net.add("MatMul", [x, net.weight("narrow", WIDTH, WIDTH - 4)], "narrow.y")
    return net.add("Pad", [y, net.store("pads", np.array([0, 3, 0, 1]))], "op")


def _softmax(net: Drawing, x: str) -> str:
    return net.add("Softmax", [x], "op", axis=1)


def _layer_norm(net: Drawing, x: str) -> str:
    return net.add("LayerNormalization", [x, net.store("gain", np.linspace(0.5, 1.5, WIDTH, dtype=np.float32))], "op")


def _square(net: Drawing, x: str) -> str:
    return net.add("Gemm", [x, net.weight("square", WIDTH, WIDTH)], "op")


def _sorted(net: Drawing, x: str) -> str:
    return net.add("TopK", [x, net.store("all", np.array([WIDTH]))], ["op", "op.i"], axis=1)


def _image(net: Drawing, x: str, name: str, shape: tuple[int, ...]) -> str:
    return net.add("Reshape", [x, net.store(name, np.array(shape))], f"{name}.y")


def _response(net: Drawing, x: str) -> str:
    y = net.add("LRN", [_image(net, x, "image", (ROWS, WIDTH, 1, 1))], "op.lrn", size=3, alpha=3.0)
    return _image(net, y, "back", (ROWS, WIDTH))


def _grouped(net: Drawing, x: str) -> str:
    w = net.weight("grouped.w", WIDTH, 4, 1, 1, fan_in=4)
    y = net.add("Conv", [_image(net, x, "image", (ROWS, WIDTH, 1, 1)), w], "op.conv", group=3, kernel_shape=[1, 1])
    return _image(net, y, "back", (ROWS, WIDTH))


def _deep(net: Drawing, x: str) -> str:
    y = net.add("DepthToSpace", [_image(net, x, "image", (ROWS, WIDTH, 1, 1))], "op.deep", blocksize=2, mode="DCR")
    y = net.add("Conv", [y, net.weight("mixed.w", WIDTH, 3, 2, 2, fan_in=12)], "mixed", kernel_shape=[2, 2])
    return _image(net, y, "back", (ROWS, WIDTH))


def _mean(net: Drawing, x: str) -> str:
    m = net.add("ReduceMean", [x, net.store("last", np.array([1]))], "mean", keepdims=1)
    return net.add("Sub", [x, m], "op")


def _reverse_sequence(net: Drawing, x: str) -> str:
    lengths = net.store("lengths", np.full(ROWS, 4))
    return net.add("ReverseSequence", [x, lengths], "op", batch_axis=0, time_axis=1)


def _turned(net: Drawing, x: str) -> str:
    """A square of channels, transposed."""
    y = net.add("MatMul", [x, net.weight("squared", WIDTH, 9)], "squared.y")
    y = net.add("Reshape", [y, net.store("apart", np.array([ROWS, 3, 3]))], "apart.y")
    y = net.add("Transpose", [y], "turned", perm=[0, 2, 1])
    y = net.add("Reshape", [y, net.store("flat", np.array([ROWS, 9]))], "flat.y")
    return net.add("MatMul", [y, net.weight("op.w", 9, WIDTH)], "op")


_SAME = _text("n c -> n c")
_IMAGE = _text("n c h w -> n c h w")

WRONG: Mapping[str, WrongRule] = {
    "rule-flip": WrongRule("Slice", _reversed, _SAME),
    "rule-concat": WrongRule("Concat", _joined, _only("Concat", lambda c: c.y[1] == WIDTH, _text("n a, n b -> n b+a"))),
    "rule-split": WrongRule("Split", _split, _text("n a+b -> n b, n a; size split[0]=b; size split[1]=a", a=6, b=6)),
    "rule-reshape": WrongRule(
        "Reshape", _shuffled, _only("Reshape", lambda c: len(c.y) == 2, _text("n a b -> n (b a)"))
    ),
    "rule-transpose": WrongRule("Transpose", _turned, _text("n a b -> n a b")),
    "rule-tile": WrongRule("Tile", _tiled, _text("n c -> n (c r); fixed r", r=3)),
    "rule-slice": WrongRule("Slice", _sliced, _text("n a+b -> n a", a=WIDTH, b=6)),
    "rule-pad": WrongRule("Pad", _padded, _text("n c -> n l+c+r; fixed l r", l=1, r=3)),
    "rule-softmax": WrongRule("Softmax", _softmax, _SAME),
    "rule-norm": WrongRule("LayerNormalization", _layer_norm, _text("n c, c -> n c")),
    "rule-gemm": WrongRule("Gemm", _square, _text("n c, d c -> n d")),
    "rule-sort": WrongRule("TopK", _sorted, _text("n c -> n c, n c; size K[0]=c")),
    "rule-response": WrongRule("LRN", _response, _IMAGE),
    "rule-grouped": WrongRule("Conv", _grouped, _text("n (c g) h w, (d g) c i j -> n (d g) h w; size group=g", g=3)),
    "rule-depth": WrongRule("DepthToSpace", _deep, _text("n (c a b) h w -> n c (h a) (w b); fixed a b", a=2, b=2)),
    "rule-mean": WrongRule("ReduceMean", _mean, _text("n c -> n 1")),
    "rule-reverse": WrongRule("ReverseSequence", _reverse_sequence, _SAME),
}
"""Wrong rules by name."""


def _plain(net: Drawing, x: str, branch: str) -> str:
    return branch


def _beside(net: Drawing, x: str, branch: str) -> str:
    """In one output with numbers that are a million times larger."""
    far = net.linear(x, "far", 8, WIDTH, scale=3e5)
    return net.add("Concat", [far, branch], "place", axis=1)


def _scaled(net: Drawing, x: str, branch: str) -> str:
    """Behind a layer scale of 1e-6 beside a residual stream."""
    y = net.add("Mul", [branch, net.store("gamma", np.full(WIDTH, 1e-6, np.float32))], "small")
    return net.add("Add", [net.linear(x, "stream", 8, WIDTH), y], "place")


def _zeroed(net: Drawing, x: str, branch: str) -> str:
    """Before weights that are zero."""
    y = net.add("MatMul", [branch, net.store("zero.w", np.zeros((WIDTH, WIDTH), np.float32))], "zero")
    return net.add("Add", [net.linear(x, "stream", 8, WIDTH), y], "place")


def _saturated(net: Drawing, x: str, branch: str) -> str:
    """Behind a sigmoid near zero, beside plain numbers."""
    y = net.add("Sigmoid", [net.add("Add", [branch, net.store("prior", np.float32(-14))], "low")], "score")
    return net.add("Concat", [net.linear(x, "far", 8, WIDTH), y], "place", axis=1)


def _summed(net: Drawing, x: str, branch: str) -> str:
    """Added to numbers that are ten thousand times larger."""
    return net.add("Add", [net.linear(x, "far", 8, WIDTH, scale=1e4), branch], "place")


PLACES: Mapping[str, Callable[[Drawing, str, str], str]] = {
    "plain": _plain,
    "beside": _beside,
    "scaled": _scaled,
    "zeroed": _zeroed,
    "saturated": _saturated,
    "summed": _summed,
}
"""Where the net with the operator stands in the model."""


def net_of(name: str, place: str, seed: int) -> onnx.ModelProto:
    """``x -> linear -> operator -> linear -> place``."""
    net = Drawing(seed)
    x = net.add("Relu", [net.linear("x", "before", 8, WIDTH)], "before.r")
    y = WRONG[name].add(net, x)
    y = net.linear(y, "after", WIDTH, WIDTH)
    out = PLACES[place](net, "x", y)
    net.add("Identity", [out], "y")
    width = 2 * WIDTH if place in ("beside", "saturated") else WIDTH
    return net.model({"x": (ROWS, 8)}, {"y": (ROWS, width)})


@contextmanager
def wrong_rule(name: str) -> Iterator[None]:
    """While this is open, the operator has the wrong rule."""
    wrong = WRONG[name]
    before = ops.registered()
    assert wrong.op not in before
    ops.register(wrong.op)(wrong.row)
    try:
        yield
    finally:
        del ops._ROWS[wrong.op]


def harms(case: Case) -> bool:
    """Whether a pruned net is not the original whose removed positions are zero in all stored tensors."""
    from graphprune.passes.slice_groups import slice_edits

    host = case.host
    assert isinstance(host, OnnxHost)
    try:
        pruned = host.edited(slice_edits(case.analysis, case.kept))
        zeroed = {}
        for name, axes in case.plan.parameters.items():
            if case.analysis.graph.values[name].dtype != "float32":
                continue
            array = np.array(host.read(name))
            for axis, kept in axes.items():
                gone = np.setdiff1d(np.arange(array.shape[axis]), kept)
                array[(slice(None),) * axis + (gone,)] = 0
            zeroed[name] = array
        inputs = host.example_inputs(1)
        want, got = host.replaced(zeroed).run(inputs, double=True), pruned.run(inputs, double=True)
    except Exception:  # noqa: BLE001  (what does not even run does harm)
        return True
    return any(
        a.shape != b.shape or bool((np.abs(a - b) > 1e-9).any())
        for a, b in zip(want.values(), got.values(), strict=True)
    )
