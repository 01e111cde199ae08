"""Samples that see each other in the model: calls stay whole, in every form of data; others are drawn as before."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import graphprune as gp
from graphprune.data.batches import BATCH_SIZE, open_batches
from graphprune.data.calls import rows_interact
from graphprune.data.specs import specs_of
from graphprune.errors import OptionError
from graphprune.ir.graph import Graph, Node, Value

LENGTH, WIDTH = 6, 3
CALLS = np.random.default_rng(0).standard_normal((20, LENGTH, WIDTH)).astype(np.float32)
STATES = np.arange(20.0, dtype=np.float32)[:, None, None] * np.ones((1, 1, WIDTH), np.float32)


def host(run, *, rows=LENGTH, op="LSTM", state=False):
    """A model of rows that may come in any number, and perhaps of a state."""
    shapes = {"x": (rows, WIDTH), **({"h": (1, WIDTH)} if state else {})}
    dynamic = {"x": frozenset({0})}
    values = {
        name: Value(name, shape, "float32", "input", 4, dynamic.get(name, frozenset()))
        for name, shape in shapes.items()
    }
    graph = Graph(values, (Node("node", op, ("x",), ()),), tuple(values), ())

    def example(seed=0):
        rng = np.random.default_rng(seed)
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    return SimpleNamespace(graph=lambda: graph, example_inputs=example, run=lambda inputs: {"y": run(**inputs)})


def forward(x, h=0.0):
    return np.cumsum(x, 0) + h


def boxes(x):
    return np.repeat(x.mean(0, keepdims=True) + x, 2, axis=0)


def broken(x):
    raise ValueError("this many rows do not go together")


SEEN = {
    "forward": (forward, True),
    "backward": (lambda x: np.cumsum(x[::-1], 0)[::-1], True),
    "middle": (lambda x: x - x.mean(0), True),
    "several rows for one": (boxes, True),
    "alone": (lambda x: np.tanh(x) + 1, False),
    "rounding": (lambda x: x * (1 + 1e-6 * len(x)), False),
    "one for all": (lambda x: x.sum(0), False),
    "does not run": (broken, False),
    "classes": (lambda x: forward(x).argmax(1), False),
}


@pytest.mark.parametrize("name", SEEN)
def test_rows_see_each_other_where_their_outputs_change(name):
    run, expected = SEEN[name]
    for rows in (1, 2, LENGTH):
        model = host(run, rows=rows)
        assert expected == rows_interact(model, specs_of(model))


@pytest.mark.parametrize(
    ("op", "dtype", "expected"),
    [("DynamicQuantizeLinear", "float32", False), ("LSTM", "float16", False), ("LSTM", "bfloat16", False),
     ("LSTM", "float32", True)],
)  # fmt: skip
def test_a_scale_of_the_batch_and_few_digits_are_no_sight(op, dtype, expected):
    model = host(lambda x: x + 0.02 * np.abs(x).mean(), op=op)
    graph = model.graph()
    values = {**graph.values, "inner": Value("inner", (1,), dtype, "computed", 2)}
    model.graph = lambda: Graph(values, graph.nodes, graph.inputs, ())
    assert expected == rows_interact(model, specs_of(model))


def test_random_numbers_are_no_sight():
    rng = np.random.default_rng(0)
    model = host(lambda x: x + rng.standard_normal(x.shape))
    assert rows_interact(model, specs_of(model))
    model.drawing = ("RandomNormal",)
    assert not rows_interact(model, specs_of(model))


def forms(tmp_path):
    """The same twenty calls."""
    flat = CALLS.reshape(-1, WIDTH)
    np.save(tmp_path / "rows.npy", flat)
    np.savez_compressed(tmp_path / "rows.npz", x=flat)
    return {
        "npy": tmp_path / "rows.npy",
        "compressed": tmp_path / "rows.npz",
        "array": flat,
        "stacked": CALLS,
        "calls": list(CALLS),
        "generator": (call for call in CALLS),
        "samples": list(flat),
        "one by one": (row[None] for row in flat),
        "mappings": [{"x": call} for call in CALLS],
    }


@pytest.mark.parametrize(
    "form", ["npy", "compressed", "array", "stacked", "calls", "generator", "samples", "one by one", "mappings"]
)
@pytest.mark.parametrize("samples", [None, 5])
def test_calls_stay_whole_in_every_form(tmp_path, form, samples):
    batches = open_batches(forms(tmp_path)[form], host(forward), samples=samples)
    known = {call.tobytes() for call in CALLS}
    assert (batches.unit, batches.batch_size, len(batches)) == (LENGTH, LENGTH, samples or len(CALLS))
    assert len({batch["x"].tobytes() for batch in batches} & known) == len(batches)
    for part in (batches.part([1, 3]), batches.unseen(3)):
        assert all(batch["x"].tobytes() in known for batch in part or ())


def test_samples_of_their_own_are_drawn_as_before():
    batches = open_batches(list(CALLS), host(lambda x: np.tanh(x) + 1), samples=10)
    assert (batches.unit, batches.batch_size, batches.samples) == (1, BATCH_SIZE, 10)


def test_calls_of_different_lengths_are_cut_to_the_shortest():
    batches = open_batches([CALLS[0], CALLS[1][:4], CALLS[2]], host(forward))
    assert [batch["x"].tolist() for batch in batches] == [call[:4].tolist() for call in CALLS[:3]]


def test_states_go_with_their_call():
    data = [{"x": call, "h": state} for call, state in zip(CALLS, STATES, strict=True)]
    batches = open_batches(data, host(forward, state=True))
    assert [batch["h"][0, 0] for batch in batches] == list(range(20))
    kept, others = open_batches(data * 4, host(forward, state=True)).set_apart()
    assert (len(kept), len(others)) == (70, 10)
    for batch in (*kept, *others):
        np.testing.assert_array_equal(CALLS[int(batch["h"][0, 0])], batch["x"])


@pytest.mark.parametrize("samples", [None, 9, 40])
@pytest.mark.parametrize("rows", [1, 4])
def test_what_differs_from_item_to_item_goes_with_its_item(rows, samples):
    """Though samples do not see each other: a state that was recorded is that of its step and of no other."""
    model = host(lambda x, h: np.tanh(x) + 9 + h, state=True)
    items = [{"x": call[:rows], "h": state} for call, state in zip(CALLS, STATES, strict=True)]
    batches = open_batches([*items, {"x": CALLS[0][:3], "h": STATES[3]}], model, samples=samples)
    assert (batches.unit, batches.batch_size, len(batches)) == (rows, rows, min(20, max(1, (samples or 80) // rows)))
    for batch in batches:
        np.testing.assert_array_equal(CALLS[int(batch["h"][0, 0])][:rows], batch["x"])
    alike = open_batches([{"x": call, "h": STATES[1]} for call in CALLS], model)
    assert (alike.unit, alike.batch_size, alike.samples) == (1, BATCH_SIZE, 20 * LENGTH)


def test_labels_go_with_their_rows():
    labels = np.arange(20 * LENGTH).reshape(20, LENGTH)
    batches = open_batches(list(zip(CALLS, labels, strict=True)), host(forward), samples=3)
    np.testing.assert_array_equal(labels[:3].ravel(), batches.labels)


def test_a_batch_size_says_how_many_rows_make_a_call():
    flat = CALLS.reshape(-1, WIDTH)
    for source in (flat, list(flat), list(CALLS)):
        batches = open_batches(source, host(forward), batch_size=10)
        assert (batches.unit, len(batches)) == (10, 12)
        np.testing.assert_array_equal(flat[:10], batches[0]["x"])
    assert open_batches(flat, host(forward, rows=2)).unit == BATCH_SIZE
    with pytest.raises(OptionError) as caught:
        open_batches(flat[:4], host(forward))
    assert str(caught.value) == (
        "the given 'ndarray' gives 4 samples, a call has 6 rows, which see each other; give at least 6, or say how "
        "many make a call (--batch-size)"
    )


def test_a_call_with_rows_of_two_lengths_is_refused():
    model = host(lambda x, h: forward(x) + h, state=False)
    values = dict(model.graph().values)
    values["y"] = Value("y", (LENGTH, WIDTH), "float32", "input", 4, frozenset({0}))
    graph = Graph(values, (), ("x", "y"), ())
    model.graph, example = (lambda: graph), model.example_inputs
    model.example_inputs = lambda seed=0: {"x": example(seed)["x"], "y": example(seed + 9)["x"]}
    model.run = lambda inputs: {"out": forward(inputs["x"]) + inputs["y"]}
    with pytest.raises(OptionError) as caught:
        open_batches([{"x": CALLS[0], "y": CALLS[0][:3]}], model)
    assert str(caught.value) == (
        "item 0 of the given 'list' has 6 samples for one input and 3 for another; give as many for each"
    )


NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[frames,4] x, float[1,1,8] h) => (float[frames,2] y)
<float[4,16] first, float[1,24,16] w, float[1,24,8] r, float[8,2] last, int64[1] one = {1}> {
    a = MatMul(x, first)
    b = Relu(a)
    c = Unsqueeze(b, one)
    d, e = GRU<hidden_size = 8>(c, w, r, , , h)
    f = Squeeze(d, one)
    g = Squeeze(f, one)
    y = MatMul(g, last)
}
"""


def test_frames_of_a_recurrence_are_calibrated_on_in_whole_calls(tmp_path):
    model = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for info in list(model.graph.value_info):
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape).astype(np.float32) * 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    onnx.save(model, tmp_path / "net.onnx")
    data = [
        {"x": rng.standard_normal((24, 4)).astype(np.float32), "h": rng.standard_normal((1, 1, 8)).astype(np.float32)}
        for _ in range(8)
    ]
    result = gp.prune(tmp_path / "net.onnx", target={"macs": 0.8}, calibration=data)
    assert [note for note in result.report.notes if "see each other" in note] == [
        "samples of the calibration data see each other in the model, so that calls of 24 samples stay whole"
    ]
