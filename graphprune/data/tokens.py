"""Tokenizers with fewer tokens: the JSON of a ``tokenizer.json``, its tokens numbered anew.

What is kept is closed under how the tokenizer works, so that texts whose tokens are kept encode as they did. A merge of
byte pairs is kept where its parts and its result are; each token keeps the parts that it is merged from when it stands
alone, which are those that any text makes it from: merges across its ends would have made another token of it. Longest
matches (WordPiece) and best paths (Unigram) among fewer candidates are the same ones as long as they are there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.errors import OptionError

Ids = NDArray[np.int64]
KINDS = ("BPE", "WordPiece", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"


def byte_alphabet() -> frozenset[str]:
    """The characters that byte-level tokenizers write bytes as: printable ones themselves, others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = 256 - len(printable)
    return frozenset(map(chr, (*printable, *range(256, 256 + others))))


@dataclass(frozen=True)
class Tokens:
    """A tokenizer as its JSON.

    Attributes:
        data: The content of a ``tokenizer.json``.
    """

    __repr__ = brief

    data: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(
                f"a tokenizer of kind '{self.kind}' cannot be cut; expected a tokenizer.json of {', '.join(KINDS)}"
            )

    @property
    def _model(self) -> Mapping[str, Any]:
        found = self.data.get("model")
        return found if isinstance(found, Mapping) else {}

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        return str(self._model.get("type") or ("BPE" if "merges" in self._model else "WordPiece"))

    @cached_property
    def own(self) -> Mapping[str, int]:
        """The model's tokens with their ids."""
        vocabulary = self._model["vocab"]
        return {token: i for i, (token, _) in enumerate(vocabulary)} if self.kind == "Unigram" else dict(vocabulary)

    @cached_property
    def added(self) -> Mapping[str, int]:
        """The added tokens with their ids."""
        return {each["content"]: int(each["id"]) for each in self.data.get("added_tokens") or ()}

    @property
    def size(self) -> int:
        """How many ids there are: one more than the largest."""
        return 1 + max((*self.own.values(), *self.added.values()), default=-1)

    @cached_property
    def token_of(self) -> Mapping[int, str]:
        """The token of each id."""
        return {i: token for token, i in (*self.own.items(), *self.added.items())}

    @cached_property
    def merges(self) -> Sequence[tuple[str, str]]:
        """The merges of byte pairs, the first ones first."""
        found = self._model.get("merges") or ()
        return [(left, right) for left, right in (e.split(" ", 1) if isinstance(e, str) else e for e in found)]

    @cached_property
    def _rank(self) -> Mapping[tuple[str, str], int]:
        return {pair: i for i, pair in reversed([*enumerate(self.merges)])}

    @property
    def _prefix(self) -> str:
        return str(self._model.get("continuing_subword_prefix") or "")

    @property
    def byte_level(self) -> bool:
        """Whether texts are split into bytes that are written as characters."""
        return any(
            each.get("type") == "ByteLevel"
            for part in ("pre_tokenizer", "decoder")
            for each in _nested(self.data.get(part))
        )

    @cached_property
    def needed(self) -> frozenset[int]:
        """The ids without which it is another tokenizer, or texts no longer encode."""
        found = {*self.added.values()}
        named = [self._model.get("unk_token"), *(pair[0] for pair in _pairs(self.data.get("post_processor")))]
        padding = self.data.get("padding")
        named.append(padding.get("pad_token") if isinstance(padding, Mapping) else None)
        found.update(self.own[str(token)] for token in named if token in self.own)
        found.update(int(i) for i in _template_ids(self.data.get("post_processor")))
        if self._model.get("unk_id") is not None:
            found.add(int(self._model["unk_id"]))
        found.update(self.own[token] for token in self._alphabet() if token in self.own)
        if self.kind == "Unigram":  # what is unknown is scored by the least likely token
            scores = [score for _, score in self._model["vocab"]]
            found.add(int(np.argmin(scores)))
        return frozenset(found)

    def _alphabet(self) -> Iterable[str]:
        """The tokens that any text can be made of."""
        if self._model.get("byte_fallback"):
            return [token for token in self.own if _BYTE.fullmatch(token)] + [_SPACE]
        if self.byte_level and self.kind == "BPE":
            return byte_alphabet()
        prefix, suffix = self._prefix, str(self._model.get("end_of_word_suffix") or "")
        if self.kind == "BPE":
            made = {self._joined(*pair) for pair in self.merges}
            return [token for token in self.own if token not in made]
        return [token for token in self.own if len(token.removeprefix(prefix).removesuffix(suffix)) == 1]

    def _joined(self, left: str, right: str) -> str:
        return left + (right.removeprefix(self._prefix) if self._prefix else right)

    def parts(self, i: int) -> frozenset[int]:
        """The ids of the tokens that one is merged from when it stands alone; of itself, too."""
        token = self.token_of.get(i)
        if token is None or self.kind != "BPE" or i in self.added.values() or token not in self.own:
            return frozenset({i})
        pieces, found = self._begin(token), {i}
        while len(pieces) > 1:
            found.update(self.own[piece] for piece in pieces if piece in self.own)
            ranks = [self._rank.get(pair, -1) for pair in pairwise(pieces)]
            known = [rank for rank in ranks if rank >= 0]
            if not known:
                break
            at = ranks.index(min(known))
            pieces[at : at + 2] = [self._joined(pieces[at], pieces[at + 1])]
        return frozenset(found)

    def _begin(self, token: str) -> list[str]:
        """The pieces that merging begins with."""
        suffix = str(self._model.get("end_of_word_suffix") or "")
        ended = bool(suffix) and token.endswith(suffix)
        word = token.removesuffix(suffix) if ended else token
        inner = bool(self._prefix) and word.startswith(self._prefix)
        letters = list(word.removeprefix(self._prefix) if inner else word)
        if self._prefix:
            letters = [each if k == 0 and not inner else self._prefix + each for k, each in enumerate(letters)]
        if ended and letters:
            letters[-1] += suffix
        return letters

    def closed(self, ids: Iterable[int]) -> frozenset[int]:
        """Ids with all that they are made of, and what the tokenizer cannot do without."""
        found: set[int] = set(self.needed)
        for i in ids:
            found |= self.parts(int(i))
        return frozenset(found)

    def first(self, count: int, wanted: Iterable[int] = ()) -> frozenset[int]:
        """Some ids, filled up to a number with the first ones of the vocabulary, which are the most frequent ones.

        Raises:
            OptionError: More are needed than that.
        """
        found = set(self.closed(wanted))
        if len(found) > count:
            raise OptionError(
                f"{count} tokens are too few: {len(found)} are needed (special tokens, the alphabet, what texts use "
                "and what that is merged from); give a larger number"
            )
        for i in sorted(self.token_of):
            if len(found) == count:
                break
            more = self.parts(i) - found
            if len(found) + len(more) <= count:
                found |= more
        return frozenset(found)

    def cut(self, kept: Sequence[int]) -> Tokens:
        """The tokenizer of some ids, numbered anew in their order.

        Args:
            kept: Rising, and closed (:meth:`closed`).
        """
        new = {int(old): i for i, old in enumerate(kept)}
        data: dict[str, Any] = copy.deepcopy(dict(self.data))
        model = data["model"]
        if self.kind == "Unigram":
            model["vocab"] = [each for i, each in enumerate(model["vocab"]) if i in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[int(model["unk_id"])]
        else:
            model["vocab"] = {token: new[i] for token, i in self.own.items() if i in new}
        if self.kind == "BPE":
            there = model["vocab"]
            model["merges"] = [
                given
                for given, (left, right) in zip(model.get("merges") or (), self.merges, strict=True)
                if left in there and right in there and self._joined(left, right) in there
            ]
        for each in data.get("added_tokens") or ():
            each["id"] = new[int(each["id"])]
        _renumber(data.get("post_processor"), lambda i: new[i])
        padding = data.get("padding")
        if isinstance(padding, dict) and "pad_id" in padding:
            padding["pad_id"] = new.get(int(padding["pad_id"]), 0)
        return Tokens(data)


def _nested(part: Any) -> Iterable[Mapping[str, Any]]:
    """A step of a tokenizer, and the steps that it is a sequence of."""
    if not isinstance(part, Mapping):
        return
    yield part
    for key in ("pretokenizers", "decoders", "processors", "normalizers"):
        for each in part.get(key) or ():
            yield from _nested(each)


def _pairs(processor: Any) -> list[tuple[str, int]]:
    """The tokens of processors that name them in pairs of a token and its id."""
    found = []
    for each in _nested(processor):
        for key in ("sep", "cls"):
            if isinstance(pair := each.get(key), Sequence) and len(pair) == 2:
                found.append((str(pair[0]), int(pair[1])))
    return found


def _template_ids(processor: Any) -> list[int]:
    ids = [i for _, i in _pairs(processor)]
    for each in _nested(processor):
        specials = each.get("special_tokens")
        for entry in specials.values() if isinstance(specials, Mapping) else ():
            ids.extend(entry.get("ids") or ())
    return ids


def _renumber(processor: Any, new: Callable[[int], int]) -> None:
    """Writes new ids into processors."""
    for each in _nested(processor):
        part: Any = each
        for key in ("sep", "cls"):
            if isinstance(pair := part.get(key), list) and len(pair) == 2:
                pair[1] = new(int(pair[1]))
        specials = part.get("special_tokens")
        for entry in specials.values() if isinstance(specials, Mapping) else ():
            entry["ids"] = [new(int(i)) for i in entry.get("ids") or ()]
