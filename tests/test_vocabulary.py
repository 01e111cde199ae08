"""Fewer tokens: embedding, head, tokenizer, ids in configs and files, all cut alike; and nothing else changes."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from cached_decoders import decoder
from small_tokenizers import TEXTS, trained
from test_cli import error_of, run

import graphprune as gp
from graphprune import vocabulary
from graphprune.data.tokens import Tokens
from graphprune.errors import ModelError, OptionError, ProofError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
KEEP = TEXTS[:2]


def llama(size, **more):
    config = transformers.LlamaConfig(
        vocab_size=size,
        **SMALL,
        bos_token_id=1,
        eos_token_id=[2, size - 1],
        pad_token_id=size - 2,
        initializer_range=0.3,
        **more,
    )
    return transformers.LlamaForCausalLM(config)


def t5(size):
    config = transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    config.decoder_start_token_id = size - 3
    return transformers.T5ForConditionalGeneration(config)


CASES = {
    "tied decoder": ("byte-level", lambda size: llama(size, tie_word_embeddings=True)),
    "untied decoder": ("byte-fallback", llama),
    "rows that no token has": ("byte-level", lambda size: llama(size + 7)),
    "encoder-decoder": ("unigram", t5),
    "head with a bias": (
        "word-piece",
        lambda size: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=size, **SMALL)),
    ),
    "no head": ("word-piece", lambda size: transformers.BertModel(transformers.BertConfig(vocab_size=size, **SMALL))),
}


def checkpoint(folder, kind, build):
    """A folder with a model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = trained(kind)
    model = build(tokenizer.get_vocab_size()).eval()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=[]).save_pretrained(
        folder
    )
    return model


@pytest.fixture(scope="module", params=CASES)
def pruned(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    model = checkpoint(folder / "whole", *CASES[request.param])
    result = gp.prune_vocabulary(folder / "whole", keep=KEEP)
    result.save_pretrained(folder / "small")
    return request.param, model, result, folder


def read(model, folder):
    kind = type(model)
    return kind.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def test_stock_classes_read_it_and_scores_of_the_tokens_that_stay_are_the_same(pruned):
    _, model, result, folder = pruned
    small, tokenizer = read(model, folder / "small")
    former = transformers.AutoTokenizer.from_pretrained(folder / "whole")
    assert small.config.vocab_size == len(result.kept) < result.before
    for text in KEEP:
        ids, old = tokenizer(text)["input_ids"], former(text)["input_ids"]
        assert ids == [result.new_ids[i] for i in old]
        given = [{"input_ids": torch.tensor([each])} for each in (old, ids)]
        if model.config.is_encoder_decoder:
            given = [{**each, "decoder_input_ids": each["input_ids"]} for each in given]
        with torch.no_grad():
            want, have = (each(**kwargs)[0] for each, kwargs in zip((model, small), given, strict=True))
        want = want[..., result.kept] if want.shape[-1] != have.shape[-1] else want
        assert torch.allclose(want, have, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_checks_are_in_the_report(pruned):
    _, _, result, _ = pruned
    checks = {check.name: check for check in result.result.report.proof}
    assert {"tokenizer", "vocabulary"} <= checks.keys()
    assert all(check.passed for check in checks.values())
    assert result.result.report.cost("params").fraction < 1


def test_ids_in_configs_are_renumbered(pruned):
    name, model, result, folder = pruned
    small, _ = read(model, folder / "small")
    new = result.new_ids
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        old, now = getattr(model.config, key, None), getattr(small.config, key, None)
        wanted = [new.get(i, i) for i in old] if isinstance(old, list) else new.get(old, old)
        assert now == wanted, (name, key)
        generating = [getattr(getattr(each, "generation_config", None), key, None) for each in (model, small)]
        assert generating[1] == (None if generating[0] is None else wanted), (name, key)


def test_the_map_of_ids_lies_beside(pruned, tmp_path):
    _, _, result, folder = pruned
    assert json.loads((folder / "small" / "vocabulary.json").read_text())["kept"] == result.kept.tolist()
    result.write_map(tmp_path / "ids.npy")
    assert np.array_equal(np.load(tmp_path / "ids.npy"), result.kept)


def test_generation_gives_the_same_tokens_where_all_of_them_stay(tmp_path):
    model = checkpoint(tmp_path / "whole", *CASES["untied decoder"])
    prompt = torch.tensor([[5, 6, 7]])
    made = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    old = model.generate(prompt, suppress_tokens=None, **made)[0].tolist()
    result = gp.prune_vocabulary(model, tmp_path / "whole", sorted({*old}))
    gone = [i for i in range(model.config.vocab_size) if i not in result.new_ids]
    before = model.generate(prompt, suppress_tokens=gone, **made)[0].tolist()
    after = result.module.generate(torch.tensor([[result.new_ids[i] for i in prompt[0].tolist()]]), **made)[0].tolist()
    assert [int(result.kept[i]) for i in after] == before


def test_lists_of_tokens_in_a_generation_config(tmp_path):
    model = checkpoint(tmp_path / "whole", *CASES["untied decoder"])
    model.generation_config.suppress_tokens = [4, 399, 7]
    model.generation_config.bad_words_ids = [[4, 7], [4, 399]]
    result = gp.prune_vocabulary(model, tmp_path / "whole", [4, 7])
    assert 399 not in result.new_ids
    config, new = result.module.generation_config, result.new_ids
    assert config.suppress_tokens == [new[4], new[7]]
    assert config.bad_words_ids == [[new[4], new[7]]]
    assert model.generation_config.suppress_tokens == [4, 399, 7], "the user's own model stays as it is"


def test_a_number_of_tokens(tmp_path):
    model = checkpoint(tmp_path / "whole", *CASES["tied decoder"])
    result = gp.prune_vocabulary(model, tmp_path / "whole", 300)
    assert result.module.config.vocab_size == len(result.kept) == 300
    filled = gp.prune_vocabulary(model, tmp_path / "whole", KEEP, count=350)
    assert len(filled.kept) == 350


# -- what is wrong is seen -----------------------------------------------------------------------------------------


def test_a_tokenizer_that_lacks_a_part_is_refused(tmp_path, monkeypatch):
    model = checkpoint(tmp_path / "whole", *CASES["tied decoder"])
    monkeypatch.setattr(Tokens, "parts", lambda tokens, i: frozenset({i}))
    with pytest.raises(ProofError, match="encodes 'the cat.*otherwise than before; nothing was written"):
        gp.prune_vocabulary(model, tmp_path / "whole", KEEP)


def test_wrong_rows_are_seen(tmp_path, monkeypatch):
    model = checkpoint(tmp_path / "whole", *CASES["untied decoder"])
    monkeypatch.setattr(
        vocabulary._Cutting, "renumbered", lambda cutting, ids: (np.searchsorted(cutting.kept, ids) + 1) % 9
    )
    with pytest.raises(ProofError, match="the proof 'vocabulary' failed"):
        gp.prune_vocabulary(model, tmp_path / "whole", KEEP)


def test_a_tokenizer_that_is_read_otherwise_is_refused(tmp_path, monkeypatch):
    checkpoint(tmp_path / "whole", *CASES["tied decoder"])
    result = gp.prune_vocabulary(tmp_path / "whole", keep=KEEP)
    wrong = json.loads(json.dumps(result.tokens.data))
    wrong["post_processor"] = None
    with pytest.raises(ProofError, match="encodes the texts otherwise than before"):
        replace(result, tokens=Tokens(wrong)).save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_what_computes_with_ids_keeps_the_vocabulary_whole(tmp_path):
    size = trained("word-piece").get_vocab_size()
    config = transformers.RobertaConfig(vocab_size=size, **SMALL, max_position_embeddings=80, pad_token_id=0)
    model = transformers.RobertaForMaskedLM(config).eval()
    with pytest.raises(ModelError, match="the vocabulary cannot be cut.*computes with positions of this axis"):
        gp.prune_vocabulary(model, trained("word-piece"), KEEP)


@pytest.mark.parametrize(
    ("keep", "kind", "said"),
    [
        ([9999], OptionError, "the tokenizer has no token 9999"),
        (3, OptionError, "3 tokens are too few"),
    ],
)
def test_what_cannot_stay_is_refused(tmp_path, keep, kind, said):
    model = checkpoint(tmp_path / "whole", *CASES["tied decoder"])
    with pytest.raises(kind, match=said):
        gp.prune_vocabulary(model, tmp_path / "whole", keep)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ModelError, match="tokens, and the table of the model 64 rows"):
        gp.prune_vocabulary(llama(64).eval(), trained("byte-level"), KEEP)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A file of 40 tokens, its tokenizer and its config."""
    tokenizer = trained("word-level", 40)
    assert tokenizer.get_vocab_size() == 40
    (tmp_path / "whole").mkdir()
    tokenizer.save(str(tmp_path / "whole" / "tokenizer.json"))
    config = {"model": {"bos_token_id": 1, "eos_token_id": [2, 39], "vocab_size": 40}}
    config["model"]["decoder"] = {"filename": "whole.onnx", "outputs": {"logits": "logits"}}
    (tmp_path / "whole" / "genai_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("kind", ["concat", "gqa"])
def test_a_file_goes_with_its_map_and_config(folder, kind):
    model = folder / "whole" / "whole.onnx"
    onnx.save(decoder(kind), model)
    result = gp.prune_vocabulary(model, folder / "whole", TEXTS[:1])
    (folder / "small").mkdir()
    result.save_onnx(folder / "small" / "small.onnx")
    small, kept = onnx.load(folder / "small" / "small.onnx"), result.kept
    tables = {each.name: onnx.numpy_helper.to_array(each) for each in small.graph.initializer}
    former = {each.name: onnx.numpy_helper.to_array(each) for each in decoder(kind).graph.initializer}
    assert np.array_equal(tables["embed"], former["embed"][kept])
    assert np.array_equal(tables["head"], former["head"][:, kept])
    assert json.loads((folder / "small" / "small.vocabulary.json").read_text()) == {"before": 40, "kept": kept.tolist()}
    made = json.loads((folder / "small" / "genai_config.json").read_text())["model"]
    assert (made["vocab_size"], made["eos_token_id"]) == (len(kept), [result.new_ids[2], result.new_ids[39]])
    assert [(row.name, row.axis, row.after) for row in result.result.report.interface] == [("logits", 2, len(kept))]


def test_the_command(folder):
    onnx.save(decoder("concat"), folder / "whole" / "whole.onnx")
    (folder / "corpus.txt").write_text(TEXTS[0])
    (folder / "small").mkdir()
    out = run(
        "vocabulary", folder / "whole" / "whole.onnx", "-o", folder / "small" / "a.onnx", "--tokens", folder / "corpus.txt",
        "--tokenizer", folder / "whole", "--ids", folder / "ids.npy", "--json",
    )  # fmt: skip
    told = json.loads(out.stdout)
    assert told["tokens"] == {"before": 40, "after": len(np.load(folder / "ids.npy"))}
    assert {row["name"] for row in told["proof"]} == {"tokenizer", "vocabulary", "onnxruntime"}
    assert (folder / "small" / "tokenizer.json").is_file()
    error = error_of("vocabulary", folder / "whole" / "whole.onnx", "-o", folder / "a.onnx", "--tokens", "30")
    assert error.startswith("an ONNX file has no tokenizer of its own")
