"""The user's metric before and after: labelled data, functions, and one clear error for each that does not fit."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from test_calibration_data import host
from test_cli import DEMO, error_of, run, small_model

import graphprune as gp
from graphprune.demo.run import demo_data
from graphprune.errors import OptionError
from graphprune.evaluation import METRICS, Evaluation, Runner, open_evaluation
from graphprune.opening import open_host

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "test.npz"
    images, labels = demo_data()
    np.savez(path, image=images[:101], labels=labels[:101])
    return path


def test_accuracy_before_and_after_is_what_onnxruntime_finds(labelled, tmp_path):
    out = tmp_path / "out.onnx"
    result = run("prune", DEMO, "-o", out, "--target", "macs=0.3", "--eval", labelled, "--no-latency", "--json")
    with np.load(labelled) as file:
        data = dict(file)
    found = []
    for path in (DEMO, out):
        logits = ort.InferenceSession(path).run(None, {"image": data["image"]})[0]
        found.append(float((logits.argmax(1) == data["labels"]).mean()))
    (row,) = json.loads(result.stdout)["metrics"]
    assert (row["name"], row["before"], row["after"], row["n"]) == ("accuracy", *found, 101)
    assert found[0] != found[1]


def test_a_function_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text(
        "import numpy as np\n"
        "def mean(run):\n"
        "    return run({'image': np.ones((2, 1, 28, 28), np.float32)})['logits'].mean()\n"
        "def both(run):\n"
        "    return {'mean': mean(run), 'one': 1}\n"
        "def broken(run):\n"
        "    raise KeyError('x')\n"
        "def text(run):\n"
        "    return 'good'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)
    result = gp.prune(DEMO, target="macs=0.3", evaluate="my_metric:both", verify=False)
    image = {"image": np.ones((2, 1, 28, 28), np.float32)}
    means = [float(model.run(image)["logits"].mean()) for model in (open_host(DEMO), result.host)]
    assert [(row.name, row.before, row.after) for row in result.report.metrics] == [("mean", *means), ("one", 1.0, 1.0)]
    assert "mean" in run("prune", DEMO, "-o", "o.onnx", "--target", "macs=0.9", "--eval", "my_metric:mean").stdout
    options = ("prune", DEMO, "-o", "o.onnx", "--target", "macs=0.9", "--eval")
    assert error_of(*options, "my_metric:broken") == "'my_metric:broken' raises KeyError: 'x'; mend the function"
    assert error_of(*options, "my_metric:text") == (
        "'my_metric:text' returns 'good'; expected a number, or a mapping from names to numbers"
    )
    assert error_of(*options, "my_metric:missing") == (
        "module 'my_metric' has no 'missing'; expected a function that takes a model and returns a number"
    )


def test_a_pytorch_user_gets_modules():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 4))
    x = torch.randn(5, 8)
    seen = []

    def evaluate(run):
        seen.append(run.module)
        assert not any(module.training for module in run.module.modules())
        with torch.no_grad():
            expected = run.module(x).numpy()
        np.testing.assert_allclose(next(iter(run({"input": x.numpy()}).values())), expected, atol=1e-5)
        return sum(parameter.numel() for parameter in run.module.parameters())

    result = gp.prune(net, (x,), target="params=0.5", evaluate=evaluate, verify=False)
    (row,) = result.report.metrics
    assert (row.name, row.before) == ("evaluate", 836)
    assert row.after <= 418
    assert seen == [net, result.module]
    assert all(module.training for module in net.modules())
    seen.clear()
    found = gp.sensitivity(net, (x,), evaluate=evaluate, ratios=(0.25, 0.5))
    assert (found.baseline, [row.value for row in found.rows]) == (836, [836 - 13 * 16, 836 - 13 * 32])
    assert seen[0] is net
    program = torch.export.export(net.eval(), (x,))
    assert gp.prune(program, target="params=0.5", evaluate=evaluate, verify=False).report.metrics[0].before == 836


def test_what_fills_the_last_batch_up_does_not_count():
    rows = np.arange(30.0).reshape(10, 3)
    model = host(lambda inputs: {"y": inputs["x"]}, x=((4, 3), "float32", ()))
    evaluation = open_evaluation({"x": rows, "labels": np.array([2] * 9 + [0])}, model)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.before == {"accuracy": 0.9}
    assert open_evaluation({"x": rows, "labels": rows + 2}, model).before == {"mse": 4.0}


def test_perplexity_of_a_text_model():
    scores = RNG.normal(size=(10, 5, 7))
    tokens = RNG.integers(0, 7, (10, 5))
    model = host(
        lambda inputs: {"logits": scores[inputs["ids"][:, 0] * 0 + np.arange(len(inputs["ids"]))]},
        ids=((10, 5), "int64", ()),
        mask=((10, 5), "int64", ()),
    )
    evaluation = open_evaluation({"ids": tokens, "mask": np.ones((10, 5), int)}, model)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    nll = -np.log(np.take_along_axis(p[:, :-1], tokens[:, 1:, None], -1))
    assert evaluation.before == {"perplexity": pytest.approx(np.exp(nll.mean()))}


@pytest.mark.parametrize(
    ("metric", "output", "labels", "value"),
    [
        ("accuracy", np.eye(3), np.array([0, 1, 0]), 2 / 3),
        ("accuracy", np.eye(3), np.array([[0], [1], [0]]), 2 / 3),
        ("accuracy", np.eye(4)[None].repeat(2, 0), np.array([[0, 1, 2, 3], [0, 0, 0, 0]]), 5 / 8),
        ("accuracy", np.array([[[0, 2.0, 0], [1, 1, 1]]]), np.array([[1, 1, 1]]), 2 / 3),
        ("mse", np.array([[1.0], [2.0]]), np.array([0, 4.0]), 2.5),
        ("perplexity", np.zeros((2, 4, 6)), np.array([[0, 1, 2, 3], [5, -100, -100, -100]]), 6.0),
        ("perplexity", np.zeros((1, 2, 6), np.float32) - 1e30 * (np.arange(6) != 3), np.array([[0, 3]]), 1.0),
        ("perplexity", np.zeros((1, 2, 6), np.float32) - 1e30 * (np.arange(6) != 3), np.array([[0, 2]]), np.inf),
    ],
)
def test_metrics(metric, output, labels, value):
    assert METRICS[metric]([(output, labels)]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("accuracy", "expected one label less deep than the scores of classes"),
        ("mse", "expected as many numbers as the output has"),
        ("perplexity", "expected scores n x length x vocabulary for tokens n x length"),
    ],
)
def test_labels_that_do_not_fit(metric, message):
    with pytest.raises(OptionError) as caught:
        METRICS[metric]([(np.zeros((2, 3)), np.zeros((2, 7)))])
    assert str(caught.value) == (
        f"the metric '{metric}' does not fit: the first output has shape [2, 3] and the labels [2, 7]; {message}: give "
        "a function (--eval package.module:function)"
    )


def test_errors(tmp_path):
    model = small_model(tmp_path / "model.onnx")
    np.savez(tmp_path / "plain.npz", x=np.ones((5, 8), np.float32))
    where = f"'{tmp_path / 'plain.npz'}'"
    options = ("prune", model, "-o", tmp_path / "o.onnx", "--target", "macs=0.5", "--eval", tmp_path / "plain.npz")
    assert error_of(*options, "--metric", "f1") == (
        "unknown metric 'f1'; expected one of accuracy, mse, perplexity, or give a function"
    )
    assert error_of(*options, "--metric", "mse") == (
        f"{where} has no labels for the metric 'mse'; put them into an array 'labels', or give a function"
    )
    assert error_of(*options) == (
        f"{where} has no labels, and the model has no single input of tokens to take a perplexity of; put labels into "
        "an array 'labels', or give a function"
    )
    assert not (tmp_path / "o.onnx").exists()


def test_numbers_that_are_none_are_null_in_json(tmp_path):
    values = iter([1.0, float("nan")])
    result = gp.prune(small_model(tmp_path / "m.onnx"), target="macs=0.5", evaluate=lambda run: next(values))
    assert json.loads(json.dumps(result.report.to_dict(), allow_nan=False))["metrics"][0]["after"] is None


def test_a_runner_of_an_onnx_file_has_no_module():
    assert Runner(SimpleNamespace(run=lambda inputs: inputs))({"x": 1}) == {"x": 1}
    assert Runner(open_host(DEMO)).module is None


def test_folders_of_images_calibrate_and_evaluate(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with np.load(DEMO.parent / "demo_data.npz") as data:
        pixels, labels = data["images"][:60], data["labels"][:60]
    assert set(labels) == set(range(10))  # so that the folders in order are the classes
    for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
        image.fromarray(picture).save(tmp_path / "photos" / str(label) / f"{i}.png")
    options = ("--calibration", tmp_path / "photos", "--samples", 20, "--eval", tmp_path / "photos", "--batch-size", 7)
    pixel = ("--preprocess", "mean=0.286", "--preprocess", "std=0.353")
    how = ("--target", "macs=0.9", "--allocation", "uniform")
    result = run("prune", DEMO, "-o", tmp_path / "o.onnx", *how, *options, *pixel, "--json")
    inputs = {"image": ((pixels.astype(np.float32) / 255 - 0.286) / 0.353)[:, None]}
    logits = ort.InferenceSession(DEMO).run(None, inputs)[0]
    (metric,) = json.loads(result.stdout)["metrics"]
    assert metric["before"] == pytest.approx((logits.argmax(1) == labels).mean())


def folders(tmp_path, names, *, n_classes=12, per=1):
    """Images that a model of as many classes tells apart by their brightness, in folders of these names."""
    image = pytest.importorskip("PIL.Image")
    for name, number in names.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(per):
            pixels = np.full((4, 4), 10 * number, np.uint8)
            image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    model = host(
        lambda inputs: {
            "y": -np.abs(inputs["x"].mean((1, 2, 3))[:, None] * 25.5 - np.arange(n_classes, dtype=np.float32)),
        },
        x=((1, 1, 4, 4), "float32", (0,)),
    )
    return tmp_path / "photos", model


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({str(i): i for i in range(12)}, None),  # as text 10 and 11 come before 2
        ({str(i + 1): i for i in range(12)}, None),  # counted from 1
        ({"0": 0, "3": 3, "11": 11}, None),  # some classes are missing
        ({"ant": 0, "bee": 1, "cat": 2}, None),
        ({"ant": 7, "bee": 1, "cat": 2}, {"ant": 7, "bee": 1, "cat": 2, "dog": 3}),
        ({"ant": 2, "bee": 1, "cat": 0}, ["cat", "bee", "ant"]),
        ({"ant": 2, "bee": 1, "cat": 0}, '{"cat": 0, "bee": 1, "ant": 2}'),
        ({"ant": 2, "bee": 1, "cat": 0}, '{"0": "cat", "1": "bee", "2": "ant"}'),
        ({"ant": 2, "bee": 1, "cat": 0}, '["cat", "bee", "ant"]'),
        ({"ant": 2, "bee": 1, "cat": 0}, "cat\nbee\nant\n"),
    ],
)
def test_a_perfect_classifier_is_perfect(tmp_path, names, labels):
    folder, model = folders(tmp_path, names)
    if isinstance(labels, str):
        (tmp_path / "labels").write_text(labels)
        labels = tmp_path / "labels"
    evaluation = open_evaluation(gp.Inputs(folder, labels=labels), model)
    assert evaluation.before == {"accuracy": 1.0}
    assert evaluation.classes == names


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            {str(i): i for i in range(13)},
            None,
            "{} has 13 folders ('0', '1', '2', ...), and the model's output 12 classes; expected one folder for each class: "
            "leave out those that are none, or say which folder is which class (--labels FILE)",
        ),
        (
            {"ant": 0, "bea": 1},
            "ant\nbee",
            "the labels do not name 1 of the 2 folders of {}: 'bea' (did you mean 'bee'?); give each folder a class, by its name",
        ),
        (
            {"ant": 0, "bee": 1},
            '{"ant": 0, "bee": 12}',
            "the labels say that folder 'bee' of {} is class 12, and the model's output has 12 classes, from 0; correct the labels",
        ),
        ({"ant": 0, "bee": 1}, "ant\nbee\nant", "labels '{labels}' name 'ant' twice; give each name one class"),
        (
            {"ant": 0, "bee": 1},
            '{"ant": 0.5}',
            "labels '{labels}' do not say which name is which class; expected a JSON object from names to classes from 0, or a text "
            "with one name in each line",
        ),
    ],
)
def test_labels_that_do_not_fit_the_folders(tmp_path, names, labels, message):
    folder, model = folders(tmp_path, names)
    if labels is not None:
        (tmp_path / "labels").write_text(labels)
        labels = tmp_path / "labels"
    with pytest.raises(OptionError) as caught:
        open_evaluation(gp.Inputs(folder, labels=labels), model)
    assert str(caught.value) == message.format(f"'{folder}'", labels=labels)


def test_folders_that_only_calibrate_may_be_any(tmp_path):
    folder, model = folders(tmp_path, {str(i): i for i in range(13)})
    batches = gp.open_batches(folder, model)
    assert (batches.samples, batches.labels) == (13, None)


def test_labels_need_folders_of_classes(tmp_path):
    with pytest.raises(OptionError, match="has no folders of classes that labels could name; leave the labels out"):
        open_evaluation(
            gp.Inputs({"x": np.ones((2, 3))}, labels=["a"]), host(lambda inputs: inputs, x=((4, 3), "float32", ()))
        )


def test_the_report_prints_the_classes_of_folders(tmp_path):
    folder, _ = folders(tmp_path, {"ant": 0, "bee": 1})
    (tmp_path / "names.txt").write_text("bee\nant\n")
    options = ("prune", DEMO, "-o", tmp_path / "o.onnx", "--target", "macs=0.9", "--no-latency", "--no-verify")
    found = json.loads(run(*options, "--eval", folder, "--labels", tmp_path / "names.txt", "--json").stdout)
    assert found["classes"] == {"ant": 1, "bee": 0}
    text = "".join(run(*options, "--eval", folder).stdout.split())  # lines may break anywhere in a long path
    told = f"the folders of '{folder}' were taken for these classes: 'ant' is 0, 'bee' is 1"
    assert "".join(told.split()) in text
