"""Small valid ONNX models for ``fuzz_trials``, of every construct that a file can nest things in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

_HEAD = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'

_CNN = """agraph (float[2,3,8,8] x) => (float[2,5] y) {
  c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
  n1 = BatchNormalization (c1, g1, h1, m1, v1)
  r1 = Relu (n1)
  c2 = Conv <group = 8, pads = [1,1,1,1]> (r1, w2)
  s = Add (c2, r1)
  c3 = Conv (s, w3, b3)
  r3 = Clip (c3, low, high)
  p = GlobalAveragePool (r3)
  q = Flatten (p)
  y = Gemm <transB = 1> (q, w4, b4)
}"""

_TRANSFORMER = """agraph (int64[2,6] ids) => (float[2,6,11] y) {
  e = Gather (table, ids)
  l = LayerNormalization (e, lg, lb)
  q0 = MatMul (l, wq)
  k0 = MatMul (l, wk)
  v0 = MatMul (l, wv)
  q1 = Reshape (q0, heads)
  k1 = Reshape (k0, heads)
  v1 = Reshape (v0, heads)
  q = Transpose <perm = [0,2,1,3]> (q1)
  k = Transpose <perm = [0,2,3,1]> (k1)
  v = Transpose <perm = [0,2,1,3]> (v1)
  a0 = MatMul (q, k)
  a1 = Mul (a0, scale)
  a = Softmax <axis = -1> (a1)
  o0 = MatMul (a, v)
  o1 = Transpose <perm = [0,2,1,3]> (o0)
  o2 = Reshape (o1, joined)
  o3 = MatMul (o2, wo)
  o = Add (e, o3)
  u0 = MatMul (o, wu)
  u1 = Add (u0, bu)
  u2 = Erf (u1)
  u = Mul (u1, u2)
  d = MatMul (u, wd)
  z = Add (o, d)
  y = MatMul (z, head)
}"""

_QUANTISED = """agraph (float[2,3,8,8] x) => (float[2,4] y) {
  xq = QuantizeLinear (x, sx, zx)
  xd = DequantizeLinear (xq, sx, zx)
  wd = DequantizeLinear <axis = 0> (w1, s1, z1)
  c = Conv <pads = [1,1,1,1]> (xd, wd)
  r = Relu (c)
  rq = QuantizeLinear (r, sx, zx)
  rd = DequantizeLinear (rq, sx, zx)
  p = GlobalAveragePool (rd)
  q = Flatten (p)
  w2d = DequantizeLinear (w2, s2, z2)
  y = MatMul (q, w2d)
}"""

_CONTROL = """agraph (float[2,8] x, bool flag) => (float[2,4] y) {
  f0 = MatMul (x, w0)
  f = Relu (f0)
  h0 = MatMul (f, w1)
  h = Relu (h0)
  i = If (flag) <
    then_branch = g1 () => (float[2,12] t) { t = Add (h, b) },
    else_branch = g2 () => (float[2,12] e) { e0 = Mul (h, b) e = Sigmoid (e0) }
  >
  l = Loop (n, , i) <
    body = g3 (int64 k, bool c, float[2,12] s) => (bool c2, float[2,12] s2) { c2 = Identity (c) s2 = Tanh (s) }
  >
  y = MatMul (l, w2)
}"""

_FUNCTIONS = """agraph (float[2,8] x) => (float[2,4] y) {
  h = f.Block <alpha = 0.2> (x, w1, b1)
  g = f.Outer (h, w2, b2)
  y = MatMul (g, w3)
}
<domain: "f", opset_import: ["" : 17]>
Block <alpha> (a, w, b) => (z) {
  m = MatMul (a, w)
  s = Add (m, b)
  z = LeakyRelu <alpha : float = @alpha> (s)
}
<domain: "f", opset_import: ["" : 17, "f" : 1]>
Outer (a, w, b) => (z) { t = f.Block <alpha = 0.1> (a, w, b) z = Identity (t) }"""

_RECURRENT = """agraph (float[5,2,6] x, float[2,4] k) => (float[5,2,3] y, int64[2,2] top) {
  h, last = GRU <hidden_size = 8> (x, w, r)
  one = Squeeze (h, axes)
  y = MatMul (one, wo)
  best, top = TopK (k, two)
}"""


def _stored(**arrays: object) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def _model(text: str, **arrays: object) -> onnx.ModelProto:
    """A model in text; a tuple stands for random weights of this shape."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f"{_HEAD}\n{text}")
    held = {
        name: (rng.standard_normal(value) * 0.3).astype(np.float32) if isinstance(value, tuple) else value
        for name, value in arrays.items()
    }
    proto.graph.initializer.extend(_stored(**held))
    onnx.checker.check_model(proto)
    return proto


def _eight(*shape: int) -> object:
    return np.random.default_rng(1).integers(-100, 100, shape).astype(np.int8)


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "cnn": lambda: _model(
        _CNN, w1=(8, 3, 3, 3), b1=(8,), g1=(8,), h1=(8,), m1=(8,), v1=np.ones(8, np.float32), w2=(8, 1, 3, 3),
        w3=(12, 8, 1, 1), b3=(12,), low=np.float32(0), high=np.float32(6), w4=(5, 12), b4=(5,),
    ),
    "transformer": lambda: _model(
        _TRANSFORMER, table=(11, 8), lg=(8,), lb=(8,), wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8), wu=(8, 16), bu=(16,),
        wd=(16, 8), head=(8, 11), heads=np.array([0, 0, 2, 4]), joined=np.array([0, 0, 8]), scale=np.float32(0.5),
    ),
    "quantised": lambda: _model(
        _QUANTISED, sx=np.float32(0.02), zx=np.uint8(128), w1=_eight(8, 3, 3, 3), s1=np.full(8, 0.01, np.float32),
        z1=np.zeros(8, np.int8), w2=_eight(8, 4), s2=np.float32(0.01), z2=np.int8(0),
    ),
    "control": lambda: _model(_CONTROL, w0=(8, 16), w1=(16, 12), b=(12,), w2=(12, 4), n=np.array(3)),
    "functions": lambda: _model(_FUNCTIONS, w1=(8, 12), b1=(12,), w2=(12, 10), b2=(10,), w3=(10, 4)),
    "recurrent": lambda: _model(
        _RECURRENT, w=(1, 24, 6), r=(1, 24, 8), axes=np.array([1]), wo=(8, 3), two=np.array([2]),
    ),
}  # fmt: skip
"""By name, how each is made."""
