"""Small decoders with caches of keys and values, as exporters write them: an embedding, an attention, a head."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
VOCABULARY, WIDTH, HEADS, SHARED, SIZE = 40, 32, 4, 2, 16
KINDS = ("concat", "gqa", "packed", "mha")
SYMBOLS = {"batch": "batch", "new": "seq", "past": "past", "total": "past + seq", "head": SIZE}


def _node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    names = [word if word != "-" else "" for word in inputs.split()]
    return helper.make_node(op, names, outputs.split(), outputs.split()[0], **attributes)


def decoder(kind: str, *, layers: int = 1, seed: int = 0, **symbols: Any) -> onnx.ModelProto:
    """A decoder of one of :data:`KINDS`; ``symbols`` are other names of dynamic axes than :data:`SYMBOLS`."""
    rng, names = np.random.default_rng(seed), {**SYMBOLS, **symbols}
    shared = HEADS if kind == "mha" else SHARED
    tables: dict[str, Array] = {
        "embed": rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
        "head": rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32),
        **{f"of{n}": np.array([0, 0, n, SIZE]) for n in {HEADS, shared}},
        "together": np.array([0, 0, HEADS * SIZE]),
        "repeated": np.array([1, 1, HEADS // shared, 1, 1]),
        "split": np.array([0, HEADS, -1, SIZE]),
        "two": np.array([2]),
        "between": np.array([1, 2]),
        "one": np.array(1.0, np.float32),
        "low": np.array(-1e4, np.float32),
        "ones": np.array([1]),
        "cos": np.cos(np.outer(np.arange(64), 0.5 ** np.arange(SIZE // 2))).astype(np.float32),
        "sin": np.sin(np.outer(np.arange(64), 0.5 ** np.arange(SIZE // 2))).astype(np.float32),
        "first": np.array(1),
    }
    nodes = [_node("Gather", "embed input_ids", "x0")]
    if kind == "concat":
        nodes += [
            _node("Cast", "attention_mask", "mask", to=TensorProto.FLOAT),
            _node("Sub", "one mask", "absent"),
            _node("Mul", "absent low", "scores_of_absent"),
            _node("Unsqueeze", "scores_of_absent between", "bias"),
        ]
    elif kind != "mha":
        nodes += [
            _node("ReduceSum", "attention_mask ones", "n", keepdims=0),
            _node("Sub", "n first", "last"),
            _node("Cast", "last", "lengths", to=TensorProto.INT32),
            _node("Shape", "attention_mask", "shape_of_mask"),
            _node("Gather", "shape_of_mask first", "total"),
            _node("Cast", "total", "total32", to=TensorProto.INT32),
        ]
    for i in range(layers):
        for name, n in (("q", HEADS), ("k", shared), ("v", shared)):
            tables[f"w{name}{i}"] = (rng.standard_normal((WIDTH, n * SIZE)) / 4).astype(np.float32)
        tables[f"wo{i}"] = (rng.standard_normal((HEADS * SIZE, WIDTH)) / 4).astype(np.float32)
        if kind == "packed":
            tables[f"wqkv{i}"] = np.concatenate([tables.pop(f"w{name}{i}") for name in "qkv"], axis=1)
            nodes.append(_node("MatMul", f"x{i} wqkv{i}", f"qkv{i}"))
        else:
            nodes += [_node("MatMul", f"x{i} w{name}{i}", f"{name}{i}") for name in "qkv"]
        nodes += _attention(kind, i, shared)
        nodes += [_node("MatMul", f"a{i} wo{i}", f"o{i}"), _node("Add", f"x{i} o{i}", f"x{i + 1}")]
    nodes.append(_node("MatMul", f"x{layers} head", "logits"))
    used = {name for node in nodes for name in node.input}
    b, s, p, t = (names[each] for each in ("batch", "new", "past", "total"))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [b, s])]
    if kind != "mha":
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [b, t]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [b, s, VOCABULARY])]
    for i in range(layers):
        for each in ("key", "value"):
            sides = ((inputs, f"past_key_values.{i}.{each}", p), (outputs, f"present.{i}.{each}", t))
            for listed, name, length in sides:
                shape = [b, shared, length, names["head"]]
                listed.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    stored = [numpy_helper.from_array(array, name) for name, array in tables.items() if name in used]
    graph = helper.make_graph(nodes, kind, inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _attention(kind: str, i: int, shared: int) -> list[onnx.NodeProto]:
    past, present = (f"{each}.{i}.key {each}.{i}.value" for each in ("past_key_values", "present"))
    if kind in ("gqa", "packed"):
        data = f"q{i} k{i} v{i}" if kind == "gqa" else f"qkv{i} - -"
        given = {"num_heads": HEADS, "kv_num_heads": shared, "do_rotary": 1, "domain": "com.microsoft"}
        return [_node("GroupQueryAttention", f"{data} {past} lengths total32 cos sin", f"a{i} {present}", **given)]
    if kind == "mha":
        given = {"num_heads": HEADS, "domain": "com.microsoft"}
        return [_node("MultiHeadAttention", f"q{i} k{i} v{i} - - - {past}", f"a{i} {present}", **given)]
    nodes = []
    for name, n in (("q", HEADS), ("k", shared), ("v", shared)):
        nodes.append(_node("Reshape", f"{name}{i} of{n}", f"{name}r{i}"))
        nodes.append(_node("Transpose", f"{name}r{i}", f"{name}t{i}", perm=[0, 2, 1, 3]))
    for name, each in (("k", "key"), ("v", "value")):
        nodes.append(_node("Concat", f"past_key_values.{i}.{each} {name}t{i}", f"present.{i}.{each}", axis=2))
        nodes.append(_node("Unsqueeze", f"present.{i}.{each} two", f"{name}u{i}"))
        nodes.append(_node("Expand", f"{name}u{i} repeated", f"{name}e{i}"))
        nodes.append(_node("Reshape", f"{name}e{i} split", f"{name}a{i}"))
    return [
        *nodes,
        _node("Transpose", f"ka{i}", f"kc{i}", perm=[0, 1, 3, 2]),
        _node("MatMul", f"qt{i} kc{i}", f"scores{i}"),
        _node("Add", f"scores{i} bias", f"masked{i}"),
        _node("Softmax", f"masked{i}", f"weights{i}", axis=-1),
        _node("MatMul", f"weights{i} va{i}", f"heads{i}"),
        _node("Transpose", f"heads{i}", f"ht{i}", perm=[0, 2, 1, 3]),
        _node("Reshape", f"ht{i} together", f"a{i}"),
    ]


def greedy(model: onnx.ModelProto, prompt: list[int], n: int) -> tuple[list[int], int]:
    """Tokens that a decoder gives, and how many bytes its caches hold for each token at the end."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    caches = {each.name: each.shape for each in session.get_inputs() if "past" in each.name}
    state = {name: np.zeros((1, shape[1], 0, SIZE), np.float32) for name, shape in caches.items()}
    masked = any(each.name == "attention_mask" for each in session.get_inputs())
    outputs = [each.name for each in session.get_outputs()]
    found, new, length = [], np.array([prompt]), 0
    for _ in range(n):
        length += new.shape[1]
        feed = {"input_ids": new, **state, **({"attention_mask": np.ones((1, length), np.int64)} if masked else {})}
        results = dict(zip(outputs, session.run(None, feed), strict=True))
        new = results["logits"][:, -1:].argmax(-1)
        found.append(int(new[0, 0]))
        state = {name: results[name.replace("past_key_values", "present")] for name in state}
    return found, sum(each.nbytes for each in state.values()) // length
