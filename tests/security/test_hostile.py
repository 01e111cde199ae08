"""Files from strangers: each is refused in one sentence, before it costs much, and nothing outside its folder is read."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import graphprune as gp
from graphprune.bounds import Bounds, parse_bound, present
from graphprune.cli import app
from graphprune.files import visible, write_text
from graphprune.hosts.onnx.host import OnnxHost

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(0)
SECRET = b"TOP-SECRET-KEY!!" * 64


def info(name: str, shape: list[int] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def stored(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32) * 0.2, name)


def mlp(
    more: tuple[onnx.NodeProto, ...] = (),
    output: str | None = None,
    *,
    held: tuple[onnx.TensorProto, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
    rows: int = 2,
) -> onnx.ModelProto:
    """``y = relu(x w1) w2``, and more nodes that may read ``y``."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
        *more,
    ]
    outputs = [info("y", None), *([info(output, None)] if output else [])]
    graph = helper.make_graph(
        nodes, "g", [info("x", [rows, 16])], outputs, [stored("w1", 16, 32), stored("w2", 32, 8), *held]
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("f", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def function(name: str, nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("b",)) -> onnx.FunctionProto:
    return helper.make_function(
        "f", name, ["a"], list(outputs), nodes, [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    )


def call(name: str, source: str, result: str) -> onnx.NodeProto:
    return helper.make_node(name, [source], [result], domain="f")


def external(where: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="s", data_type=TensorProto.UINT8, dims=[len(SECRET)])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", where), ("offset", "0"), ("length", str(len(SECRET)))):
        tensor.external_data.add(key=key, value=value)
    return tensor


# -- data of other files -------------------------------------------------------------------------------------------


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], ["c0"], value=tensor), helper.make_node("Relu", ["a"], ["b"])]
    return mlp((call("Leak", "y", "z"),), "z", functions=(function("Leak", nodes),))


def in_function_default(tensor: onnx.TensorProto) -> onnx.ModelProto:
    made = function("Leak", [helper.make_node("Relu", ["a"], ["b"])])
    made.attribute_proto.append(helper.make_attribute("value", tensor))
    return mlp((call("Leak", "y", "z"),), "z", functions=(made,))


def in_branch(tensor: onnx.TensorProto) -> onnx.ModelProto:
    sides = {
        name: helper.make_graph(
            [helper.make_node("Relu", ["y"], [f"{name}0"])], name, [], [info(f"{name}0", None)], [tensor]
        )
        for name in ("then_branch", "else_branch")
    }
    sides["else_branch"].initializer[0].name = "t"
    return mlp(
        (helper.make_node("If", ["c"], ["z"], **sides),),
        "z",
        held=(numpy_helper.from_array(np.ones((), np.bool_), "c"),),
    )


def in_attribute_of_no_type(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = mlp((helper.make_node("Constant", [], ["z"], value=tensor),), "z")
    proto.graph.node[-1].attribute[0].type = onnx.AttributeProto.UNDEFINED
    return proto


def in_training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = mlp()
    proto.training_info.add().algorithm.initializer.append(tensor)
    return proto


def in_sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = mlp()
    indices = numpy_helper.from_array(np.array([0]), "i")
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=indices, dims=[4096]))
    return proto


@pytest.mark.parametrize(
    "place",
    [in_function, in_function_default, in_branch, in_attribute_of_no_type, in_training, in_sparse],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("absolute", [True, False])
def test_no_byte_of_another_file_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[onnx.TensorProto], onnx.ModelProto],
    absolute: bool,
) -> None:
    (tmp_path / "model").mkdir()
    secret = tmp_path / "key.bin"
    secret.write_bytes(SECRET)
    path, output = tmp_path / "model" / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(place(external(str(secret) if absolute else "../key.bin")).SerializeToString())
    monkeypatch.chdir(tmp_path / "model")
    done = CliRunner().invoke(app, ["prune", str(path), "-o", str(output), "--target", "params=0.6", "--no-latency"])
    assert (done.exit_code, output.exists()) == (2, False)
    assert "keeps its data in" in done.output.replace("\n", " ")


# -- what no model needs -------------------------------------------------------------------------------------------


def doubled(source: str, times: int = 40) -> tuple[onnx.NodeProto, ...]:
    names = [source, *(f"d{i}" for i in range(times))]
    return tuple(helper.make_node("Concat", [a, a], [b], axis=0) for a, b in itertools.pairwise(names))


def loop(times: int, op: str) -> onnx.ModelProto:
    step = helper.make_node(op, ["c", "c"], ["c2"], **({"axis": 0} if op == "Concat" else {}))
    body = helper.make_graph(
        [step, helper.make_node("Identity", ["cond"], ["cond2"])],
        "body",
        [info("i", [], INT64), info("cond", [], BOOL), info("c", None)],
        [info("cond2", [], BOOL), info("c2", None)],
    )
    return mlp(
        (helper.make_node("Loop", ["n", "", "y"], ["z"], body=body),),
        "z",
        held=(numpy_helper.from_array(np.array(times), "n"),),
    )


def tables(n: int) -> onnx.ModelProto:
    nodes = [
        node
        for i in range(n)
        for node in (
            helper.make_node("Range", ["a", "b", "c"], [f"t{i}"]),
            helper.make_node("Cast", [f"t{i}"], [f"u{i}"], to=FLOAT),
            helper.make_node("ReduceSum", [f"u{i}"], [f"s{i}"], keepdims=0),
        )
    ]
    total = helper.make_node("Sum", ["y", *(f"s{i}" for i in range(n))], ["z"])
    held = tuple(
        numpy_helper.from_array(np.array(value), name) for name, value in (("a", 0), ("b", 1_000_000), ("c", 1))
    )
    return mlp((*nodes, total), "z", held=held)


def tower(depth: int, width: int) -> onnx.ModelProto:
    names = ["a", *(f"a{i}" for i in range(1, width)), "b"]
    functions = tuple(
        function(
            f"F{k}",
            [
                call(f"F{k + 1}", a, b) if k + 1 < depth else helper.make_node("Relu", [a], [b])
                for a, b in itertools.pairwise(names)
            ],
        )
        for k in range(depth)
    )
    return mlp((call("F0", "y", "z"),), "z", functions=functions)


def sparse(n: int) -> onnx.ModelProto:
    proto = mlp()
    for i in range(n):
        values, indices = (
            numpy_helper.from_array(np.array([v], t), f"q{i}") for v, t in ((1, np.float32), (0, np.int64))
        )
        proto.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=[1 << 27]))
    return proto


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (tower(15, 4), "operators, functions inlined, expected at most 1000000; allow more with --bound nodes="),
        (mlp((call("F", "y", "z"),), "z", functions=(function("F", [call("F", "a", "b")]),)), "function 'F' of "),
        (mlp(doubled("y"), "d39"), "GB at 'd2"),
        (
            mlp(
                (
                    *doubled("k"),
                    helper.make_node("ReduceSum", ["d39"], ["s"], keepdims=0),
                    helper.make_node("Add", ["y", "s"], ["z"]),
                ),
                "z",
                held=(stored("k", 4),),
            ),
            "GB at 'd2",
        ),
        (tables(400), "GB at 't2"),
        (sparse(4), "dense, the sparse initializers take more than 1.5 GB; allow more with --bound memory=N"),
        (loop(60, "Concat"), "the model takes more than 1.5 GB beyond its own size on one input"),
    ],
    ids=["functions", "recursion", "doubling", "doubled constants", "tables", "sparse", "doubling in a loop"],
)
def test_what_no_model_needs_is_refused(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(gp.ModelError) as refusal:
        gp.prune(proto, target="params=0.6", latency=False)
    assert message in str(refusal.value)


def test_a_loop_without_end_is_stopped() -> None:
    with gp.bounded(seconds=1), pytest.raises(gp.BoundError) as refusal:
        gp.prune(loop(10**9, "Add"), target="params=0.6", latency=False)
    assert str(refusal.value) == (
        "the model runs for more than 1 processor seconds on one input; it loops, or is larger than its file says; "
        "allow more with --bound seconds=N"
    )


def test_a_loop_in_float64_is_stopped() -> None:
    host = OnnxHost.load(loop(10**9, "Add"))
    with gp.bounded(seconds=1), pytest.raises(gp.ModelError, match="a loop runs for more than 1 seconds in float64"):
        host.run(host.example_inputs(), double=True)


def test_bounds_hold_inside_their_block() -> None:
    with gp.bounded(**dict(map(parse_bound, ["memory=8G", "seconds=60"]))):
        assert present() == Bounds(memory=8_000_000_000, seconds=60)
    assert present() == Bounds()
    with (
        gp.bounded(nodes=2),
        pytest.raises(gp.BoundError, match="has 3 operators, functions inlined, expected at most 2"),
    ):
        gp.analyze(mlp())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "memory",
            "cannot read --bound 'memory'; expected one like 'memory=8G' (nodes, tensors, memory, seconds, file)",
        ),
        (
            "memory=inf",
            "cannot read --bound 'memory=inf'; expected one like 'memory=8G' (nodes, tensors, memory, seconds, file)",
        ),
        ("fuel=3", "there is no bound 'fuel'; expected one of nodes, tensors, memory, seconds, file"),
        ("nodes=0", "the bound 'nodes' is 0; expected 1 or more"),
    ],
)
def test_bounds_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "m.onnx"), "--bound", text])
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")


# -- files that are damaged ----------------------------------------------------------------------------------------


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = mlp()
    change(proto)
    return proto


def few_numbers(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend([1.0] * 5)


def cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node.extend([helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])])


def many_axes(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[:] = [1] * 70 + [16, 32]


def an_input(shape: list[int]) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: proto.graph.input.append(info("q", shape))


DAMAGED: dict[str, tuple[onnx.ModelProto, str]] = {
    "reads nothing": (edited(lambda p: p.graph.node[1].input.__setitem__(0, "no")), "node '' (Relu) of {} reads 'no', which nothing gives; the file is damaged"),
    "gives nothing": (edited(lambda p: p.graph.node[0].output.__setitem__(0, "")), "node '' (Relu) of {} reads 'h', which nothing gives; the file is damaged"),
    "no operator": (edited(lambda p: p.graph.node[0].ClearField("op_type")), "a node of {} ('') has no operator; the file is damaged"),
    "output of nothing": (edited(lambda p: p.graph.output.append(info("no", [1]))), "'no' is an output of {}, and nothing gives it; the file is damaged"),
    "output without a name": (edited(lambda p: p.graph.output[0].ClearField("name")), "an input or output of {} has no name; the file is damaged"),
    "few numbers": (edited(few_numbers), "tensor 'w1' of {} holds 5 elements in 'float_data', expected 512 for its shape [16, 32]; the file is damaged"),
    "many axes": (edited(many_axes), "tensor 'w1' of {} has 72 axes, expected at most 64; the file is damaged"),
    "huge input": (edited(an_input([1 << 60, 2])), "'q' of {} has 2 axes of sizes [1152921504606846976, 2], expected at most 64 axes and 1099511627776 elements; the file is damaged"),
    "If without branches": (edited(lambda p: p.graph.node.append(helper.make_node("If", ["h"], ["z"]))), "node '' (If) of {} has no 'then_branch'; the file is damaged"),
    "cycle": (edited(cycle), "the graph of {} cannot be normalised: "),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    proto, message = DAMAGED[case]
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message.format(repr(str(path)))}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [b"MatMul", b"w1", b"w2"])
def test_a_name_that_is_no_text(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp().SerializeToString().replace(name, b"\xff" + name[1:]))
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert (done.exit_code, done.stderr.count("\n"), "internal error" in done.stderr) == (2, 1, False)


# -- names on the terminal and in files ----------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    proto = mlp()
    proto.graph.node[1].op_type = "Rel\x1b[31mu"
    proto.graph.node[1].name = "\x1b]0;title\x07"
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "w\x1b[2J\u202e1"
    path = tmp_path / "evil.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["inspect", "--dot", "d.dot", "--graphml", "g.xml"],
        ["explain"],
        ["prune", "-o", "o.onnx", "--target", "params=.9"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_control_characters_of_names_are_shown(evil: Path, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evil.parent)
    done = CliRunner().invoke(app, [command[0], str(evil), *command[1:]])
    texts = [done.output, *(path.read_text() for path in evil.parent.glob("*.*") if path.suffix in (".dot", ".xml"))]
    assert all(visible(text) == text for text in texts)
    assert "internal error" not in done.output


# -- what is written over ------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(mlp(), path)
    return path


def special(folder: Path) -> Iterator[Path]:
    os.mkfifo(folder / "pipe.onnx")
    yield folder / "pipe.onnx"
    (folder / "link.onnx").symlink_to("/dev/null")
    yield folder / "link.onnx"


@pytest.mark.parametrize("option", ["-o", "--plan-out"])
def test_special_files_are_not_replaced(model: Path, option: str) -> None:
    for path in special(model.parent):
        before = path.lstat().st_mode
        outputs = ["-o", str(path)] if option == "-o" else ["-o", str(model.parent / "o.onnx"), "--plan-out", str(path)]
        done = CliRunner().invoke(app, ["prune", str(model), *outputs, "--target", "params=0.6", "--no-latency"])
        assert (done.exit_code, path.lstat().st_mode) == (2, before)
        assert "it is a pipe, a device or a socket; give the path of a file" in done.stderr.replace("\n", " ")


def test_a_link_gives_its_place_and_what_it_leads_to_stays(model: Path) -> None:
    target, link = model.parent / "target.onnx", model.parent / "link.onnx"
    target.write_bytes(b"mine")
    link.symlink_to(target)
    gp.prune(model, target="params=0.6", latency=False).save_onnx(link)
    assert (target.read_bytes(), link.is_symlink()) == (b"mine", False)


def test_leftovers_of_a_killed_write_go_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    script = (
        "import os, sys; from pathlib import Path; from graphprune.files import replaced\n"
        "with replaced(Path(sys.argv[1])) as temporary:\n    temporary.write_text('half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    (tmp_path / f".{path.name}.other").write_text("not ours")
    assert (len(list(tmp_path.iterdir())), path.exists()) == (2, False)
    write_text(path, "whole")
    assert sorted(each.name for each in tmp_path.iterdir()) == [f".{path.name}.other", path.name]


# -- small files ---------------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2_000_000_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "cannot read {} '{}': it is no plain file; "),
        (lambda path: path.symlink_to("/dev/zero"), "cannot read {} '{}': it is no plain file; "),
        (large, "{} '{}' has 2000000000 bytes, expected at most 1000000000; "),
        (lambda path: path.write_text("[" * 100_000), "{} '{}' is nested too deeply; "),
        (lambda path: path.write_text('{"kept": [Infinity]}'), "{} '{}' is no JSON: it holds the number Infinity; "),
        (lambda path: path.write_bytes(b"\xff\xfe{}"), "{} '{}' is no JSON: "),
        (lambda path: path.write_text("[]"), "{} '{}' holds a list, expected an object; "),
    ],
    ids=["pipe", "device", "large", "deep", "infinite", "no text", "list"],
)
@pytest.mark.parametrize("what", ["plan", "profile"])
def test_small_files_that_are_none(model: Path, what: str, make: Callable[[Path], object], message: str) -> None:
    path = model.parent / "small.json"
    make(path)
    read = ["apply", "--plan"] if what == "plan" else ["prune", "--target", "latency=0.5", "--profile"]
    done = CliRunner().invoke(app, [read[0], str(model), "-o", str(model.parent / "o.onnx"), *read[1:], str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message.format(what, path)}")
