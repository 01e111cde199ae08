"""Samples from a text file: tokens, packed into sequences without padding."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphprune.data.samples import Pick, Rows, Samples
from graphprune.data.specs import Array, InputSpec, converted
from graphprune.errors import OptionError
from graphprune.files import is_there, require_plain_source
from graphprune.user_code import raising_as

MAXIMUM_BYTES = 16 << 20
"""Of larger files, so much is read, in pieces spread over the whole file."""
_PIECES = 64
_TOKENIZER_ADVICE = "check its files, or give another"
_LINES = 1 << 16
"""About so many characters are tokenized at once."""


class Encode(Protocol):
    """A tokenizer as a function."""

    def __call__(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """The tokens of each text, with or without special tokens at its ends."""


def of_text(
    path: Path,
    specs: tuple[InputSpec, ...],
    where: str,
    tokenizer: Any,
    length: int,
    pick: Pick,
) -> Samples:
    """Sequences of tokens that follow each other in a text, each with the special tokens that the tokenizer adds.

    Inputs are told apart by name and type: masks are ones, token types zeros, positions count from 0, and the one that
    is left gets the tokens.

    Args:
        path: A text file in UTF-8.
        specs: The model's inputs.
        where: What it is, for messages.
        tokenizer: The path of a ``tokenizer.json`` or of a folder that transformers can load, or a tokenizer.
        length: Tokens of a sequence; 0 means as in the example.
        pick: Chooses among sequences.

    Raises:
        OptionError: The text, the tokenizer or the model's inputs do not fit.
    """
    roles = {spec.name: role_of(spec) for spec in specs}
    ids = [spec for spec in specs if roles[spec.name] == "ids"]
    if len(ids) != 1 or not ids[0].batched or len(ids[0].shape) != 2 or None in roles.values():
        raise OptionError(
            f"{where} is a text and the model takes {', '.join(map(str, specs))}; expected one input of tokens "
            "(integers, n x length) beside masks, token types and positions: give an .npz file with an array for each"
        )
    example = ids[0].shape[1]
    if length and length != example and 1 not in ids[0].dynamic:
        raise OptionError(f"input '{ids[0].name}' takes {example} tokens, got length={length}; leave it out")
    length = length or example
    encode = open_tokenizer(tokenizer)
    with raising_as(OptionError, "the tokenizer", _TOKENIZER_ADVICE):
        before, after = _special(encode)
    inner = length - len(before) - len(after)
    if inner < 1:
        raise OptionError(
            f"sequences of {length} tokens have no room beside {len(before) + len(after)} special tokens; trace the "
            "model with longer ones"
        )
    tokens: list[int] = []
    for text in _texts(path, where):
        with raising_as(OptionError, "the tokenizer", _TOKENIZER_ADVICE):
            tokens.extend(token for part in encode(text, special=False) for token in part)
    count = len(tokens) // inner
    if not count:
        raise OptionError(
            f"{where} has {len(tokens)} tokens, one sequence of the model has {length}; give a longer text"
        )
    rows = pick(count)
    with raising_as(OptionError, "what the tokenizer gives", _TOKENIZER_ADVICE):
        blocks = np.array(tokens[: count * inner], dtype=np.int64).reshape(count, inner)[rows]
    ends = [np.tile(np.array(part, dtype=np.int64), (len(blocks), 1)) for part in (before, after)]
    blocks = np.concatenate([ends[0], blocks, ends[1]], axis=1)
    example_of = {spec.name: _filled(spec, roles[spec.name], length, ids[0], where) for spec in specs}

    def read(rows: Rows) -> dict[str, Array]:
        return {
            spec.name: converted(blocks[rows], spec, where)
            if spec is ids[0]
            else np.repeat(example_of[spec.name][None], len(rows), axis=0)
            for spec in specs
            if spec.batched
        }

    return Samples(len(blocks), read, where, {s.name: example_of[s.name] for s in specs if not s.batched})


def role_of(spec: InputSpec) -> str | None:
    """What an input of a language model is for, by name and type."""
    name = spec.name.lower()
    if "mask" in name:
        return "mask" if len(spec.shape) == 2 or spec.dtype.kind in "iub" else None
    if spec.dtype.kind not in "iu":
        return None
    if "type" in name or "segment" in name:
        return "types"
    return "positions" if "position" in name else "ids"


def _filled(spec: InputSpec, role: str | None, length: int, ids: InputSpec, where: str) -> Array:
    """The value of an input other than the tokens, for one sample (or for all where it has no samples)."""
    shape = spec.shape[1:] if spec.batched else spec.shape
    offset = 1 if spec.batched else 0
    shape = tuple(
        length if axis + offset in spec.dynamic and size == ids.shape[1] else size for axis, size in enumerate(shape)
    )
    if role == "mask":
        return np.ones(shape, spec.dtype)
    if role == "positions":
        if not shape:
            raise OptionError(f"input '{spec.name}' of {where} is one position; give an .npz file instead")
        return np.broadcast_to(np.arange(shape[-1], dtype=spec.dtype), shape)
    return np.zeros(shape, spec.dtype)


# -- the text and its tokens ---------------------------------------------------------------------------------------


def _texts(path: Path, where: str) -> list[list[str]]:
    """The text in pieces of whole lines: all of it, or of a large file pieces spread over all of it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= MAXIMUM_BYTES:
                text = file.read().decode("utf-8")
            else:
                parts = []
                for i in range(_PIECES):
                    file.seek(i * size // _PIECES)
                    parts.append(_piece(file.read(MAXIMUM_BYTES // _PIECES)))
                text = "\n".join(parts)
    except OSError as error:
        raise OptionError(f"cannot read {where}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{where} is no text in UTF-8: {error}; convert it") from error
    groups: list[list[str]] = [[]]
    held = 0
    for line in text.splitlines(keepends=True):
        if held > _LINES:
            groups.append([])
            held = 0
        groups[-1].append(line)
        held += len(line)
    return [["".join(group)] for group in groups if group]


def _piece(data: bytes) -> str:
    """A piece of a text that begins and ends anywhere: the whole lines in it, or the whole characters of one line."""
    start = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    text = codecs.getincrementaldecoder("utf-8")().decode(
        data[start:]
    )  # an unfinished character at the end is left out
    first, last = text.find("\n"), text.rfind("\n")
    return text[first + 1 : last] if last > first else text


def _special(encode: Encode) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    probe = "word"
    (plain,), (whole,) = encode([probe], special=False), encode([probe], special=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def open_tokenizer(tokenizer: Any) -> Encode:
    """Opens a tokenizer.

    Args:
        tokenizer: The path of a ``tokenizer.json``, or of a folder with one (read by ``tokenizers``); of a folder that
            ``transformers.AutoTokenizer`` can load; or a tokenizer of either library.

    Raises:
        OptionError: There is none, it cannot be loaded, or the library is not installed.
    """
    if tokenizer is None:
        raise OptionError(
            "a text needs a tokenizer; give the path of a tokenizer.json or of a tokenizer's folder (--tokenizer)"
        )
    if not isinstance(tokenizer, str | Path):
        return _encode_by(tokenizer)
    path = Path(tokenizer)
    if not is_there(path):
        raise OptionError(f"no tokenizer '{path}'; give the path of a tokenizer.json or of a tokenizer's folder")
    file = path / "tokenizer.json" if path.is_dir() else path
    if is_there(file):
        require_plain_source(file, OptionError, "tokenizer", _TOKENIZER_ADVICE)
    try:
        if is_there(file):
            from tokenizers import Tokenizer

            return _encode_by(Tokenizer.from_file(str(file)))
        from transformers import AutoTokenizer

        return _encode_by(AutoTokenizer.from_pretrained(str(path), local_files_only=True))
    except ImportError as error:
        package = (error.name or "tokenizers").partition(".")[0]
        raise OptionError(f"the tokenizer '{path}' needs the package '{package}'; pip install {package}") from error
    except (OptionError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the libraries' errors have no common base; a panic in Rust is no Exception
        raise OptionError(f"cannot load the tokenizer '{path}': {error}; check its files") from error


def _encode_by(tokenizer: Any) -> Encode:
    if hasattr(tokenizer, "encode_batch"):  # tokenizers
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def encode(texts: Sequence[str], *, special: bool) -> list[list[int]]:
            return [list(found.ids) for found in tokenizer.encode_batch(list(texts), add_special_tokens=special)]

    elif callable(tokenizer):  # transformers

        def encode(texts: Sequence[str], *, special: bool) -> list[list[int]]:
            found = tokenizer(list(texts), add_special_tokens=special, truncation=False, padding=False, verbose=False)
            return [list(ids) for ids in found["input_ids"]]

    else:
        raise OptionError(
            f"a '{type(tokenizer).__name__}' is no tokenizer; give one of tokenizers or transformers, or a path"
        )
    return encode
