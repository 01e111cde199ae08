"""Edits that make hostile files of valid ones: of bytes, of protobuf messages, of JSON, of archives of arrays."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor

Random = np.random.Generator
SECRET = b"TOP-SECRET-KEY!!"
"""What stands in a file outside the model's folder, over and over."""
CANARY = "../outside/canary.bin"

NUMBERS = (0, -1, 1, 2, 3, 7, 63, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**60, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "x", "\x1b[31mred\x1b]0;title\x07", "\u202edecoy", "a\nb", "\r", "\0", "[bold]x[/]", "../" * 3 + "etc/passwd",
    "/etc/passwd", CANARY, "w" * 5000, "ai.onnx.ml", "com.microsoft", "If", "Loop", "Scan", "Constant", "Identity",
    "body", "then_branch", "axis", "value", "ü", "%s{}", "w1[0]", "-1",
)  # fmt: skip


def pick(rng: Random, values: Any) -> Any:
    """One of some values."""
    return values[int(rng.integers(len(values)))]


# -- bytes ---------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: Random) -> bytes:
    """Some bits turned."""
    table = np.frombuffer(data, np.uint8).copy()
    for at in rng.integers(0, max(1, len(table)), int(rng.integers(1, 9))):
        if len(table):
            table[at] ^= 1 << int(rng.integers(8))
    return table.tobytes()


def cut_off(data: bytes, rng: Random) -> bytes:
    """The beginning."""
    return data[: int(rng.integers(0, len(data) + 1))]


def spliced(data: bytes, rng: Random) -> bytes:
    """A piece of it over, or inserted into, another place."""
    start, length, at = (int(n) for n in rng.integers(0, len(data) + 1, 3))
    piece = data[start : start + length % 64]
    return data[:at] + piece + data[at + (len(piece) if rng.random() < 0.5 else 0) :]


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (flipped, cut_off, spliced)

# -- protobuf messages ---------------------------------------------------------------------------------------------


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else (value,):
                yield from _messages(each)


def _texts(proto: onnx.ModelProto) -> list[str]:
    """The names in a model, so that what is renamed can mean another thing."""
    graph = proto.graph
    found = [name for node in graph.node for name in (*node.input, *node.output, node.op_type)]
    return [*found, *(tensor.name for tensor in graph.initializer), *TEXTS]


def _scalar(field: Any, old: Any, texts: list[str], rng: Random) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_ENUM:
        return int(pick(rng, sorted(field.enum_type.values_by_number)))
    if kind == FieldDescriptor.TYPE_STRING:
        return pick(rng, texts)
    if kind == FieldDescriptor.TYPE_BYTES:
        return pick(rng, (flipped(old, rng), cut_off(old, rng), old + b"\0" * 7, b"", b"\xff\xfe", old * 3))
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return pick(rng, FLOATS)
    if kind == FieldDescriptor.TYPE_INT32:
        return pick(rng, NUMBERS) & 0x7FFFFFFF if rng.random() < 0.3 else int(rng.integers(0, 30))
    number = int(pick(rng, NUMBERS)) if rng.random() < 0.6 else int(old) + int(rng.integers(-2, 3))
    return number % 2**64 if kind == FieldDescriptor.TYPE_UINT64 else max(-(2**63), min(2**63 - 1, number))


def _edit_field(message: Any, field: Any, proto: onnx.ModelProto, rng: Random) -> None:
    """Changes one field of a message that has it."""
    value = getattr(message, field.name)
    nested = field.type == FieldDescriptor.TYPE_MESSAGE
    if not field.is_repeated:
        if rng.random() < 0.3:
            message.ClearField(field.name)
        elif not nested:
            setattr(message, field.name, _scalar(field, value, _texts(proto), rng))
        else:
            donors = [each for each in _messages(proto) if type(each) is type(value)]
            value.CopyFrom(type(value).FromString(pick(rng, donors).SerializeToString()))
        return
    at = int(rng.integers(len(value)))
    match int(rng.integers(4)):
        case 0:
            del value[at]
        case 1 if nested:
            value.add().CopyFrom(type(value[at]).FromString(value[at].SerializeToString()))
        case 1:
            value.append(value[at])
        case 2 if nested:
            donors = [each for each in _messages(proto) if type(each) is type(value[at])]
            value[at].CopyFrom(type(value[at]).FromString(pick(rng, donors).SerializeToString()))
        case 3 if nested:
            other = int(rng.integers(len(value)))
            one, two = value[at].SerializeToString(), value[other].SerializeToString()
            value[at].ParseFromString(two)
            value[other].ParseFromString(one)
        case _:
            value[at] = _scalar(field, value[at], _texts(proto), rng)


def any_field(proto: onnx.ModelProto, rng: Random) -> None:
    """Drops, doubles, swaps, renames or changes any field of any message."""
    for _ in range(int(rng.integers(1, 4))):
        sites = [(m, field) for m in _messages(proto) for field, _ in m.ListFields()]
        if sites:
            _edit_field(*pick(rng, sites), proto, rng)


def new_field(proto: onnx.ModelProto, rng: Random) -> None:
    """Sets a field of a message that has none of it."""
    message = pick(rng, list(_messages(proto)))
    absent = [f for f in message.DESCRIPTOR.fields if f not in {f for f, _ in message.ListFields()}]
    if not absent:
        return
    field = pick(rng, absent)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        made = getattr(message, field.name)
        made = made.add() if field.is_repeated else made
        donors = [each for each in _messages(proto) if type(each) is type(made)]
        made.SetInParent()
        if donors and rng.random() < 0.8:
            made.CopyFrom(type(made).FromString(pick(rng, donors).SerializeToString()))
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(field, _zero(field), _texts(proto), rng))
    else:
        setattr(message, field.name, _scalar(field, _zero(field), _texts(proto), rng))


def _zero(field: Any) -> Any:
    return {FieldDescriptor.TYPE_BYTES: b"", FieldDescriptor.TYPE_STRING: ""}.get(field.type, 0)


def a_dim(proto: onnx.ModelProto, rng: Random) -> None:
    """Changes a size or an axis."""
    tensors = [m for m in _messages(proto) if isinstance(m, onnx.TensorProto) and m.dims]
    dims = [m for m in _messages(proto) if isinstance(m, onnx.TensorShapeProto.Dimension)]
    if rng.random() < 0.5 and dims:
        pick(rng, dims).dim_value = int(pick(rng, NUMBERS))
        return
    tensor = pick(rng, tensors)
    match int(rng.integers(3)):
        case 0:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = int(pick(rng, NUMBERS))
        case 1:
            tensor.dims.append(1)
        case _:
            tensor.dims[:] = tensor.dims[::-1]


def a_type(proto: onnx.ModelProto, rng: Random) -> None:
    """Changes the element type of a tensor or a value."""
    found = [m for m in _messages(proto) if isinstance(m, onnx.TensorProto)]
    typed = [m for m in _messages(proto) if isinstance(m, onnx.TypeProto.Tensor)]
    if rng.random() < 0.5 and typed:
        pick(rng, typed).elem_type = int(rng.integers(0, 30))
    else:
        pick(rng, found).data_type = int(rng.integers(0, 30))


def an_operator(proto: onnx.ModelProto, rng: Random) -> None:
    """Another operator with the operands and attributes of this one."""
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
    pick(rng, proto.graph.node).op_type = pick(rng, names)


def a_wire(proto: onnx.ModelProto, rng: Random) -> None:
    """Reads something else, later results included: cycles."""
    node = pick(rng, proto.graph.node)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = pick(rng, _texts(proto))


def an_attribute(proto: onnx.ModelProto, rng: Random) -> None:
    """Changes the values of an attribute."""
    found = [m for m in _messages(proto) if isinstance(m, onnx.AttributeProto)]
    if not found:
        return
    attribute = pick(rng, found)
    match int(rng.integers(4)):
        case 0:
            attribute.i = int(pick(rng, NUMBERS))
        case 1:
            attribute.ints[:] = [int(pick(rng, NUMBERS)) for _ in range(int(rng.integers(0, 8)))]
        case 2:
            attribute.f = float(pick(rng, FLOATS))
        case _:
            attribute.type = int(rng.integers(0, 15))


def outside(proto: onnx.ModelProto, rng: Random) -> None:
    """Keeps a tensor's data in a file outside the folder."""
    tensor = pick(rng, [m for m in _messages(proto) if isinstance(m, onnx.TensorProto)])
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=pick(rng, (CANARY, "link.bin", "/dev/zero", "pipe", "./x/../y")))
    if rng.random() < 0.7:
        tensor.external_data.add(key="length", value=str(pick(rng, (size, 0, -1, "", "nan", 2**62))))


def nested(proto: onnx.ModelProto, rng: Random) -> None:
    """Branches in branches in branches."""
    inner = onnx.GraphProto(name="g")
    inner.node.add(op_type="Relu", input=["x"], output=["z"])
    inner.output.add(name="z")
    for depth in range(int(pick(rng, (2, 10, 20, 28)))):
        outer = onnx.GraphProto(name=f"g{depth}")
        node = outer.node.add(op_type="If", input=[pick(rng, ("c", "x", ""))], output=["z"])
        for name in ("then_branch", "else_branch")[: 2 if depth < 4 else 1]:
            node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
        outer.output.add(name="z")
        inner = outer
    proto.graph.node.append(inner.node[0])


def repeated(proto: onnx.ModelProto, rng: Random) -> None:
    """Values that double, over and over."""
    name = pick(rng, [name for node in proto.graph.node for name in node.output if name])
    for i in range(int(pick(rng, (3, 12, 40)))):
        op = pick(rng, ("Concat", "Mul", "MatMul", "Tile", "Expand"))
        node = proto.graph.node.add(op_type=op, input=[name, name], output=[f"again{i}"])
        if op == "Concat":
            node.attribute.add(name="axis", type=onnx.AttributeProto.INT, i=int(rng.integers(-2, 2)))
        name = f"again{i}"
    proto.graph.output.add(name=name)


MESSAGES: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    any_field, any_field, any_field, new_field, a_dim, a_type, an_operator, a_wire, an_attribute, outside, nested,
    repeated,
)  # fmt: skip


def edited_model(proto: onnx.ModelProto, rng: Random) -> tuple[bytes, str]:
    """The bytes of a hostile model, and what was done."""
    if rng.random() < 0.4:
        edit = pick(rng, BYTES)
        return edit(proto.SerializeToString(), rng), edit.__name__
    change = pick(rng, MESSAGES)
    change(proto, rng)
    return proto.SerializeToString(), change.__name__


# -- JSON ----------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 1e308, 10**30, -(10**30), 2**63, "", "x", "1", "\x1b[2J", "w" * 3000, [], {}, [[]],
    [None], [1e300], {"a": 1}, [[[[[]]]]], list(range(1000)), "\ud800",
)  # fmt: skip


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield data, key
        yield from _places(value)


def edited_json(data: Any, rng: Random) -> bytes:
    """The bytes of hostile JSON."""
    if rng.random() < 0.25:
        return pick(rng, BYTES)(json.dumps(data).encode(), rng)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(data))
        if not places:
            break
        holder, key = pick(rng, places)
        match int(rng.integers(5)):
            case 0:
                del holder[key]
            case 1:
                other, name = pick(rng, places)
                holder[key] = json.loads(json.dumps(other[name])) if _has(other, name) else None
            case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] += pick(rng, (-1, 1, 0.5, 10**20))
            case 3 if isinstance(holder, dict):
                holder[pick(rng, TEXTS)] = holder.pop(key)
            case _:
                holder[key] = pick(rng, VALUES)
    text = json.dumps(data)
    match int(rng.integers(12)):
        case 0:
            text = text.replace("[1", "[Infinity", 1)
        case 1:
            text = "[" * 50_000 + text
        case 2:
            text = text.replace(":", ": " + "9" * 5000 + ",", 1)
        case 3:
            text = text[:-1] + "," + text[1:]  # each key twice
    return text.encode("utf-8", "surrogatepass")


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


# -- archives of arrays --------------------------------------------------------------------------------------------


def _header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def npy(array: Any) -> bytes:
    """An array as a ``.npy`` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def edited_array(array: Any, rng: Random) -> bytes:
    """A ``.npy`` file that is not what it was."""
    choices: tuple[Callable[[], Any], ...] = (
        lambda: npy(array.astype(pick(rng, ("f2", "f8", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]")))),
        lambda: npy(np.full(array.shape, pick(rng, FLOATS))),
        lambda: npy(array[:0] if array.ndim else array),
        lambda: npy(array[..., None]),
        lambda: npy(array.reshape(-1)),
        lambda: npy(array.reshape(array.shape[::-1])),
        lambda: npy(-np.abs(array.astype(np.float64))),
        lambda: npy(array.astype(object)),
        lambda: npy(np.zeros(3, [("a", "f4"), ("b", "O")])),
        lambda: npy(np.int64(pick(rng, NUMBERS))),
        lambda: npy(np.array(["text"])),
        lambda: _header(pick(rng, ("(99999999999,)", "(2, -3)", "(1,)*9", "()", "(2.5,)", "(0, 9223372036854775807, 4)"))),
        lambda: _header("(4,)", pick(rng, ("|O", "<f9", "", "<U99999999", "[('a', '<f4')]"))) + b"\0" * 16,
        lambda: _header("(" * 300 + ")" * 300),
        lambda: pick(rng, BYTES)(npy(array), rng),
        lambda: b"",
    )  # fmt: skip
    try:
        with np.errstate(all="ignore"):
            return bytes(pick(rng, choices)())
    except (TypeError, ValueError):
        return npy(np.zeros(0))


def archive(members: Mapping[str, bytes], rng: Random | None = None) -> bytes:
    """An ``.npz`` file, now and then compressed."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng is not None and rng.random() < 0.5 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return file.getvalue()


BOMB = 3 << 30


def bomb(name: str) -> bytes:
    """A small archive of zeros that takes gigabytes when it is read."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out,
        out.open(name, "w", force_zip64=True) as member,
    ):
        member.write(_header(f"({BOMB // 4},)"))
        for _ in range(3):  # the header says more than there is: a reader must not believe it before it has read
            member.write(b"\0" * (1 << 20))
    return file.getvalue()


def edited_archive(members: Mapping[str, bytes], rng: Random) -> bytes:
    """A hostile ``.npz`` file."""
    members = dict(members)
    name = pick(rng, list(members))
    match int(rng.integers(8)):
        case 0:
            del members[name]
        case 1:
            return pick(rng, BYTES)(archive(members, rng), rng)
        case 2:
            members[pick(rng, TEXTS).replace("\0", "") or "."] = members.pop(name)
        case 3:
            return bomb(name)
        case 4:
            other = pick(rng, list(members))
            members[name], members[other] = members[other], members[name]
        case _:
            array = np.lib.format.read_array(io.BytesIO(members[name]), allow_pickle=False)
            members[name] = edited_array(array, rng)
    return archive(members, rng)
