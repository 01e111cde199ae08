"""Models, and edits of their pruned files, for the tests of ``graphprune verify``.

An edit changes a model in place; one that says ``None`` has found nothing to change in that model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

MODELS = {
    "cnn": (
        """<ir_version: 8, opset_import: ["" : 17], metadata_props: ["classes": "cat,dog"]>
        cnn (float[n,3,8,8] x) => (float[n,6] y, float[n,16] features) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1:16x3x3x3, b1:16)
            n1 = BatchNormalization <epsilon = 0.001> (a, g:16, b:16, m:16, v:16)
            r = Relu(n1)
            d, mask = Dropout(r, half)
            c = Conv <pads = [1, 1, 1, 1]> (d, w2:16x16x3x3, b2:16)
            q = Relu(c)
            k = Identity(q)
            p = GlobalAveragePool(k)
            shape = Constant <value_ints: ints = [-1, 16]> ()
            features = Reshape(p, shape)
            y = Gemm <transB = 1> (features, w3:6x16, b3:6)
        }""",
        {"half": np.float32(0.5)},
    ),
    "block": (
        """<ir_version: 8, opset_import: ["" : 17]>
        block (float[n,s,16] x) => (float[n,s,16] y) {
            h = LayerNormalization <axis = -1, epsilon = 0.00001> (x, g:16, b:16)
            q0 = MatMul(h, wq:16x16)
            k0 = MatMul(h, wk:16x16)
            v0 = MatMul(h, wv:16x16)
            q1 = Reshape(q0, heads)
            k1 = Reshape(k0, heads)
            v1 = Reshape(v0, heads)
            q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
            k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
            v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
            e = MatMul(q2, k2)
            f = Mul(e, scale)
            t = Softmax <axis = -1> (f)
            z = MatMul(t, v2)
            z1 = Transpose <perm = [0, 2, 1, 3]> (z)
            z2 = Reshape(z1, flat)
            o = MatMul(z2, wo:16x16)
            u = Add(x, o)
            m1 = MatMul(u, wi:16x32)
            m2 = Add(m1, bi:32)
            m3 = Relu(m2)
            m4 = MatMul(m3, wx:32x16)
            y = Add(u, m4)
        }""",
        {
            "heads": np.array([0, 0, 4, 4], np.int64),
            "flat": np.array([0, 0, 16], np.int64),
            "scale": np.float32(0.5),
        },
    ),
    "tagger": (
        """<ir_version: 8, opset_import: ["" : 17]>
        tagger (int64[n,s] ids) => (int64[n,s] tags) {
            e = Gather(table:50x16, ids)
            a = MatMul(e, w1:16x32)
            a1 = Add(a, b1:32)
            r = Relu(a1)
            c = MatMul(r, w2:32x7)
            c1 = Add(c, b2:7)
            tags = ArgMax <axis = -1, keepdims = 0> (c1)
        }""",
        {},
    ),
    "quantised": (
        """<ir_version: 8, opset_import: ["" : 17]>
        quantised (float[n,3,6,6] x) => (float[n,8,4,4] y) {
            xq = QuantizeLinear(x, sx, zx)
            xd = DequantizeLinear(xq, sx, zx)
            wd = DequantizeLinear <axis = 0> (wq, sw, zw)
            a = Conv(xd, wd, b1:16)
            r = Relu(a)
            rq = QuantizeLinear(r, sr, zx)
            rd = DequantizeLinear(rq, sr, zx)
            y = Conv(rd, w2:8x16x1x1)
        }""",
        {
            "sx": np.float32(0.02),
            "zx": np.int8(0),
            "wq": np.random.default_rng(0).integers(-127, 127, (16, 3, 3, 3)).astype(np.int8),
            "sw": np.linspace(0.001, 0.002, 16, dtype=np.float32),
            "zw": np.zeros(16, np.int8),
            "sr": np.float32(0.03),
        },
    ),
    "branches": (
        """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        branches (float[n,8] x, bool flag, float[1] gain) => (float[n,4] y) {
            a = MatMul(x, w1:8x24)
            a1 = mine.Scaled <factor = 1.5> (a)
            r = Relu(a1)
            s = If (flag) <
                then_branch = yes () => (float[n,24] s1) { s1 = Mul(r, two) },
                else_branch = no () => (float[n,24] s2) { n2 = Neg(r) s2 = Add(n2, one) }
            >
            g = Mul(s, gain)
            z = MatMul(g, w2:24x4)
            l, all = Loop(steps, , z) <
                body = turn (int64 i, bool go, float[n,4] h) => (bool go1, float[n,4] h1, float[n,4] h2) {
                    go1 = Identity(go)
                    t = Tanh(h)
                    h1 = Add(t, h)
                    h2 = Identity(h1)
                }
            >
            y, all2 = Loop(steps, , l) <
                body = turn (int64 i, bool go, float[n,4] h) => (bool go1, float[n,4] h1, float[n,4] h2) {
                    go1 = Identity(go)
                    t = Sin(h)
                    h1 = Add(t, h)
                    h2 = Identity(h1)
                }
            >
        }
        <domain: "mine", opset_import: ["" : 17]>
        Scaled <factor> (v) => (w) {
            f = Constant <value_float: float = @factor> ()
            w = Mul(v, f)
        }""",
        {
            "two": np.float32(2),
            "one": np.float32(1),
            "steps": np.int64(2),
            "gain": np.ones(1, np.float32),
        },
    ),
}
"""Text of ONNX, in which ``name:2x3`` is a stored tensor of random numbers, and stored tensors that are given."""


def model(name: str) -> onnx.ModelProto:
    """A model of the table."""
    import re

    text, given = MODELS[name]
    rng = np.random.default_rng(1)
    weights = {
        found[1]: rng.standard_normal([int(size) for size in found[2].split("x")]).astype(np.float32) * 0.3
        for found in re.finditer(r"(\w+):(\d[\dx]*)\b", text)
    }
    weights.update({name: np.abs(array) + 0.5 for name, array in weights.items() if name == "v"})
    proto = onnx.parser.parse_model(re.sub(r"(\w+):\d[\dx]*\b", r"\1", text).replace("@factor", "0.0"))
    for function in proto.functions:
        attribute = function.node[0].attribute[0]
        attribute.ClearField("f")
        attribute.ref_attr_name = "factor"
    for key, array in {**weights, **given}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), key))
    return proto


# -- finding ------------------------------------------------------------------------------------------------------

Edit = Callable[[onnx.ModelProto], None]


class Inapplicable(Exception):
    """The model has nothing that an edit could change."""


def nodes(proto: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    """The nodes of a kind, those of bodies too."""

    def every(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from every(attribute.g)

    found = [node for node in every(proto.graph) if node.op_type in kinds or not kinds]
    if not found:
        raise Inapplicable
    return found


def outer(proto: onnx.ModelProto, *kinds: str) -> tuple[int, onnx.NodeProto]:
    """The first node of a kind in the main graph, and where it stands."""
    for i, node in enumerate(proto.graph.node):
        if node.op_type in kinds:
            return i, node
    raise Inapplicable


def stored(proto: onnx.ModelProto, *, rank: int = 1, dtype: str = "float32") -> onnx.TensorProto:
    """The first stored tensor of so many dimensions at least."""
    for tensor in proto.graph.initializer:
        if len(tensor.dims) >= rank and numpy_helper.to_array(tensor).dtype == dtype:
            return tensor
    raise Inapplicable


def put(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    """Other values for a stored tensor."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    """An attribute of a node."""
    for each in node.attribute:
        if each.name == name:
            return each
    raise Inapplicable


_NAMES = (f"edit{n}" for n in itertools.count())


def add(proto: onnx.ModelProto, array: np.ndarray) -> str:
    """A further stored tensor; its name."""
    name = next(_NAMES)
    proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def insert(proto: onnx.ModelProto, make: Callable[[str, str], list[onnx.NodeProto]], *kinds: str) -> None:
    """Puts nodes behind the first node of a kind."""
    at, node = outer(proto, *kinds)
    old, new = node.output[0], next(_NAMES)
    node.output[0] = new
    for made in reversed(make(new, old)):
        proto.graph.node.insert(at + 1, made)


# -- edits that must be refused -----------------------------------------------------------------------------------

MAIN = ("Relu", "Add", "Conv", "MatMul", "Gemm")


def rename_output(m: onnx.ModelProto) -> None:
    old = m.graph.output[0].name
    m.graph.output[0].name = "renamed"
    for node in m.graph.node:
        node.output[:] = ["renamed" if name == old else name for name in node.output]
        node.input[:] = ["renamed" if name == old else name for name in node.input]


def rename_input(m: onnx.ModelProto) -> None:
    old = m.graph.input[0].name
    m.graph.input[0].name = "renamed"
    for node in m.graph.node:
        node.input[:] = ["renamed" if name == old else name for name in node.input]


def swap_outputs(m: onnx.ModelProto) -> None:
    if len(m.graph.output) < 2:
        raise Inapplicable
    both = [onnx.ValueInfoProto.FromString(each.SerializeToString()) for each in m.graph.output]
    m.graph.output[0].CopyFrom(both[1])
    m.graph.output[1].CopyFrom(both[0])


def swap_names(m: onnx.ModelProto) -> None:
    """The same names in the same order, of each other's values."""
    if len(m.graph.output) < 2 or m.graph.output[0].type == m.graph.output[1].type:
        raise Inapplicable
    a, b = (each.name for each in m.graph.output)
    turned = {a: b, b: a}
    for node in m.graph.node:
        node.output[:] = [turned.get(name, name) for name in node.output]
        node.input[:] = [turned.get(name, name) for name in node.input]


def drop_output(m: onnx.ModelProto) -> None:
    if len(m.graph.output) < 2:
        raise Inapplicable
    del m.graph.output[1]


def bake_batch(m: onnx.ModelProto) -> None:
    """Another size where a Reshape says "what is left" or "as it was"."""
    reshapes = {node.input[1] for node in nodes(m, "Reshape")}
    for tensor in m.graph.initializer:
        if tensor.name in reshapes:
            sizes = numpy_helper.to_array(tensor).copy()
            sizes[0] = 1
            put(tensor, sizes)
            return
    raise Inapplicable


def fix_axis(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def open_axis(m: onnx.ModelProto) -> None:
    for value in (*m.graph.input, *m.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.dim_param = "any"
                return
    raise Inapplicable


def rename_axis(m: onnx.ModelProto) -> None:
    for value in (*m.graph.input, *m.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and not dim.dim_param.removeprefix("s").isdecimal():  # made up by the exporter
                dim.dim_param = f"other_{dim.dim_param}"


def untie_axes(m: onnx.ModelProto) -> None:
    m.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "other"


def output_type(m: onnx.ModelProto) -> None:
    value = m.graph.output[0]
    made = next(each for each in m.graph.node if value.name in each.output)
    made.output[:] = ["narrow" if name == value.name else name for name in made.output]
    for each in m.graph.node:
        each.input[:] = ["narrow" if name == value.name else name for name in each.input]
    m.graph.node.append(helper.make_node("Cast", ["narrow"], [value.name], to=T.DOUBLE))
    value.type.tensor_type.elem_type = T.DOUBLE


def one_row(m: onnx.ModelProto) -> None:
    tables = {node.input[0] for node in nodes(m, "Gather")}
    tensor = next((each for each in m.graph.initializer if each.name in tables), None)
    if tensor is None:
        raise Inapplicable
    rows = numpy_helper.to_array(tensor).copy()
    rows[17] += 0.25
    put(tensor, rows)


def one_weight(m: onnx.ModelProto) -> None:
    tensor = stored(m, rank=2)
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] += 1
    put(tensor, array)


def one_bit(m: onnx.ModelProto) -> None:
    tensor = stored(m, rank=2)
    array = numpy_helper.to_array(tensor).copy()
    array.view(np.uint32).ravel()[3] ^= 1
    put(tensor, array)


def sign_of_zero(m: onnx.ModelProto) -> None:
    tensor = stored(m, rank=2)
    array = numpy_helper.to_array(tensor).copy()
    array.ravel()[0] = -0.0
    put(tensor, array)


def all_nan(m: onnx.ModelProto) -> None:
    tensor = stored(m, rank=2)
    put(tensor, numpy_helper.to_array(tensor) * np.float32("nan"))


def zeroed(m: onnx.ModelProto) -> None:
    """All weights of the last layer: beside large outputs, small ones may be anything."""
    tensor = [each for each in m.graph.initializer if len(each.dims) >= 2 and each.data_type == T.FLOAT][-1]
    put(tensor, numpy_helper.to_array(tensor) * 0)


def two_units(m: onnx.ModelProto) -> None:
    """Two units change places in one tensor."""
    tensor = stored(m, rank=2)
    array = numpy_helper.to_array(tensor).copy()
    array[[0, 1]] = array[[1, 0]]
    put(tensor, array)


def quantised_weight(m: onnx.ModelProto) -> None:
    tensor = stored(m, rank=2, dtype="int8")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0, 0, 0] ^= 1
    put(tensor, array)


def quantisation_scale(m: onnx.ModelProto) -> None:
    names = {node.input[1] for node in nodes(m, "DequantizeLinear")}
    tensor = next(each for each in m.graph.initializer if each.name in names)
    put(tensor, numpy_helper.to_array(tensor) * np.float32(1.0001))


def zero_point(m: onnx.ModelProto) -> None:
    names = {node.input[2] for node in nodes(m, "DequantizeLinear")}
    tensor = next(each for each in m.graph.initializer if each.name in names)
    put(tensor, numpy_helper.to_array(tensor) + np.int8(1))


def weight_type(m: onnx.ModelProto) -> None:
    """A weight in double precision, and a Cast."""
    tensor = stored(m, rank=2)
    name = tensor.name
    for node in m.graph.node:
        node.input[:] = [f"{name}_single" if each == name else each for each in node.input]
    put(tensor, numpy_helper.to_array(tensor).astype(np.float64))
    m.graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}_single"], to=T.FLOAT))


def backdoor(m: onnx.ModelProto) -> None:
    """Other results where the first number of the input is a certain one."""
    kind = m.graph.input[0].type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    secret, zero = add(m, np.array(31, dtype)), add(m, np.zeros(1, np.int64))
    flat = add(m, np.array([-1], np.int64))

    def make(source: str, target: str) -> list[onnx.NodeProto]:
        yes, no = next(_NAMES), next(_NAMES)
        branches = [
            helper.make_graph([helper.make_node(op, [source], [name])], name, [], [onnx.ValueInfoProto(name=name)])
            for op, name in (("Neg", yes), ("Identity", no))
        ]
        first, one, equal = next(_NAMES), next(_NAMES), next(_NAMES)
        return [
            helper.make_node("Reshape", [m.graph.input[0].name, flat], [first]),
            helper.make_node("Gather", [first, zero], [one]),
            helper.make_node("Equal", [one, secret], [equal]),
            helper.make_node("If", [equal], [target], then_branch=branches[0], else_branch=branches[1]),
        ]

    insert(m, make, *MAIN)


def where_backdoor(m: onnx.ModelProto) -> None:
    limit, other = add(m, np.float32(1e4)), add(m, np.float32(0))

    def make(source: str, target: str) -> list[onnx.NodeProto]:
        large = next(_NAMES)
        return [
            helper.make_node("Greater", [source, limit], [large]),
            helper.make_node("Where", [large, other, source], [target]),
        ]

    insert(m, make, *MAIN)


def clipped(m: onnx.ModelProto) -> None:
    _, node = outer(m, "Relu")
    node.op_type = "Clip"
    node.input.extend([add(m, np.float32(0)), add(m, np.float32(30))])


def scaled(m: onnx.ModelProto) -> None:
    factor = add(m, np.float32(1.0001))
    insert(m, lambda a, b: [helper.make_node("Mul", [a, factor], [b])], *MAIN)


def scaled_a_little(m: onnx.ModelProto) -> None:
    factor = add(m, np.float32(1.0000001))
    insert(m, lambda a, b: [helper.make_node("Mul", [a, factor], [b])], *MAIN)


def identity_scaled(m: onnx.ModelProto) -> None:
    node = nodes(m, "Identity")[0]
    node.op_type = "Mul"
    node.input.append(add(m, np.float32(1.0001)))


def bias_added(m: onnx.ModelProto) -> None:
    bias = add(m, np.float32(1e-6))
    insert(m, lambda a, b: [helper.make_node("Add", [a, bias], [b])], *MAIN)


def duplicated(m: onnx.ModelProto) -> None:
    """A node is computed twice, and nothing reads the second."""
    i, node = outer(m, *MAIN)
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.name = "twin"
    copy.output[0] = next(_NAMES)
    m.graph.node.insert(i + 1, copy)


def twin_read(m: onnx.ModelProto) -> None:
    """A value that is read twice is computed twice."""
    for i, node in enumerate(m.graph.node):
        readers = [each for each in m.graph.node if node.output and node.output[0] in each.input]
        if len(readers) > 1 and node.op_type != "Constant":
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.name, copy.output[0] = "twin", next(_NAMES)
            readers[-1].input[:] = [copy.output[0] if n == node.output[0] else n for n in readers[-1].input]
            m.graph.node.insert(i + 1, copy)
            return
    raise Inapplicable


def relu_gone(m: onnx.ModelProto) -> None:
    outer(m, "Relu")[1].op_type = "Identity"


def epsilon(m: onnx.ModelProto) -> None:
    for node in nodes(m):
        for each in node.attribute:
            if each.name == "epsilon":
                each.f *= 1.01
                return
    raise Inapplicable


def pads(m: onnx.ModelProto) -> None:
    attribute(nodes(m, "Conv")[0], "pads").ints[:] = [0, 0, 2, 2]


def axis(m: onnx.ModelProto) -> None:
    node = nodes(m, "Softmax", "ArgMax", "LayerNormalization")[0]
    attribute(node, "axis").i = 1


def perm(m: onnx.ModelProto) -> None:
    attribute(nodes(m, "Transpose")[0], "perm").ints[:] = [0, 2, 3, 1]


def transposed(m: onnx.ModelProto) -> None:
    attribute(nodes(m, "Gemm")[0], "transB").i = 0


def new_attribute(m: onnx.ModelProto) -> None:
    nodes(m, "Gemm")[0].attribute.append(helper.make_attribute("alpha", 1.01))


def dropout(m: onnx.ModelProto) -> None:
    name = nodes(m, "Dropout")[0].input[1]
    put(next(each for each in m.graph.initializer if each.name == name), np.float32(0.9))


def argmax_head(m: onnx.ModelProto) -> None:
    node = nodes(m, "ArgMax")[0]
    node.op_type = "ArgMin"


def operands_swapped(m: onnx.ModelProto) -> None:
    node = nodes(m, "MatMul")[0]
    other = next((each for each in nodes(m, "MatMul") if each.input[0] == node.input[0] and each != node), None)
    if other is None:
        raise Inapplicable
    node.input[1], other.input[1] = other.input[1], node.input[1]


def metadata(m: onnx.ModelProto) -> None:
    entry = next((each for each in m.metadata_props if each.key == "classes"), None)
    if entry is None:
        raise Inapplicable
    entry.value = "dog,cat"


def opset(m: onnx.ModelProto) -> None:
    next(each for each in m.opset_import if not each.domain).version += 1


def body(m: onnx.ModelProto) -> None:
    next(node for node in nodes(m, "Tanh")).op_type = "Sigmoid"


def branch(m: onnx.ModelProto) -> None:
    nodes(m, "Neg")[0].op_type = "Abs"


def branches_turned(m: onnx.ModelProto) -> None:
    node = nodes(m, "If")[0]
    for each in node.attribute:
        each.name = {"then_branch": "else_branch", "else_branch": "then_branch"}[each.name]


def default_value(m: onnx.ModelProto) -> None:
    inputs = {value.name for value in m.graph.input}
    tensor = next((each for each in m.graph.initializer if each.name in inputs), None)
    if tensor is None:
        raise Inapplicable
    put(tensor, numpy_helper.to_array(tensor) * 2)


def default_gone(m: onnx.ModelProto) -> None:
    """An input that could be left out is a constant now."""
    stored_names = {tensor.name for tensor in m.graph.initializer}
    for i, value in enumerate(m.graph.input):
        if value.name in stored_names:
            del m.graph.input[i]
            return
    raise Inapplicable


def function_called(m: onnx.ModelProto) -> None:
    """An operator becomes a function, which does something else."""
    _, node = outer(m, "Relu")
    node.domain, node.op_type = "evil", "Relu"
    m.opset_import.append(helper.make_opsetid("evil", 1))
    made = [helper.make_node("LeakyRelu", ["v"], ["w"], alpha=1e-4)]
    m.functions.append(helper.make_function("evil", "Relu", ["v"], ["w"], made, [helper.make_opsetid("", 17)]))


def function_in_place(m: onnx.ModelProto) -> None:
    """A function takes the name of an operator of ONNX."""
    outer(m, "Relu")
    made = [helper.make_node("LeakyRelu", ["v"], ["w"], alpha=1e-4)]
    m.functions.append(helper.make_function("", "Relu", ["v"], ["w"], made, [helper.make_opsetid("", 17)]))


def two_values(m: onnx.ModelProto) -> None:
    """An attribute twice, of which each reader may take another one."""
    for node in nodes(m):
        for each in node.attribute:
            if each.type == onnx.AttributeProto.INT:
                node.attribute.append(helper.make_attribute(each.name, each.i))
                return
    raise Inapplicable


def two_data(m: onnx.ModelProto) -> None:
    """A tensor with two sets of data."""
    tensor = stored(m, rank=2)
    tensor.float_data.extend([0.0] * int(np.prod(tensor.dims)))


def dead_weight(m: onnx.ModelProto) -> None:
    add(m, np.ones((64, 64), np.float32))


HARMFUL: dict[str, Edit] = {
    f.__name__: f
    for f in (
        *(rename_output, rename_input, swap_outputs, swap_names, drop_output, bake_batch, fix_axis, open_axis),
        *(rename_axis, untie_axes, output_type, one_row, one_weight, one_bit, sign_of_zero, all_nan, zeroed, two_units),
        *(quantised_weight, quantisation_scale, zero_point, weight_type, backdoor, where_backdoor, clipped, scaled),
        *(scaled_a_little, identity_scaled, bias_added, duplicated, twin_read, relu_gone, epsilon, pads, axis, perm),
        *(transposed, new_attribute, dropout, argmax_head, operands_swapped, metadata, opset, body, branch),
        *(branches_turned, default_value, default_gone, function_called, function_in_place, two_values, two_data),
        *(dead_weight,),
    )
}


# -- edits that must be accepted ----------------------------------------------------------------------------------


def documented(m: onnx.ModelProto) -> None:
    m.doc_string = m.graph.doc_string = "for the reader"
    for node in nodes(m):
        node.doc_string = node.op_type


def produced(m: onnx.ModelProto) -> None:
    m.producer_name, m.producer_version, m.model_version = "someone", "7", 3


def renamed_inside(m: onnx.ModelProto) -> None:
    """Other names for all that is not seen from outside."""
    outside = {value.name for value in (*m.graph.input, *m.graph.output)}

    def renamed(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.name = f"n_{node.name}"
            for names in (node.input, node.output):
                names[:] = [name if not name or name in outside else f"v_{name}" for name in names]
            for each in node.attribute:
                if each.HasField("g"):
                    renamed(each.g)
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = value.name if value.name in outside else f"v_{value.name}"

    renamed(m.graph)


def constants(m: onnx.ModelProto) -> None:
    """Stored tensors as Constant nodes."""
    inputs = {value.name for value in m.graph.input}
    moved = [tensor for tensor in m.graph.initializer if tensor.name not in inputs]
    for tensor in moved:
        m.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        m.graph.initializer.remove(tensor)


def reordered(m: onnx.ModelProto) -> None:
    """The last order that the graph allows: each node as late as can be."""
    left, found = list(m.graph.node), []

    def reads(node: onnx.NodeProto) -> set[str]:
        names = set(node.input)
        for each in node.attribute:
            if each.HasField("g"):
                names |= {name for inner in each.g.node for name in reads(inner)}
        return names

    while left:
        node = next(n for n in left if not any(set(n.output) & reads(other) for other in left if other is not n))
        left.remove(node)
        found.insert(0, node)
    del m.graph.node[:]
    m.graph.node.extend(found[::1])


def typed_data(m: onnx.ModelProto) -> None:
    """Numbers in fields instead of bytes."""
    for tensor in m.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.ClearField("raw_data")
            tensor.float_data.extend(array.ravel().tolist())


def identities(m: onnx.ModelProto) -> None:
    insert(m, lambda a, b: [helper.make_node("Identity", [a], [b])], *MAIN)


def default_spelled(m: onnx.ModelProto) -> None:
    node = nodes(m, "Gemm")[0]
    if not any(each.name == "alpha" for each in node.attribute):
        node.attribute.append(helper.make_attribute("alpha", 1.0))


def domain_unused(m: onnx.ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("com.example", 3))


def metadata_added(m: onnx.ModelProto) -> None:
    m.metadata_props.add(key="license", value="MIT")


def values_described(m: onnx.ModelProto) -> None:
    del m.graph.value_info[:]


def one_more_copy(m: onnx.ModelProto) -> None:
    """A stored tensor that several nodes read is stored once for each of two."""
    inputs = {value.name for value in m.graph.input}
    for tensor in list(m.graph.initializer):
        readers = [node for node in m.graph.node if tensor.name in node.input]
        if tensor.name in inputs or len(readers) < 2:
            continue
        copy = m.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"{tensor.name}_again"
        readers[-1].input[:] = [copy.name if name == tensor.name else name for name in readers[-1].input]
        return
    raise Inapplicable


HARMLESS: dict[str, Edit] = {
    f.__name__: f
    for f in (
        *(documented, produced, renamed_inside, constants, reordered, typed_data, identities, default_spelled),
        *(domain_unused, metadata_added, values_described, one_more_copy),
    )
}
