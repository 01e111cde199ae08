"""Inputs that hold a decoder's cache of keys and values, and what follows from it for the sizes of all inputs.

A cache is found by what the graph does with it: it is joined with new keys or values along one axis into what the
model gives back, or an attention operator takes it for its past. Names count for nothing but masks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import onnx

from graphprune.hosts.messages import attributes_of
from graphprune.hosts.onnx.shapes import walked
from graphprune.hosts.onnx.sizes import Binding, bind, input_sizes
from graphprune.hosts.onnx.symbols import Relations, Size, symbols_in

_FUSED: Mapping[tuple[str, str], tuple[Mapping[int, int], str, str]] = {
    ("com.microsoft", "GroupQueryAttention"): ({3: 1, 4: 2}, "num_heads", "kv_num_heads"),
    ("com.microsoft", "MultiHeadAttention"): ({6: 1, 7: 2}, "num_heads", "num_heads"),
    ("", "Attention"): ({4: 1, 5: 2}, "q_num_heads", "kv_num_heads"),
}
"""Attention operators: from the operand that is a past ``b heads length width`` to the result that is the present one,
and the attributes that say how many heads there are, of queries and of keys.
"""
_ALONE = "GroupQueryAttention"
"""Its kernels take several sequences token by token only, where there is a past."""
_STEPS = 8
"""From an attention to its projections: a bias, a norm, a rotary embedding."""
_THROUGH = ("Identity", "Cast")
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Cache:
    """An input that is a cache.

    Attributes:
        name: Of the input.
        axis: Along which it grows.
        node: What reads it: the position of the node in the graph.
        operand: As which of its operands.
        present: What it has become: the value, and (if there is one) the output.
    """

    name: str
    axis: int
    node: int
    operand: int
    present: tuple[str, ...] = field(default=())


def find_caches(proto: onnx.ModelProto) -> dict[str, Cache]:
    """The inputs that are caches.

    Args:
        proto: A normalised model.
    """
    nodes = proto.graph.node
    readers: dict[str, list[tuple[int, int]]] = {}
    for at, node in enumerate(nodes):
        for i, name in enumerate(node.input):
            readers.setdefault(name, []).append((at, i))
    outputs = {value.name for value in proto.graph.output}
    given = {value.name for value in proto.graph.input} | {tensor.name for tensor in proto.graph.initializer}

    def through(name: str) -> Iterator[str]:
        yield name
        for at, _ in readers.get(name, ()):
            if nodes[at].op_type in _THROUGH or (nodes[at].op_type == "Concat" and len(nodes[at].input) == 1):
                yield from through(nodes[at].output[0])

    found: dict[str, Cache] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        rank = len(kind.shape.dim)
        if not value.type.HasField("tensor_type") or kind.elem_type not in _FLOATS or rank < 3:
            continue
        for at, i in [place for name in through(value.name) for place in readers.get(name, ())]:
            node = nodes[at]
            domain = "" if node.domain == "ai.onnx" else node.domain
            if node.op_type == "Concat" and len(node.input) == 2 and node.input[1 - i] not in given:
                present = tuple(name for name in through(node.output[0]))
                if outputs & {*present}:
                    axis = attributes_of(node)["axis"] % rank
                    found[value.name] = Cache(value.name, axis, at, i, present)
            elif (domain, node.op_type) in _FUSED and rank == 4:
                results = _FUSED[domain, node.op_type][0]
                if i in results:
                    j = results[i]
                    made = node.output[j] if j < len(node.output) else ""
                    found[value.name] = Cache(value.name, 2, at, i, tuple(through(made)) if made else ())
    return found


def sized(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], examples: Collection[str], named: Mapping[str, int]
) -> tuple[onnx.ModelProto, Binding]:
    """Chooses the sizes of all inputs; see :func:`graphprune.hosts.onnx.sizes.bind`.

    Returns:
        The model, in which caches declare how many heads they have and how wide these are, and the sizes.

    Raises:
        OptionError: An input or a symbol is unknown, or sizes do not fit.
    """
    caches = find_caches(proto)
    proto = with_widths(proto, caches)
    axes = {name: cache.axis for name, cache in caches.items()}
    return proto, bind(proto, shapes, examples, named=named, caches=axes, relations=relations(proto, caches.values()))


def bytes_of_caches(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many bytes all caches hold for each token of a sequence, at these shapes of the inputs."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    total = 0
    for name, cache in find_caches(proto).items():
        sizes = [size for axis, size in enumerate(shapes[name]) if axis not in (0, cache.axis)]
        total += prod(sizes) * onnx.helper.tensor_dtype_to_np_dtype(kinds[name]).itemsize
    return total


def takes_one(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a model takes one sequence at a time, since it goes on from a past with one."""
    caches = find_caches(proto)
    readers = {proto.graph.node[cache.node].op_type for cache in caches.values()}
    return _ALONE in readers and all(shapes[name][0] == 1 for name in caches)


def with_widths(proto: onnx.ModelProto, caches: Mapping[str, Cache]) -> onnx.ModelProto:
    """The model in which caches declare how many heads they have and how wide these are, where the file leaves it open.

    Both follow from the weights: from the new keys and values, or from the attributes of the operator that reads them.
    """
    declared = input_sizes(proto)
    left = {
        name: [a for a, size in enumerate(declared[name]) if a not in (0, cache.axis) and not isinstance(size, int)]
        for name, cache in caches.items()
    }
    if not any(left.values()):
        return proto
    shapes, _ = walked(proto, bind(proto, None, caches={name: cache.axis for name, cache in caches.items()}).shapes, {})
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    inputs = {value.name: value for value in result.graph.input}
    for name, axes in left.items():
        sizes = _widths(proto, caches[name], shapes)
        for axis in axes:
            if sizes and axis < len(sizes) and sizes[axis]:
                inputs[name].type.tensor_type.shape.dim[axis].dim_value = sizes[axis] or 0
    return result


def _widths(proto: onnx.ModelProto, cache: Cache, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, ...]:
    """The sizes of the axes of a cache, as far as what reads it says them."""
    node = proto.graph.node[cache.node]
    if node.op_type == "Concat":
        return shapes.get(node.input[1 - cache.operand], ())
    attributes = attributes_of(node)
    domain = "" if node.domain == "ai.onnx" else node.domain
    _, of_queries, of_keys = _FUSED[domain, node.op_type]
    heads, shared = attributes.get(of_queries), attributes.get(of_keys)
    width = _width(proto, node.input[0], shapes)
    if not heads or not shared or width is None or len(shapes.get(node.input[0], (0, 0, 0))) != 3:
        return ()
    packed = node.op_type == "GroupQueryAttention" and (len(node.input) < 2 or not node.input[1])
    return None, shared, None, width // (heads + 2 * shared if packed else heads)


def _width(proto: onnx.ModelProto, name: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The size of the last axis of a value: inferred, or that of the weights which it is a product with.

    Inference knows no operators of onnxruntime, and nothing behind them.
    """
    producers = {result: node for node in proto.graph.node for result in node.output}
    for _ in range(_STEPS):
        shape, node = shapes.get(name), producers.get(name)
        if shape:
            return shape[-1]
        if node is None:
            return None
        if node.op_type == "MatMulNBits":
            return int(attributes_of(node)["N"])
        if node.op_type == "MatMul" and shapes.get(node.input[1]):
            return shapes[node.input[1]][-1]
        biased = node.op_type == "Add" and node.input[0] not in producers  # a bias stands first, or behind
        name = node.input[int(biased)]
    return None


def relations(proto: onnx.ModelProto, caches: Collection[Cache]) -> Relations:
    """What a model with caches says of the sizes of its inputs.

    What comes out is as long as the past and what is new together, and so are masks that have a length of their own.
    """
    if not caches:
        return Relations()
    declared = input_sizes(proto)
    symbols = {*symbols_in(declared)}
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    masks = [name for name in declared if "mask" in name.lower() and len(declared[name]) > 1]
    names = {cache.name for cache in caches}
    tokens = [n for n, s in declared.items() if n not in masks and len(s) == 2 and kinds[n] in _INTEGERS]
    tokens = tokens or [n for n, s in declared.items() if n not in names and len(s) == 3 and kinds[n] in _FLOATS]
    past = _symbols((declared[cache.name][cache.axis] for cache in caches), symbols)
    new = _symbols((declared[name][1] for name in tokens), symbols)
    batch = _symbols((declared[name][0] for name in (*tokens, *masks, *names)), symbols)
    length: Size = declared[tokens[0]][1] if tokens else None
    roles = {role: tie[0] for role, tie in (("past", past), ("sequence", new), ("batch", batch)) if tie}
    if "sequence" in roles:
        roles["seq"] = roles["sequence"]
    readers = {proto.graph.node[cache.node].op_type for cache in caches}
    alone = 1 if _ALONE in readers else None
    if not past or length is None:
        return Relations({}, (past, new, batch), roles, alone)
    taken = {size for name in declared if name not in masks for size in declared[name]}
    totals = [declared[name][-1] for name in masks if declared[name][-1] not in taken]
    made = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.output}
    for cache in caches:
        totals.extend(
            made[name][cache.axis].dim_param for name in cache.present if len(made.get(name, ())) > cache.axis
        )
    whole = _symbols(totals, symbols - {*past, *new, *batch})
    if whole:
        roles["total"] = whole[0]
    return Relations(dict.fromkeys(whole, (past[0], length)), (past, new, batch), roles, alone)


def _symbols(sizes: Iterator[Size] | list[Size], symbols: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(size for size in sizes if isinstance(size, str) and size in symbols))
