"""Tokenizers with fewer tokens: texts whose tokens stay encode to the renumbered ids, any other text still encodes."""

import json
from dataclasses import replace

import pytest
from small_tokenizers import KINDS, TEXTS, trained

from graphprune.data.tokens import Tokens, byte_alphabet
from graphprune.data.vocabularies import read_texts, read_tokenizer
from graphprune.errors import OptionError

tokenizers = pytest.importorskip("tokenizers")
SOME, OTHERS = TEXTS[:2], TEXTS[2:4]


def cut(kind, texts=SOME):
    """A tokenizer before and after, and the new ids by the former ones."""
    whole = trained(kind)
    tokens = Tokens(json.loads(whole.to_str()))
    kept = sorted(tokens.closed(i for text in texts for i in whole.encode(text).ids))
    small = tokens.cut(kept)
    return whole, tokenizers.Tokenizer.from_str(json.dumps(small.data)), {old: i for i, old in enumerate(kept)}, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_texts_encode_to_the_renumbered_ids(kind):
    whole, small, new, tokens = cut(kind)
    assert len(new) == small.get_vocab_size() < tokens.size
    for text in SOME:
        assert small.encode(text).ids == [new[i] for i in whole.encode(text).ids]
        assert small.decode(small.encode(text).ids) == whole.decode(whole.encode(text).ids)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_any_other_text_still_encodes_to_what_it_was(kind):
    whole, small, _, _ = cut(kind)
    for text in (*OTHERS, "🙂\x00\u202e"):
        found = [each.decode(each.encode(text).ids, skip_special_tokens=False) for each in (small, whole)]
        assert found[0] == found[1]
        assert "<unk>" not in found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_stay_and_templates_are_renumbered(kind):
    whole, small, new, tokens = cut(kind)
    for token, old in tokens.added.items():
        assert small.token_to_id(token) == new[old]
    assert small.encode("").ids == [new[i] for i in whole.encode("").ids]


def test_ends_of_other_processors_are_renumbered():
    whole = trained("word-piece")
    whole.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokens = Tokens(json.loads(whole.to_str()))
    data = json.loads(json.dumps(tokens.data))
    for entry in data["added_tokens"]:  # the ids move only if something before them goes
        entry["id"] += 1
    data["model"]["vocab"] = {token: i + 1 for token, i in data["model"]["vocab"].items()} | {"gone": 0}
    data["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}
    shifted = Tokens(data)
    small = tokenizers.Tokenizer.from_str(json.dumps(shifted.cut(range(1, shifted.size)).data))
    assert small.encode(TEXTS[0]).ids == whole.encode(TEXTS[0]).ids


def test_a_token_needs_the_parts_that_it_is_merged_from():
    whole = trained("byte-level")
    tokens = Tokens(json.loads(whole.to_str()))
    there = whole.encode("there").ids[1:-1]
    (inner, *_) = sorted(tokens.closed(there) - tokens.needed - {*there})
    assert tokens.token_of[inner] in "there"
    without = tokens.cut(sorted(tokens.closed(there) - {inner}))  # a fault: a part is not there
    assert (
        tokenizers.Tokenizer.from_str(json.dumps(without.data)).encode("there").tokens != whole.encode("there").tokens
    )


def test_the_alphabet_of_bytes():
    assert byte_alphabet() == frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_of_tokens_is_kept_exactly(kind):
    tokens = Tokens(json.loads(trained(kind).to_str()))
    least = len(tokens.closed(()))
    count = (least + tokens.size) // 2
    found = tokens.first(count)
    assert len(found) == count
    assert tokens.closed(found) == found
    with pytest.raises(OptionError, match=f"{least - 1} tokens are too few: {least} are needed"):
        tokens.first(least - 1)


def test_merges_may_be_texts():
    tokens = Tokens(json.loads(trained("byte-level").to_str()))
    model = tokens.data["model"]
    old = replace(tokens, data={**tokens.data, "model": {**model, "merges": [" ".join(m) for m in model["merges"]]}})
    kept = sorted(tokens.first(300))
    assert [" ".join(pair) for pair in tokens.cut(kept).data["model"]["merges"]] == old.cut(kept).data["model"][
        "merges"
    ]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (None, "what is to stay?"),
        (0, "0 tokens cannot stay"),
        ([], "expected a text file, texts, ids of tokens, or how many tokens"),
        (["a", 1], "expected a text file, texts, ids of tokens, or how many tokens"),
        (1.5, "expected a text file, texts, ids of tokens, or how many tokens"),
    ],
)
def test_what_says_nothing_is_refused(keep, said):
    with pytest.raises(OptionError) as error:
        read_texts(keep, None)
    assert said in str(error.value)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Other"}}')
    with pytest.raises(OptionError, match="a tokenizer of kind 'Other' cannot be cut"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[1]")
    with pytest.raises(OptionError, match="cannot read the tokenizer"):
        read_tokenizer(tmp_path)
    with pytest.raises(OptionError, match="no tokenizer"):
        read_tokenizer(tmp_path / "none")
    with pytest.raises(OptionError, match="a 'int' is no tokenizer that can be cut"):
        read_tokenizer(3)
