"""Fewer tokens: the embedding, the head, the tokenizer and all ids of a language model, cut alike.

The vocabulary is a group as any other, once it may be cut: what inputs look up, and what outputs score. Removing rows
changes nothing that is computed of those that stay, so the proof is plain: on the same texts, the original's scores of
the tokens that stay are those of the result, whose tokens have other numbers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from graphprune.brief import brief
from graphprune.compiling import Running, finished
from graphprune.data.text import Encode, open_tokenizer
from graphprune.data.tokens import Ids, Tokens
from graphprune.data.vocabularies import Source, read_texts, read_tokenizer
from graphprune.errors import ModelError, OptionError, ProofError
from graphprune.files import write_text
from graphprune.hosts.cuts import cuts_of, left_of
from graphprune.hosts.host import Array, Host
from graphprune.hosts.onnx.genai import genai_ids, write_genai
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.observer import SILENT
from graphprune.opened import Opened
from graphprune.opening import Shapes, Sizes
from graphprune.passes import RemoveDeadNodes, SliceGroups
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import Check
from graphprune.planning.metadata import metadata_of
from graphprune.planning.plan import PruningPlan, make_plan
from graphprune.planning.vocabulary import Vocabulary, vocabulary_of
from graphprune.proof.compare import compare, require, worse
from graphprune.proof.findings import Pair
from graphprune.proof.oracles import SINGLE, UNDECIDED, precision_of, wrong_tensor
from graphprune.recipe import Recipe
from graphprune.result import Result
from graphprune.turns import in_turn

MAP = "vocabulary.json"
"""Beside what is written: the former id of each token."""
SEQUENCES = 4
"""So many sequences the proof compares."""
CHECK = "vocabulary"


@dataclass(frozen=True, eq=False)
class PrunedVocabulary:
    """A language model with fewer tokens.

    Attributes:
        kept: The former id of each token, in the order of the new ones.
        before: How many tokens there were.
        tokens: The tokenizer.
        result: The model, with its plan and report.
        checks: What was proven of texts and scores.
    """

    __repr__ = brief

    kept: Ids
    before: int
    tokens: Tokens
    result: Result
    checks: tuple[Check, ...]
    source: Source = field(repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)

    @property
    def module(self) -> Any:
        """The module; ``None`` for ONNX files."""
        return self.result.module

    @property
    def plan(self) -> PruningPlan:
        """Which rows of which tensors stay."""
        return self.result.plan

    @cached_property
    def new_ids(self) -> Mapping[int, int]:
        """The new id of each token that stays, by the former one."""
        return {int(old): i for i, old in enumerate(self.kept)}

    def write_map(self, path: str | Path) -> None:
        """Writes the former id of each token: JSON ``{"kept": [...]}``, or an array where the path ends in ``.npy``."""
        path = Path(path)
        if path.suffix == ".npy":
            np.save(path, self.kept)
        else:
            write_text(path, json.dumps({"before": self.before, "kept": self.kept.tolist()}))

    @in_turn
    def save_pretrained(self, folder: str | Path) -> tuple[Check, ...]:
        """Writes a checkpoint with its tokenizer, which stock ``from_pretrained`` and ``AutoTokenizer`` read.

        Returns:
            What was proven of the folder.

        Raises:
            OptionError: The model is an ONNX file, or no model with a config.
            OutputError: It cannot be written.
            ProofError: What is read again is not the model, or the tokenizer that is read gives other ids.
        """
        if self.module is None:
            raise OptionError("an ONNX model has no config; use save_onnx")
        return self.result.save_pretrained(folder, tokenizer=_Files(self))

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files and the map of ids into a folder, and reads them again.

        Raises:
            ProofError: Another tokenizer comes out.
        """
        self.source.write(folder, self.tokens, self.new_ids, self.texts)
        self.write_map(folder / MAP)

    @in_turn
    def save_onnx(self, path: str | Path) -> None:
        """Writes an ONNX file; beside it ``NAME.vocabulary.json``, the former id of each token.

        Raises:
            OutputError: It cannot be written.
        """
        path = Path(path)
        host = self.result.host
        if isinstance(host, OnnxHost):
            host.save_onnx(path, metadata_of(self.plan))
            write_genai(host, path, {}, self.new_ids)
        else:
            self.result.save_onnx(path)
        self.write_map(path.with_suffix(f".{MAP}"))


class _Files:
    """A tokenizer as :meth:`Result.save_pretrained` takes one."""

    def __init__(self, pruned: PrunedVocabulary) -> None:
        self._pruned = pruned

    def save_pretrained(self, folder: Path) -> None:
        """Writes the files."""
        self._pruned.save_tokenizer(Path(folder))


@in_turn
def prune_vocabulary(
    model: Any,
    tokenizer: Any = None,
    keep: Any = None,
    *,
    count: int | None = None,
    example_inputs: Any = None,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    trust: bool = False,
    seed: int = 0,
) -> PrunedVocabulary:
    """Removes tokens from a language model and its tokenizer, and proves that nothing else has changed.

    Special tokens, those that configs name, the alphabet that any text can be made of, and what tokens are merged from
    stay in any case. Tokens keep their order and are numbered anew.

    Args:
        model: A checkpoint's folder, a ``torch.nn.Module`` of transformers, an ``.onnx`` file or an
            ``onnx.ModelProto``.
        tokenizer: A ``tokenizer.json``, the folder of one, or a tokenizer of tokenizers or transformers; the
            checkpoint's own if absent.
        keep: What stays: the tokens of texts (the path of a text file, or texts), ids, or a number of the first
            tokens of the vocabulary.
        count: Fill up to this number with the first tokens of the vocabulary, which are the most frequent ones.
        example_inputs: As for :func:`prune`.
        shapes: As for :func:`prune`.
        sizes: As for :func:`prune`.
        trust: As for :func:`prune`.
        seed: Of the sequences of the proof, where ``keep`` brings none.

    Raises:
        OptionError: The tokenizer cannot be cut, or does not fit; ids are none of it.
        ModelError: Something keeps the vocabulary whole.
        ProofError: Texts encode otherwise than before, or scores have changed.
    """
    source = read_tokenizer(tokenizer if tokenizer is not None else model)
    before = source.tokens
    encode = open_tokenizer(source.tokenizer(before))
    texts, wanted, count = read_texts(keep, count)
    encoded = encode(texts, special=True) if texts else []
    wanted = [*wanted, *(i for ids in encoded for i in ids)]
    if unknown := next((i for i in wanted if i not in before.token_of), None):
        raise OptionError(f"the tokenizer has no token {unknown}; it has ids up to {before.size - 1}")
    opened = _opened(model, example_inputs, shapes, sizes, trust=trust)
    wanted.extend(opened.named(before.size))
    kept = np.array(sorted(before.first(count, wanted) if count else before.closed(wanted)), dtype=np.int64)
    tokens = before.cut(kept.tolist())
    new = {int(old): i for i, old in enumerate(kept)}
    alike = _encodes_alike(texts, encoded, open_tokenizer(source.tokenizer(tokens)), new)
    result, check = opened.cut(_Cutting(kept, _streams(encoded, kept, seed), before.size))
    checks = (*((alike,) if alike else ()), check)
    require(checks)
    # both models are fed other ids than each other, and nothing moves
    report = replace(result.report, proof=(*checks, *result.report.proof), moved=None)
    return PrunedVocabulary(kept, before.size, tokens, replace(result, report=report), checks, source, tuple(texts))


def _encodes_alike(texts: list[str], before: list[list[int]], encode: Encode, new: Mapping[int, int]) -> Check | None:
    """The texts as the smaller tokenizer encodes them.

    Raises:
        ProofError: Otherwise than before.
    """
    if not texts:
        return None
    for text, ids, found in zip(texts, before, encode(texts, special=True), strict=True):
        if [new[i] for i in ids] != found:
            raise ProofError(
                f"the smaller tokenizer encodes {text!r:.40} otherwise than before; nothing was written. Please report "
                "this with the tokenizer"
            )
    n = sum(map(len, before))
    return Check("tokenizer", 0.0, 0.0, f"{n:,} tokens of {len(texts):,} texts are the renumbered ones")


def _streams(encoded: list[list[int]], kept: Ids, seed: int) -> Ids:
    """Tokens for the proof: those of the texts, or else all in a random order."""
    tokens = [i for ids in encoded for i in ids]
    return np.array(tokens, dtype=np.int64) if tokens else np.random.default_rng(seed).permutation(kept)


def _windows(stream: Ids, shapes: Mapping[str, tuple[int, ...]], k: int) -> dict[str, Ids]:
    """Different parts of a stream of tokens in some shapes."""
    found, at = {}, k * 7919  # a prime: windows of different rows overlap at different places
    for name, shape in shapes.items():
        n = int(np.prod(shape))
        found[name] = np.take(stream, np.arange(at, at + n), mode="wrap").reshape(shape)
        at += n
    return found


@dataclass(frozen=True)
class _Cutting:
    """What is cut.

    Attributes:
        kept: The ids that stay.
        stream: Tokens for the proof.
        least: How many tokens the tokenizer had.
    """

    kept: Ids
    stream: Ids
    least: int

    @cached_property
    def new(self) -> dict[int, int]:
        """New ids by former ones."""
        return {int(old): i for i, old in enumerate(self.kept)}

    def renumbered(self, ids: Ids) -> Ids:
        """New ids."""
        return np.searchsorted(self.kept, ids)

    def pruned(self, opened: Opened) -> tuple[Result, Vocabulary]:
        """The model with its vocabulary cut, by the passes that cut any group."""
        state = opened.start(SILENT)
        host = state.host.folded()
        vocabulary = vocabulary_of(host.graph(), self.least)
        if isinstance(host, OnnxHost):  # an example that both models take
            example = host.example_inputs()
            tokens = {name: example[name] % len(self.kept) for name in vocabulary.inputs}
            host = replace(host, given={**host.given, **tokens})
        index = np.asarray(self.kept[self.kept < vocabulary.size])
        cut = {group.factor: index for group in vocabulary.groups}
        plan = make_plan(vocabulary.analysis, cut, {"vocabulary": list(vocabulary.inputs)})
        state = replace(
            state, host=host, original=host, analysis=vocabulary.analysis, kept=cut,
            plan=replace(plan, made_on=host.kind),
        )  # fmt: skip
        state = run_pipeline([SliceGroups(), RemoveDeadNodes()], state)
        result = finished(state, Recipe(), Running())
        if wrong := wrong_tensor(Pair(host, result.host, {}), vocabulary.analysis, cut):
            raise ProofError(f"{wrong} is not, bit for bit, what is kept of the original; nothing was written")
        return result, vocabulary


class _File:
    """An ONNX file."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def named(self, size: int) -> frozenset[int]:
        """The ids that a config of genai names."""
        host = self._opened.host
        return genai_ids(host.file, size) if isinstance(host, OnnxHost) else frozenset()

    def cut(self, cutting: _Cutting) -> tuple[Result, Check]:
        """The smaller file, and what its scores were compared with."""
        result, vocabulary = cutting.pruned(self._opened)
        original = cast("Host", result.state.original)
        cuts, worst = cuts_of(result.host), None
        rounding = SINGLE if precision_of(vocabulary.analysis) > 2 else UNDECIDED[2]
        for k in range(SEQUENCES):
            feed = original.example_inputs(k)
            tokens = _windows(cutting.stream, {name: feed[name].shape for name in vocabulary.inputs}, k)
            old = {**feed, **{n: each.astype(feed[n].dtype) for n, each in tokens.items()}}
            new = {**feed, **{n: cutting.renumbered(each).astype(feed[n].dtype) for n, each in tokens.items()}}
            want, have = left_of(cuts, original.run(old)), result.host.run(new)
            found = compare(CHECK, want, have, note=_NOTE, rounding=rounding)
            worst = found if worst is None else worse(found, worst)
        assert worst is not None
        return result, replace(worst, informative=True)


class _Module:
    """A module of transformers."""

    def __init__(self, module: Any, example: Any, shapes: Shapes | None) -> None:
        self._module, self._example, self._shapes = module, example, shapes

    def named(self, size: int) -> frozenset[int]:
        """The ids that configs name; also of rows that no token has.

        Raises:
            ModelError: The model has fewer rows than the tokenizer has tokens.
        """
        from graphprune.hosts.torch.checkpoints.token_ids import n_rows, needed_ids

        rows = n_rows(self._module)
        if rows is not None and rows < size:
            raise ModelError(
                f"the tokenizer has {size} tokens, and the table of the model {rows} rows; give the model's own"
            )
        return needed_ids(self._module, rows or size)

    def cut(self, cutting: _Cutting) -> tuple[Result, Check]:
        """The smaller module, and what its scores were compared with."""
        from graphprune.hosts.torch.checkpoints.token_ids import example_with, outputs_of, renumber

        example = example_with(self._module, self._example, self._shapes, len(cutting.kept))
        shapes = {name: tuple(each.shape) for name, each in example.items() if name.endswith("input_ids")}
        windows = [_windows(cutting.stream, shapes, k) for k in range(SEQUENCES)]
        wanted = [outputs_of(self._module, example, each) for each in windows]
        renumber(self._module, cutting.new)
        result, vocabulary = cutting.pruned(Opened(self._module, example))
        if missing := [name for name in vocabulary.inputs if name not in shapes]:
            raise ModelError(f"input '{missing[0]}' takes tokens and has no example; give example_inputs")
        rounding = SINGLE if precision_of(vocabulary.analysis) > 2 else UNDECIDED[2]
        worst = None
        for tokens, before in zip(windows, wanted, strict=True):
            have = outputs_of(result.module, example, {n: cutting.renumbered(each) for n, each in tokens.items()})
            want = {name: _left(each, have[name], vocabulary.size, cutting.kept) for name, each in before.items()}
            found = compare(CHECK, want, have, note=_NOTE, rounding=rounding)
            worst = found if worst is None else worse(found, worst)
        assert worst is not None
        return result, replace(worst, informative=True)


_NOTE = "scores of the tokens that stay = those of the original, on texts with the renumbered ids"


def _left(want: Array, have: Array, size: int, kept: Ids) -> Array:
    """The original's output for the tokens that stay."""
    for axis, n in enumerate(want.shape):
        if n == size and have.ndim == want.ndim and have.shape[axis] == len(kept) != n:
            want = want.take(kept, axis=axis)
    return want


def _opened(
    model: Any, example_inputs: Any, shapes: Shapes | None, sizes: Sizes | None, *, trust: bool
) -> _File | _Module:
    """The model, opened.

    Raises:
        OptionError: It is none that has a vocabulary.
    """
    if isinstance(model, str | Path) and Path(model).is_dir():
        from graphprune.hosts.torch.checkpoints.reading import read_checkpoint

        return _Module(read_checkpoint(Path(model), trust=trust), example_inputs, shapes)
    if hasattr(model, "named_modules"):
        return _Module(copy.deepcopy(model).eval(), example_inputs, shapes)
    return _File(Opened(model, example_inputs, shapes=shapes, sizes=sizes, trust=trust))
