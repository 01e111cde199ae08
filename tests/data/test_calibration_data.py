"""Calibration inputs: each source gives the batches that the model takes, and each mismatch one clear error."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from graphprune.data import samples, text
from graphprune.data.batches import Batches, Inputs, open_batches
from graphprune.errors import OptionError
from graphprune.ir.graph import Graph, Value

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 6, 3)).astype(np.uint8)


def host(run=lambda inputs: {}, **inputs):
    """A model that takes inputs ``name=(shape, dtype, dynamic axes)``."""
    values = {
        name: Value(name, shape, dtype, "input", 4, frozenset(axes)) for name, (shape, dtype, axes) in inputs.items()
    }

    def example(seed=0):
        rng = np.random.default_rng(seed)
        return {name: rng.integers(0, 2, value.shape).astype(value.dtype) for name, value in values.items()}

    graph = Graph(values, (), tuple(values), ())
    return SimpleNamespace(graph=lambda: graph, example_inputs=example, run=run)


DYNAMIC = host(x=((2, 3), "float32", {0}))
STATIC = host(x=((4, 3), "float32", ()))
TWO = host(x=((2, 3), "float32", {0}), ids=((2, 5), "int64", {0}))
TABLE = host(x=((2, 3), "float32", {0}), table=((1, 7), "float32", ()))
LM = host(
    input_ids=((2, 6), "int64", {0}),
    attention_mask=((2, 6), "int64", {0}),
    token_type_ids=((2, 6), "int64", {0}),
    position_ids=((1, 6), "int32", ()),
)
ROWS = np.arange(30.0).reshape(10, 3)


def all_of(batches, name="x"):
    return np.concatenate([batch[name] for batch in batches])


def sources(tmp_path):
    """The same ten rows in all forms that one input can come in."""
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "rows.npz", x=ROWS, other=ROWS[:3])
    np.savez_compressed(tmp_path / "small.npz", anything=ROWS)
    np.savez_compressed(tmp_path / "fortran.npz", x=np.asfortranarray(ROWS))
    return {
        "npy": tmp_path / "rows.npy",
        "npz": tmp_path / "rows.npz",
        "compressed": tmp_path / "small.npz",
        "fortran": tmp_path / "fortran.npz",
        "array": ROWS,
        "mapping": {"x": ROWS},
        "batches": [ROWS[:3], ROWS[3:4], ROWS[4:]],
        "samples": list(ROWS),
        "tuples": [(ROWS[:6], np.zeros(6)), (ROWS[6:], np.zeros(4))],
        "nested": [((row,), 1) for row in ROWS],
        "mappings": [{"x": row, "labels": 1} for row in ROWS],
        "generator": (row for row in ROWS),
        "stacked": ROWS[:10].reshape(5, 2, 3),
    }


@pytest.mark.parametrize(
    "form",
    ["npy", "npz", "compressed", "fortran", "array", "mapping", "batches", "samples", "tuples", "nested", "mappings",
     "generator", "stacked"],
)  # fmt: skip
def test_every_form_gives_the_same_batches(tmp_path, form):
    batches = open_batches(sources(tmp_path)[form], DYNAMIC, batch_size=4)
    assert [len(batch["x"]) for batch in batches] == [4, 4, 2]
    assert (len(batches), batches.samples, batches.batch_size, batches.random) == (3, 10, 4, False)
    np.testing.assert_array_equal(all_of(batches), ROWS.astype(np.float32))
    np.testing.assert_array_equal(all_of(batches), all_of(batches))  # again
    assert all_of(batches).dtype == np.float32


@pytest.mark.parametrize("form", ["npy", "npz", "compressed", "fortran", "array", "samples"])
def test_the_same_samples_are_drawn_from_every_form(tmp_path, form):
    batches = open_batches(sources(tmp_path)[form], DYNAMIC, samples=5, seed=3)
    expected = np.sort(np.random.default_rng(3).choice(10, 5, replace=False))
    np.testing.assert_array_equal(all_of(batches), ROWS[expected])
    other = open_batches(ROWS, DYNAMIC, samples=5, seed=4)
    assert batches.fingerprint == open_batches(ROWS, DYNAMIC, samples=5, seed=3).fingerprint
    assert batches.fingerprint != other.fingerprint


def test_a_fixed_batch_size_groups_drops_and_pads():
    dropped = open_batches(ROWS, STATIC)
    assert ([batch["x"].shape for batch in dropped], dropped.samples) == ([(4, 3)] * 2, 8)
    padded = open_batches(ROWS, STATIC, padded=True)
    assert ([batch["x"].shape for batch in padded], padded.samples) == ([(4, 3)] * 3, 10)
    np.testing.assert_array_equal(all_of(padded)[10:], ROWS[[9, 9]])
    with pytest.raises(IndexError):
        padded[3]


def test_files_are_mapped_and_not_loaded(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, (1 << 20, 3))  # sparse on disk
    rows[-1] = 5
    rows.flush()
    batches = open_batches(tmp_path / "big.npy", DYNAMIC, samples=None)
    assert len(batches) == (1 << 20) // 8
    np.testing.assert_array_equal(batches[-1]["x"][-1], [5, 5, 5])


def test_only_the_wanted_rows_of_an_iterable_are_taken():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield ROWS[:4]

    assert open_batches(endless(), DYNAMIC, samples=10).samples == 10
    assert len(taken) == 3


def test_inputs_without_samples_and_labels(tmp_path):
    np.savez(tmp_path / "d.npz", x=ROWS, table=np.ones((1, 7)), labels=np.arange(10))
    batches = open_batches(tmp_path / "d.npz", TABLE, samples=3, seed=1)
    assert [batch["table"].shape for batch in batches] == [(1, 7)]
    np.testing.assert_array_equal(ROWS[batches.labels], all_of(batches))
    shared = open_batches({"x": ROWS, "ids": np.ones((2, 5), np.int32)}, TWO, batch_size=2)
    assert all(batch["ids"].shape == (2, 5) and batch["ids"].dtype == np.int64 for batch in shared)


def test_made_up_inputs_say_so():
    batches = open_batches("random", STATIC, samples=10)
    assert (batches.random, len(batches), batches.samples) == (True, 3, 12)
    np.testing.assert_array_equal(batches[1]["x"], STATIC.example_inputs(1)["x"])
    assert open_batches(None, TABLE, samples=5, batch_size=5)[0]["x"].shape == (5, 3)


def test_options_travel_with_the_source_and_open_batches_stay():
    batches = open_batches(Inputs(ROWS, samples=6, batch_size=3), DYNAMIC)
    assert [len(batch["x"]) for batch in batches] == [3, 3]
    assert open_batches(batches, DYNAMIC) is batches
    assert isinstance(batches, Batches)


def test_tensors_loaders_and_data_sets():
    torch = pytest.importorskip("torch")
    rows, labels = torch.from_numpy(ROWS), torch.arange(10)
    data = torch.utils.data.TensorDataset(rows, labels)
    for source in (data, torch.utils.data.DataLoader(data, batch_size=3)):
        batches = open_batches(source, DYNAMIC)
        np.testing.assert_array_equal(all_of(batches), ROWS)
        np.testing.assert_array_equal(batches.labels, np.arange(10))
    np.testing.assert_array_equal(all_of(open_batches([rows.bfloat16()], DYNAMIC)), rows.bfloat16().float())


def test_a_torch_host_takes_what_it_was_traced_with():
    torch = pytest.importorskip("torch")
    from graphprune.opening import open_host

    class Net(torch.nn.Module):
        def forward(self, ids, scale):
            return torch.nn.functional.one_hot(ids, 9).float() * scale

    opened = open_host(Net(), (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 1, 1)))
    batches = open_batches([(np.full((3, 5), 4), np.ones((3, 1, 1)))] * 2, opened)
    assert [{name: array.shape for name, array in batch.items()} for batch in batches] == [
        {"ids": (2, 5), "scale": (2, 1, 1)}
    ] * 3
    assert opened.run(batches[0])["output"].shape == (2, 5, 9)


# -- images --------------------------------------------------------------------------------------------------------


def image_host(shape, dtype="float32"):
    return host(x=(shape, dtype, {0}))


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i, pixels in enumerate(PIXELS):
        (tmp_path / "abc"[i % 3]).mkdir(exist_ok=True)
        image.fromarray(pixels).save(tmp_path / "abc"[i % 3] / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_of_the_right_size_come_as_they_are(folder):
    batches = open_batches(folder, image_host((1, 3, 4, 6)), preprocess=["mean=0.5,0.25,0", "std=0.5", "color=bgr"])
    order = [i for rest in range(3) for i in range(rest, 20, 3)]
    expected = (PIXELS[order].transpose(0, 3, 1, 2)[:, ::-1] / 255 - np.array([0.5, 0.25, 0])[:, None, None]) / 0.5
    np.testing.assert_allclose(all_of(batches), expected, atol=1e-6)
    np.testing.assert_array_equal(batches.labels, np.sort(np.arange(20) % 3))
    raw = open_batches(folder, image_host((2, 4, 6, 3), "uint8"))
    np.testing.assert_array_equal(all_of(raw), PIXELS[order])
    shifted = open_batches(folder, image_host((2, 4, 6, 3)), preprocess={"scale": 1, "mean": 127, "std": [128]})
    np.testing.assert_allclose(all_of(shifted), (PIXELS[order] - 127.0) / 128, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "left", "size"),
    [(["fit=crop"], "middle", None), (["fit=crop", "resize=16"], "black", None), (["fit=pad"], "bars", None),
     (["fit=stretch"], "all", None)],
)  # fmt: skip
def test_images_are_fitted(tmp_path, options, left, size):
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((20, 40), np.uint8)  # white to the left and right of a black middle
    pixels[:, :10] = pixels[:, 30:] = 255
    image.fromarray(pixels).save(tmp_path / "a.png")
    got = open_batches(tmp_path, image_host((1, 1, 8, 8)), preprocess=[*options, "resample=nearest"])[0]["x"][0, 0]
    expected = {
        "middle": np.zeros((8, 8)),
        "black": np.zeros((8, 8)),
        "bars": np.pad(np.tile([1, 1, 0, 0, 0, 0, 1, 1], (4, 1)), ((2, 2), (0, 0))),
        "all": np.tile([1, 1, 0, 0, 0, 0, 1, 1], (8, 1)),
    }[left]
    np.testing.assert_array_equal(expected, got)


def test_transparency_is_white(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(open_batches(tmp_path, image_host((1, 1, 4, 4)))[0]["x"], np.ones((1, 1, 4, 4)))


# -- text ----------------------------------------------------------------------------------------------------------


WORDS = ["[CLS]", "[SEP]", *"abcdefghij"]


def words(special=True):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[SEP]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if special:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
        )
    made.enable_truncation(3)
    made.enable_padding(length=50)
    return made


def test_text_is_packed_without_padding(tmp_path):
    letters = "abcdefghij" * 4
    (tmp_path / "text.txt").write_text("\n".join(" ".join(letters[i : i + 7]) for i in range(0, 40, 7)))
    words().save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (tmp_path / "tokenizer.json", tmp_path, words()):
        batches = open_batches(tmp_path / "text.txt", LM, tokenizer=tokenizer, batch_size=4)
        assert batches.samples == 10
        ids = all_of(batches, "input_ids")
        np.testing.assert_array_equal(ids[:, 0], 0)
        np.testing.assert_array_equal(ids[:, -1], 1)
        assert "".join(WORDS[i] for i in ids[:, 1:-1].ravel()) == letters
    batch = batches[0]
    assert [batch[name].dtype for name in batch] == [np.int64, np.int64, np.int64, np.int32]
    np.testing.assert_array_equal(batch["attention_mask"], np.ones((4, 6)))
    np.testing.assert_array_equal(batch["token_type_ids"], np.zeros((4, 6)))
    np.testing.assert_array_equal(batch["position_ids"], [np.arange(6)])


def test_a_dynamic_length_can_be_chosen(tmp_path):
    (tmp_path / "text.txt").write_text("a b c d " * 10)
    model = host(ids=((2, 16), "int64", {0, 1}), mask=((2, 16), "float32", {0, 1}))
    batch = open_batches(tmp_path / "text.txt", model, tokenizer=words(special=False), preprocess=["length=8"])[0]
    assert {name: array.shape for name, array in batch.items()} == {"ids": (5, 8), "mask": (5, 8)}


@pytest.mark.parametrize("encoded", ["ä" * 9 + "\n", "ä漢😀" * 30, "a" * 50])
def test_a_piece_of_a_text_may_begin_and_end_anywhere(encoded):
    data = (encoded * 5).encode()
    for start in range(8):
        for end in range(len(data) - 8, len(data)):
            piece = text._piece(data[start:end])
            assert piece in encoded * 5
            assert len(piece) >= len(encoded * 5) * 0.5 - 2


def test_more_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "HELD_BYTES", 100)
    np.savez_compressed(tmp_path / "x.npz", x=ROWS)
    assert error(tmp_path / "x.npz") == (
        f"'{tmp_path / 'x.npz'}' would take more than 9.31e-08 GiB of memory; use fewer samples, or write the file with "
        "numpy.savez, which is mapped from disk"
    )
    assert open_batches(tmp_path / "x.npz", DYNAMIC, samples=3).samples == 3
    assert error([ROWS[:2], ROWS[2:]]) == (
        "the given 'list' would take more than 9.31e-08 GiB of memory; use fewer samples, or give a file (.npy, .npz), "
        "which is mapped from disk"
    )


def test_a_large_text_is_sampled_from_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAXIMUM_BYTES", 64 * 100)
    (tmp_path / "text.txt").write_text("".join(f"{letter} " * 20 + "\n" for letter in "abcdefghij" for _ in range(400)))
    batches = open_batches(tmp_path / "text.txt", LM, tokenizer=words(special=False), samples=None)
    assert 0 < batches.samples * 6 <= 64 * 50
    assert set(all_of(batches, "input_ids").ravel()) == set(range(2, 12))


# -- errors --------------------------------------------------------------------------------------------------------


def error(source, model=DYNAMIC, **options):
    with pytest.raises(OptionError) as caught:
        list(open_batches(source, model, **options))
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "model", "options", "message"),
    [
        ("nowhere.npz", DYNAMIC, {}, "no data 'nowhere.npz'; expected an .npz or .npy file, a folder of images, a text file, 'package.module:attribute' or 'random'"),
        ("no_such_module:loader", DYNAMIC, {}, "cannot import 'no_such_module' of data 'no_such_module:loader': No module named 'no_such_module'; expected 'package.module:attribute' or the path of a file or folder"),
        (3, DYNAMIC, {}, "cannot read data from a 'int'; expected the path of a file or folder, arrays or an iterable"),
        (ROWS[:, :2], DYNAMIC, {}, "the given 'ndarray' gives input 'x' samples of shape 2, the model takes 3; reshape the data, or give the shape that it has (--shape x=...)"),
        (ROWS[:, :2], STATIC, {}, "the given 'ndarray' gives input 'x' samples of shape 2, the model takes 3; reshape the data"),
        (ROWS[:3], STATIC, {}, "the given 'ndarray' gives 3 samples, the model takes batches of 4; give at least 4, or make the model's first axis dynamic"),
        (ROWS[:0], DYNAMIC, {}, "the given 'ndarray' holds no samples; expected some for 'x' (float32 2x3)"),
        (ROWS, STATIC, {"batch_size": 8}, "input 'x' takes batches of 4 samples, got a batch size of 8; leave the batch size out, or make the model's first axis dynamic"),
        (ROWS, DYNAMIC, {"batch_size": 0}, "a batch cannot have 0 samples; give a batch size of 1 or more"),
        (ROWS, DYNAMIC, {"samples": 0}, "cannot use 0 samples; give a number of 1 or more"),
        (ROWS * 1j, DYNAMIC, {}, "the given 'ndarray' has type complex128 for input 'x', which is of type float32; convert the data"),
        (ROWS * np.nan, DYNAMIC, {}, "the given 'ndarray' holds NaN for input 'x'; remove the samples with NaN"),
        (ROWS, TWO, {}, "the given 'ndarray' is one array, the model takes 'x' (float32 2x3), 'ids' (int64 2x5); give a mapping"),
        ({"x": ROWS}, TWO, {}, "the given 'dict' has no array 'ids'; it has 'x', and the model takes 'x' (float32 2x3), 'ids' (int64 2x5); name the arrays like the inputs"),
        ({"x": ROWS, "ids": np.ones((9, 5), int)}, TWO, {}, "the given 'dict' has different numbers of samples: 'x' has 10, 'ids' has 9; give as many for each input"),
        ({"x": ROWS, "ids": np.ones((10, 5))}, TWO, {}, "the given 'dict' has type float64 for input 'ids', which is of type int64; convert the data"),
        ({"x": ROWS, "labels": np.ones(3)}, DYNAMIC, {}, "the given 'dict' has 10 samples but 3 'labels'; give one label for each sample"),
        ({"x": ROWS, "table": np.ones((2, 7))}, TABLE, {}, "the given 'dict' gives input 'table' the shape 2x7, the model takes 1x7; this input is the same for every batch"),
        ([], DYNAMIC, {}, "the given 'list' gives no samples; expected batches for 'x' (float32 2x3)"),
        ([(ROWS, ROWS, ROWS)], DYNAMIC, {}, "item 0 of the given 'list' has 3 elements, the model takes 'x' (float32 2x3); give one element for each input, in this order, or a mapping by name"),
        ([ROWS], TWO, {}, "item 0 of the given 'list' is a 'ndarray', the model takes 'x' (float32 2x3), 'ids' (int64 2x5); give a tuple in this order, or a mapping by name"),
        ([{"y": ROWS}], DYNAMIC, {}, "item 0 of the given 'list' has no 'x'; it has 'y', and the model takes 'x' (float32 2x3); use the inputs' names as keys"),
        ([(ROWS, np.ones((9, 5), int))], TWO, {}, "item 0 of the given 'list' has 9 samples for input 'ids' and 10 for another; give as many for each input"),
        ([ROWS, ROWS[:, :2]], DYNAMIC, {}, "item 1 of the given 'list' gives input 'x' samples of shape 2, the model takes 3; reshape the data, or give the shape that it has (--shape x=...)"),
        ([np.ones((1, 4)), np.ones((1, 5))], host(x=((1, 4), "float32", {0, 1})), {}, "item 1 of the given 'list' gives input 'x' the shape 5, items before it 4; make all samples alike (crop, or pack text)"),
        (["text"], DYNAMIC, {}, "item 0 of the given 'list' gives input 'x' a 'str'; give arrays or tensors"),
        ((1 / 0 for _ in range(3)), DYNAMIC, {}, "the given 'generator' raises ZeroDivisionError: division by zero; mend the code that gives the data"),
        (ROWS, host(x=((), "float32", ())), {}, "the model has no input with an axis of samples; calibration data cannot be fed to it"),
        (ROWS, DYNAMIC, {"preprocess": ["sharpen=2"]}, "unknown preprocessing option 'sharpen'; expected one of fit, resize, resample, scale, mean, std, color, layout, length"),
        (ROWS, DYNAMIC, {"preprocess": ["fit=guess"]}, "cannot read preprocessing option 'fit=guess'; expected one of crop, stretch, pad"),
        (ROWS, DYNAMIC, {"preprocess": ["mean=a"]}, "cannot read preprocessing option 'mean=a'; expected numbers, separated by commas"),
        (ROWS, DYNAMIC, {"preprocess": ["resize=-1"]}, "cannot read preprocessing option 'resize=-1'; expected a number"),
        (ROWS, DYNAMIC, {"preprocess": ["std=0"]}, "std of the preprocessing is zero; give the standard deviation of pixels after scaling"),
    ],
)  # fmt: skip
def test_errors(source, model, options, message):
    assert error(source, model, **options) == message


def test_integers_must_fit():
    model = host(x=((2, 3), "uint8", {0}))
    assert error(np.full((2, 3), 300), model) == (
        "the given 'ndarray' holds values from 300 to 300 for input 'x', which is of type uint8; give values that fit"
    )


def test_a_model_that_does_not_run_on_the_data():
    def run(inputs):
        raise IndexError("index out of range in self\nmore")

    assert error(ROWS, host(run, x=((2, 3), "float32", {0}))) == (
        "the model does not run on the first batch of the given 'ndarray': index out of range in self; check that the "
        "values are what the model takes (tokens within its vocabulary, sizes that go together)"
    )


def test_broken_files(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"nonsense")
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    np.savez(tmp_path / "o.npz", x=np.array([{}, {}]))
    np.savez_compressed(tmp_path / "half.npz", x=np.random.default_rng(0).normal(size=(50, 3)))
    whole = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[:400] + bytes(100) + whole[500:])
    assert error(tmp_path / "a.npy").startswith(f"cannot read '{tmp_path / 'a.npy'}' as an array: ")
    assert error(tmp_path / "a.npz") == (
        f"cannot read '{tmp_path / 'a.npz'}' as arrays: File is not a zip file; write it with numpy.savez"
    )
    assert error(tmp_path / "o.npz") == (
        f"cannot read '{tmp_path / 'o.npz'}' as arrays: 'x' holds Python objects, which are not loaded; write it with "
        "numpy.savez"
    )
    assert error(tmp_path / "half.npz").startswith(f"cannot read '{tmp_path / 'half.npz'}' as arrays: ")
    assert error(tmp_path / "a.npy", TWO) == (
        f"'{tmp_path / 'a.npy'}' holds one array and the model takes 'x' (float32 2x3), 'ids' (int64 2x5); "
        "give an .npz file with an array for each"
    )


def test_image_errors(folder, tmp_path):
    from PIL import Image

    where = f"'{folder}'"
    assert error(folder, TWO) == (
        f"{where} is a folder of images and the model takes 'x' (float32 2x3), 'ids' (int64 2x5); give an .npz file "
        "with an array for each"
    )
    expected = "expected n x c x h x w or n x h x w x c with 1 or 3 channels"
    assert error(folder) == f"{where} is a folder of images and input 'x' takes 2x3 of type float32; {expected}"
    assert error(folder, image_host((1, 3, 4, 6)), preprocess=["layout=nhwc"]) == (
        f"{where} is a folder of images and input 'x' takes 1x3x4x6 of type float32 (nhwc is asked for); {expected}"
    )
    assert error(folder, image_host((1, 3, 4, 6)), preprocess=["mean=1,2"]) == (
        "mean has 2 numbers, the model takes 3 channels; give one number, or one for each channel"
    )
    assert error(folder, image_host((1, 3, 8, 8)), preprocess=["resize=4"]) == (
        f"resize=4 makes image '{folder / 'a' / '00.png'}' 6x4, smaller than the model's 8x8; give a larger one"
    )
    (folder / "empty").mkdir()
    assert error(folder / "empty", image_host((1, 3, 4, 6))) == (
        f"'{folder / 'empty'}' holds no images; expected files that end in .bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, "
        ".tif, .tiff, .webp"
    )
    (folder / "empty" / "broken.png").write_bytes(b"no")
    assert error(folder / "empty", image_host((1, 3, 4, 6))).startswith(
        f"cannot read image '{folder / 'empty' / 'broken.png'}': cannot identify image file"
    )
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "empty" / "broken.png")
    assert error(folder / "empty", image_host((1, 3, 4, 6))) == (
        f"image '{folder / 'empty' / 'broken.png'}' has pixels of type 'I;16'; expected 8 bits for each channel: convert "
        "it, or give the data as an .npz file"
    )


def test_text_errors(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b c")
    where = f"'{path}'"
    tokenizer = words()
    assert error(path, LM) == (
        "a text needs a tokenizer; give the path of a tokenizer.json or of a tokenizer's folder (--tokenizer)"
    )
    assert error(path, LM, tokenizer=tokenizer) == (
        f"{where} has 3 tokens, one sequence of the model has 6; give a longer text"
    )
    assert error(path, LM, tokenizer=tokenizer, preprocess=["length=9"]) == (
        "input 'input_ids' takes 6 tokens, got length=9; leave it out"
    )
    assert error(path, host(ids=((1, 2), "int64", {0})), tokenizer=tokenizer) == (
        "sequences of 2 tokens have no room beside 2 special tokens; trace the model with longer ones"
    )
    assert error(path, TWO, tokenizer=tokenizer) == (
        f"{where} is a text and the model takes 'x' (float32 2x3), 'ids' (int64 2x5); expected one input of tokens "
        "(integers, n x length) beside masks, token types and positions: give an .npz file with an array for each"
    )
    missing, broken = tmp_path / "missing.json", tmp_path / "broken.json"
    broken.write_text("{}")
    assert error(path, LM, tokenizer=str(missing)) == (
        f"no tokenizer '{missing}'; give the path of a tokenizer.json or of a tokenizer's folder"
    )
    assert error(path, LM, tokenizer=str(broken)).startswith(f"cannot load the tokenizer '{broken}': ")
    assert error(path, LM, tokenizer=3) == (
        "a 'int' is no tokenizer; give one of tokenizers or transformers, or a path"
    )
    path.write_bytes(b"\xff\xfe\x00")
    assert error(path, LM, tokenizer=tokenizer).startswith(f"{where} is no text in UTF-8: ")


def test_calibration_of_an_onnx_file_needs_no_torch(tmp_path):
    """Data of an ONNX model, images among them, are read without importing torch or transformers."""
    code = (
        "import sys, numpy as np, graphprune as gp\n"
        "from graphprune.demo.run import HERE\n"
        "from graphprune.opening import open_host\n"
        "b = gp.open_batches(np.ones((9, 1, 28, 28)), open_host(HERE / 'demo_net.onnx'))\n"
        "assert len(b) == 2 and len(b.fingerprint) == 64\n"
        "assert not {'torch', 'transformers', 'PIL', 'tokenizers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_compressed_file_with_a_table_and_labels_is_read_as_far_as_wanted(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=ROWS, table=np.ones((1, 7)), labels=np.arange(10), other=np.ones((99, 9)))
    batches = open_batches(tmp_path / "d.npz", TABLE, samples=3, seed=1)
    np.testing.assert_array_equal(ROWS[batches.labels], all_of(batches))
    assert batches[0]["table"].shape == (1, 7)
    np.savez_compressed(tmp_path / "s.npz", x=ROWS.reshape(5, 2, 3))
    np.testing.assert_array_equal(all_of(open_batches(tmp_path / "s.npz", DYNAMIC)), ROWS)
    np.savez_compressed(tmp_path / "l.npz", x=ROWS, labels=np.arange(4))
    assert error(tmp_path / "l.npz").endswith("has 10 samples but 4 'labels'; give one label for each sample")


def test_packages_that_are_not_installed(tmp_path, monkeypatch):
    for name in ("PIL", "PIL.Image", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "text.txt").write_text("a b c")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert error(tmp_path, image_host((1, 3, 4, 6))) == ("reading images needs Pillow; pip install pillow")
    assert error(tmp_path / "text.txt", LM, tokenizer=tmp_path) == (
        f"the tokenizer '{tmp_path}' needs the package 'tokenizers'; pip install tokenizers"
    )
