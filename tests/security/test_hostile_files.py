"""Files beside the model, and code, from strangers: plans, statistics, data, states, factories; and broken pipes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fuzz_edits import archive, npy
from fuzz_models import MODELS
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli import app
from graphprune.data.batches import open_batches
from graphprune.errors import PlanError
from graphprune.files import visible
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.planning.transfer import METADATA, read_origins


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with ``model.onnx``."""
    monkeypatch.chdir(tmp_path)
    onnx.save(MODELS["cnn"](), "model.onnx")
    return tmp_path


def refused(*words: str) -> str:
    """The one line that the command ends with."""
    done = CliRunner().invoke(app, list(words))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
    return done.stderr.removeprefix("error: ").removesuffix("\n")


PRUNE = ("prune", "model.onnx", "-o", "out.onnx", "--target", "params=0.7", "--no-latency", "--no-verify")

# -- plans, profiles, origins --------------------------------------------------------------------------------------


def changed(data: Any, *path: Any, to: Any) -> Any:
    """A copy of the data with another value in one place."""
    data = inner = json.loads(json.dumps(data))
    *before, last = path
    for key in before:
        inner = inner[key]
    inner[last] = to
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("groups", 0, "kept"), [1.5], "got 1.5, expected a whole number"),
        (("groups", 0, "kept"), ["1"], "got '1', expected a whole number"),
        (("groups", 0, "kept"), [True], "got True, expected a whole number"),
        (("groups", 0, "kept"), [[[1]]], "got [[1]], expected a whole number"),
        (("groups", 0, "kept"), 3, "'int' object is not iterable"),
        (("groups", 0, "kept"), [-1, 2], "are not a rising sequence within 0..7"),
        (("groups", 0, "kept"), [1, 1], "are not a rising sequence within 0..7"),
        (("groups", 0, "kept"), [10**30], "are not a rising sequence within 0..7"),
        (("groups", 0, "size"), 1e308, "got 1e+308, expected a whole number"),
        (("shapes", "w1", 0), "8", "got '8', expected a whole number"),
        (("blocks",), [{"name": "b", "kind": "k", "tensors": "w1"}], "got 'w1', expected a list of texts"),
        (("options",), [], "got [], expected an object of options"),
        (("options", "targets"), 5, "got 5, expected a list of texts"),
        (("options", "targets"), ["x=1"], "unknown target 'x'"),
        (("options", "compensated"), [3], "got [3], expected a list of texts"),
        (("options", "compensated"), ["w1"], "there is no compensation in its options"),
        (("options", "digests"), [1], "got [1] as 'digests', expected an object"),
    ],
)  # fmt: skip
def test_plans_of_wrong_types(folder: Path, path: tuple[Any, ...], value: object, message: str) -> None:
    plan = gp.prune("model.onnx", target="params=0.7", verify=False).plan
    Path("plan.json").write_text(json.dumps(changed(plan.to_dict(), *path, to=value)))
    assert message in refused("apply", "model.onnx", "--plan", "plan.json", "-o", "out.onnx")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("whole",), "nan"), (("whole",), -1), (("summed",), 10**400), (("align",), "8"), (("skipped",), [1]),
        (("machine", "threads"), "x"), (("machine", "more"), 1), (("entries", "s", "milliseconds"), ["1"]),
        (("entries", "s", "axes"), [[True]]),
    ],
)  # fmt: skip
def test_profiles_of_wrong_types(path: tuple[Any, ...], value: object) -> None:
    right = {
        "format": 1, "align": 8, "whole": 1.0, "summed": 1.0, "skipped": [],
        "machine": {"cpu": "c", "cores": 1, "threads": 1, "provider": "p", "runtime": "1"},
        "entries": {"s": {"label": "l", "axes": [[1.0]], "milliseconds": [1.0]}},
    }  # fmt: skip
    assert gp.Profile.from_dict(right).whole == 1
    with pytest.raises(gp.OptionError, match="not a profile: "):
        gp.Profile.from_dict(changed(right, *path, to=value))


@pytest.mark.parametrize(
    "tensors",
    [{"a": ["b", [0, 0]]}, {"a": ["b", [1]]}, {"a": ["b", [-1, 0]]}, {"a": ["b", ["0"]]}, {"a": ["b", 3]}, [], {"a": "b"}],
)  # fmt: skip
def test_origins_that_are_none(tensors: object) -> None:
    with pytest.raises(PlanError, match=f"the metadata '{METADATA}' of the file is malformed: "):
        read_origins(json.dumps({"fingerprint": "f", "tensors": tensors}))


def test_origins_without_end() -> None:
    with pytest.raises(PlanError, match="is malformed: "):
        read_origins("[" * 100_000)


# -- statistics ----------------------------------------------------------------------------------------------------

STATISTICS = (*PRUNE, "--samples", "4", "--calibration", "random", "--statistics", "s.npz")


def members(path: str) -> dict[str, bytes]:
    with np.load(path) as file:
        return {f"{name}.npy": npy(file[name]) for name in file.files}


def about(held: Mapping[str, bytes], **changes: Any) -> bytes:
    data = json.loads(str(np.load(io.BytesIO(held["about.npy"]))))
    return npy(np.array(json.dumps({**data, **changes})))


def table(held: Mapping[str, bytes], name: str) -> Any:
    return np.load(io.BytesIO(held[f"{name}.npy"]))


def infinite(array: Any) -> Any:
    array.flat[0] = np.inf
    return array


Change = Callable[[dict[str, bytes]], dict[str, bytes]]
STATISTICS_CHANGES: dict[str, tuple[Change, str]] = {
    "no about": (lambda h: {k: v for k, v in h.items() if k != "about.npy"}, "There is no item named 'about.npy' in the archive"),
    "no sources": (lambda h: {**h, "about.npy": about(h, sources=3)}, "'about' does not say what the arrays are"),
    "fewer sources": (lambda h: {**h, "about.npy": about(h, sources=[])}, "have none of "),
    "a source twice": (lambda h: {**h, "about.npy": about(h, sources=["a", "a"])}, "'about' names a source twice"),
    "no samples": (lambda h: {**h, "about.npy": about(h, samples=-1)}, "'about' does not say what the arrays are"),
    "another model": (lambda h: {**h, "about.npy": about(h, fingerprint="0")}, "belong to another model; collect them again"),
    "spreads": (lambda h: {**h, "about.npy": about(h, spreads={})}, "variances for node '"),
    "no array": (lambda h: {k: v for k, v in h.items() if k != "0.total.npy"}, "There is no item named '0.total.npy' in the archive"),
    "fewer columns": (lambda h: {**h, "0.total.npy": npy(table(h, "0.total")[:, :3])}, "'0.total' has type float64 and shape [1, 3], expected [1, 8]"),
    "flat": (lambda h: {**h, "0.square.npy": npy(table(h, "0.square").ravel())}, "'0.square' has type float64 and shape [8], expected [1, 8]"),
    "texts": (lambda h: {**h, "0.total.npy": npy(np.full((1, 8), "x"))}, "'0.total' has type <U1 and shape [1, 8], expected [1, 8]"),
    "objects": (lambda h: {**h, "0.total.npy": npy(np.full((1, 8), None))}, "'0.total' has type object and shape [1, 8], expected [1, 8]"),
    "infinite": (lambda h: {**h, "0.total.npy": npy(infinite(table(h, "0.total")))}, "the moments of source 0 are none of "),
    "negative": (lambda h: {**h, "0.square.npy": npy(-1 - table(h, "0.square"))}, "the moments of source 0 are none of "),
    "counts": (lambda h: {**h, "0.positive.npy": npy(table(h, "0.positive") + 1e9)}, "the moments of source 0 are none of "),
    "products": (lambda h: {**h, "0.product.npy": npy(table(h, "0.product") * 2)}, "the products of source 0 do not go with its squares"),
}  # fmt: skip


@pytest.mark.parametrize("case", STATISTICS_CHANGES)
def test_statistics_of_strangers(folder: Path, case: str) -> None:
    change, message = STATISTICS_CHANGES[case]
    gp.prune("model.onnx", target="params=0.7", calibration="random", samples=4, statistics="s.npz", verify=False)
    held = members("s.npz")
    Path("s.npz").write_bytes(archive(held))
    assert CliRunner().invoke(app, list(STATISTICS)).exit_code == 0
    Path("out.onnx").unlink()
    Path("s.npz").write_bytes(archive(change(held)))
    assert message in refused(*STATISTICS)
    assert not Path("out.onnx").exists()


# -- data ----------------------------------------------------------------------------------------------------------


def packed(path: str, n_samples: int) -> None:
    """Zeros: about a thousandth of what they take unpacked."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (n_samples, 3, 8, 8)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out, out.open("x.npy", "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for _ in range(n_samples // 1000):
            member.write(bytes(1000 * 3 * 8 * 8 * 4))


def test_a_small_archive_of_much(folder: Path) -> None:
    packed("c.npz", 30_000)
    command = (*PRUNE, "--calibration", "c.npz", "--samples", "4", "--bound", "memory=20M")
    assert refused(*command).startswith("'x' of 'c.npz' has 23040000 bytes, packed into ")


def test_an_array_that_says_that_it_is_larger_than_it_is(folder: Path) -> None:
    data = npy(np.zeros((4, 3, 8, 8), np.float32)).replace(b"(4, 3, 8, 8)", b"(9, 9, 8, 8)")
    for compressed in (False, True):
        with zipfile.ZipFile("c.npz", "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as out:
            out.writestr("x.npy", data)
        assert refused(*PRUNE, "--calibration", "c.npz") == (
            "cannot read 'c.npz' as arrays: 'x' says that it has 20736 bytes, and there are 3072; write it with numpy.savez"
        )


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((9_000, 2_000), ("--bound", "memory=200M"), "image 'images/a.png' has 9000x2000 pixels, which take 0.2 GB, expected at most 0.2 GB; "),
        ((9, 8), ("--preprocess", "resize=1000000"), "resize=1000000 makes an image of 'images/a.png' that has 1125000x1000000 pixels, "),
        ((1, 9_000), ("--bound", "memory=1M"), "resize=8 makes an image of 'images/a.png' that has 8x72000 pixels, "),
    ],
)  # fmt: skip
def test_images_of_many_pixels(folder: Path, size: tuple[int, int], options: tuple[str, ...], message: str) -> None:
    from PIL import Image

    Path("images").mkdir()
    for name in "ab":
        Image.new("1", size).save(f"images/{name}.png")
    assert refused(*PRUNE, "--calibration", "images", "--samples", "2", *options).startswith(message)


def test_what_never_ends_is_no_data(folder: Path) -> None:
    os.mkfifo("pipe")
    os.mkfifo("pipe.npz")
    Path("t.txt").write_text("word")
    for path in ("/dev/zero", "pipe", "pipe.npz"):
        message = f"cannot read data '{path}': it is no plain file; give a file, or a folder of images"
        assert refused(*PRUNE, "--calibration", path) == message
    onnx.save(MODELS["transformer"](), "model.onnx")
    assert refused(*PRUNE, "--calibration", "t.txt", "--tokenizer", "pipe") == (
        "cannot read tokenizer 'pipe': it is no plain file; check its files, or give another"
    )
    long = "x" * 300
    assert refused(*PRUNE, "--calibration", long).startswith(f"no data '{long}'; ")
    assert refused("inspect", f"{long}.onnx") == f"no file '{long}.onnx'; give the path of an ONNX model"


class Odd(BaseException):
    """Not an ``Exception``, as panics of libraries in Rust are not."""


@pytest.mark.parametrize("error", [Odd("no"), SystemExit(3), ValueError("no")], ids=lambda error: type(error).__name__)
def test_tokenizers_raise_what_they_like(error: BaseException, tmp_path: Path) -> None:
    def tokenizer(texts: list[str], **options: object) -> None:
        raise error

    (tmp_path / "t.txt").write_text("word " * 99)
    with pytest.raises(
        gp.OptionError, match=rf"^the tokenizer raises {type(error).__name__}: {error}; check its files"
    ):
        open_batches(tmp_path / "t.txt", OnnxHost.load(MODELS["transformer"]()), tokenizer=tokenizer)


# -- code of users -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["model", "--calibration", "--eval"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise BaseException('odd')", "raises BaseException: odd; mend the "),
        ("raise GeneratorExit", "raises GeneratorExit; mend the "),
        ("import sys; sys.exit(0)", "raises SystemExit: 0; mend the "),
        ("raise Exception('a\\nb\\x1b[2J')", "raises Exception: a b\\x1b[2J; mend the "),
    ],
)
def test_code_that_raises(
    folder: Path, monkeypatch: pytest.MonkeyPatch, use: str, body: str, message: str, request: pytest.FixtureRequest
) -> None:
    name = f"hostile{abs(hash((use, body)))}"
    Path(f"{name}.py").write_text(f"def f(*given):\n    {body}\n")
    command = ("inspect", f"{name}:f") if use == "model" else (*PRUNE, use, f"{name}:f")
    text = refused(*command)
    assert text.startswith(f"'{name}:f' {message}")
    assert visible(text) == text
    Path(f"{name}_top.py").write_text(body)
    assert refused("inspect", f"{name}_top:f").startswith(f"importing '{name}_top' {message}module")


def test_data_that_raise_as_they_are_read() -> None:
    def items() -> Any:
        yield np.zeros((2, 3, 8, 8), np.float32)
        raise SystemExit("enough")

    with pytest.raises(gp.OptionError, match="^the given 'generator' raises SystemExit: enough; mend the code"):
        open_batches(items(), OnnxHost.load(MODELS["cnn"]()))


def shell(words: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "RUN": f"{sys.executable} -m graphprune"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_stdout_is_ours_alone(folder: Path) -> None:
    """What others print, by whatever way, goes to stderr."""
    Path("noisy.py").write_text(
        "import os\nprint('top')\ndef f(run):\n    print('low'); os.write(1, b'raw'); return 1.0\n"
    )
    done = shell(f"$RUN {' '.join(PRUNE)} --json --eval noisy:f", folder=folder)
    assert (done.returncode, json.loads(done.stdout)["output"]) == (0, "out.onnx")
    assert [word in done.stderr for word in ("top", "low", "raw")] == [True] * 3


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("$RUN inspect model.onnx --json | head -c 1 >/dev/null", 0, ""),
        ("$RUN inspect model.onnx | true", 0, ""),
        ("$RUN inspect model.onnx >/dev/full", 2, "error: what is printed cannot be written: No space left on device; free some space, or send it elsewhere\n"),
        ("$RUN --help >/dev/full", 2, ""),
        ("$RUN inspect no.onnx 2>/dev/full", 2, ""),
    ],
)  # fmt: skip
def test_ends_of_pipes(folder: Path, words: str, status: int, message: str) -> None:
    done = shell(words, folder=folder)
    assert (done.returncode, done.stderr) == (status, message)


def test_libraries_say_nothing_and_warnings_of_ours_take_one_line(folder: Path) -> None:
    Path("noisy.py").write_text(
        "import logging, warnings\nfrom graphprune.errors import GraphpruneWarning\ndef f(run):\n"
        "    logging.getLogger('lib').warning('log'); warnings.warn('theirs')\n"
        "    warnings.warn('ours\\nare \\x1b[2Jhere', GraphpruneWarning); return 1.0\n"
    )
    done = shell(f"$RUN {' '.join(PRUNE)} --json --eval noisy:f", folder=folder)
    assert (done.returncode, done.stderr) == (0, "warning: ours are \\x1b[2Jhere\n")


def test_a_sweep_does_not_write_over_its_model(folder: Path) -> None:
    Path("model.onnx").rename("params-0.7.onnx")
    before = Path("params-0.7.onnx").read_bytes()
    command = ("sweep", "params-0.7.onnx", "-o", ".", "--target", "params=0.7", "--save-models", "--plot", "none")
    assert refused(*command) == (
        "'params-0.7.onnx' is the model itself, and the result for params=0.7; give another folder"
    )
    assert Path("params-0.7.onnx").read_bytes() == before


# -- modules -------------------------------------------------------------------------------------------------------


def net(seed: int = 0) -> Any:
    import torch

    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()


def test_states_of_strangers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    example = (torch.zeros(2, 6),)
    gp.prune(net(), example, target="params=0.6", verify=False).save_state(tmp_path)
    file = tmp_path / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)

    def message(change: dict[str, Any] | bytes) -> str:
        if isinstance(change, bytes):
            file.write_bytes(change)
        else:
            save_file({**tensors, **change}, file)
        with pytest.raises(gp.PlanError) as refusal:
            gp.restore(net(), tmp_path, example)
        return str(refusal.value)

    for data in (whole[:-9], whole[:20], b"", whole.replace(b'"F32"', b'"F99"', 1), b"\xff" * 64):
        assert message(data).startswith(f"cannot read '{file}': ")
    assert message({"0.bias": torch.zeros(3)}).startswith(
        f"tensor '0.bias' of '{file}' has shape [3], the pruned module has "
    )
    assert message({"0.weight": tensors["0.weight"].long()}).startswith(
        f"tensor '0.weight' of '{file}' is of type torch.int64, "
    )
    assert message({"1.bias": torch.zeros(3)}).startswith(
        f"'{file}' holds tensor '1.bias' of shape [3], which the pruned "
    )
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(gp.PlanError, match="it is no plain file; give the folder that save_state wrote"):
        gp.restore(net(), tmp_path, example)


def test_a_forward_that_ends_the_process() -> None:
    import torch

    class Ends(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sys.exit(3)

    with pytest.raises(gp.ModelError, match="raises SystemExit: 3"):
        gp.analyze(Ends(), (torch.zeros(2, 6),))


def test_modules_in_threads(tmp_path: Path) -> None:
    """Tracing patches what belongs to the process; four threads at once get what each gets alone."""
    import torch

    found: dict[int, Any] = {}
    nets = [net(seed) for seed in range(4)]  # here: random numbers belong to the process, too

    def work(seed: int) -> None:
        try:
            result = gp.prune(nets[seed], (torch.zeros(2, 6),), target="params=0.6")
            result.save_onnx(tmp_path / f"{seed}.onnx")
            found[seed] = result.plan
        except BaseException as error:  # noqa: BLE001
            found[seed] = error

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    streams = sys.stdout, sys.stderr
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {seed: gp.prune(net(seed), (torch.zeros(2, 6),), target="params=0.6").plan for seed in range(4)}
    assert found == expected
    assert (sys.stdout, sys.stderr) == streams
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{seed}.onnx" for seed in range(4)]
