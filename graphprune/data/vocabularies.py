"""Tokenizers as files: read with all that lies beside them, and written with fewer tokens."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.brief import brief
from graphprune.data.tokens import Tokens
from graphprune.errors import OptionError, ProofError, first_line
from graphprune.files import is_there, require_plain_source, write_text

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
_BESIDE = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""What goes with a tokenizer as it is; files of vocabularies and merges do not."""
_PLAIN = "PreTrainedTokenizerFast"
"""The class of transformers that takes a ``tokenizer.json`` as it is."""
_ADVICE = "give a tokenizer.json, or a folder with one"


@dataclass(frozen=True)
class Source:
    """Where a tokenizer comes from.

    Attributes:
        tokens: The tokenizer.
        folder: Where its other files are; ``None`` if it has none.
        config: Its ``tokenizer_config.json``.
        beside: Other files, by name, as texts.
    """

    __repr__ = brief

    tokens: Tokens
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    beside: Mapping[str, str] = field(default_factory=dict, repr=False)

    def tokenizer(self, tokens: Tokens) -> Any:
        """A tokenizer of the library ``tokenizers``.

        Raises:
            OptionError: It cannot be made, or the library is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise OptionError("a tokenizer is cut by the package 'tokenizers'; pip install tokenizers") from error
        try:
            return Tokenizer.from_str(json.dumps(tokens.data))
        except BaseException as error:  # a panic in Rust is no Exception
            raise OptionError(f"the tokenizer cannot be made: {first_line(error)}; check its files") from error

    def write(self, folder: Path, tokens: Tokens, new: Mapping[int, int], texts: Sequence[str]) -> None:
        """Writes a tokenizer with fewer tokens, and reads it again.

        Args:
            folder: Where.
            tokens: It.
            new: The new ids by former ones.
            texts: What it has to encode to the new ids of what the former one gives.

        Raises:
            ProofError: Another tokenizer comes out.
        """
        write_text(folder / FILE, json.dumps(tokens.data, ensure_ascii=False, indent=2))
        for name, text in self.beside.items():
            write_text(folder / name, text)
        config = copy.deepcopy(dict(self.config)) or {"tokenizer_class": _PLAIN}
        entries = config.get("added_tokens_decoder")
        if isinstance(entries, Mapping):
            config["added_tokens_decoder"] = {str(new[int(i)]): each for i, each in entries.items() if int(i) in new}
        wanted = self._encoded(self.config, texts, new)
        tried = []
        for kind in dict.fromkeys((str(config.get("tokenizer_class") or _PLAIN), _PLAIN)):
            config["tokenizer_class"] = kind
            write_text(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=2))
            found = _auto(folder, texts)
            if found is None or found == wanted:
                return
            tried.append(kind)
        raise ProofError(
            f"read again as {' and as '.join(tried)}, the tokenizer encodes the texts otherwise than before; nothing "
            "was written"
        )

    def _encoded(
        self, config: Mapping[str, Any], texts: Sequence[str], new: Mapping[int, int]
    ) -> list[list[int]] | None:
        """The new ids of what the former tokenizer gives, read as the new one will be."""
        with tempfile.TemporaryDirectory(prefix="graphprune-") as name:
            folder = Path(name)
            write_text(folder / FILE, json.dumps(self.tokens.data))
            write_text(folder / CONFIG, json.dumps(dict(config) or {"tokenizer_class": _PLAIN}))
            for each, text in self.beside.items():
                write_text(folder / each, text)
            found = _auto(folder, texts)
        return None if found is None else [[new.get(i, -1) for i in ids] for ids in found]


def _auto(folder: Path, texts: Sequence[str]) -> list[list[int]] | None:
    """What ``AutoTokenizer`` makes of texts; ``None`` where transformers is not installed."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return [list(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []
    except Exception as error:
        raise ProofError(f"transformers cannot read the tokenizer: {first_line(error)}; nothing was written") from error


def read_tokenizer(tokenizer: Any) -> Source:
    """Reads a tokenizer.

    Args:
        tokenizer: The path of a ``tokenizer.json`` or of a folder with one, or a tokenizer of either library.

    Raises:
        OptionError: There is none, or it cannot be read.
    """
    if isinstance(tokenizer, str | Path):
        return _read(Path(tokenizer))
    if hasattr(tokenizer, "to_str"):
        return Source(Tokens(json.loads(tokenizer.to_str())))
    if callable(getattr(tokenizer, "save_pretrained", None)) and hasattr(tokenizer, "backend_tokenizer"):
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            tokenizer.save_pretrained(folder)
            found = _read(Path(folder))
            return Source(found.tokens, None, found.config, found.beside)
    raise OptionError(f"a '{type(tokenizer).__name__}' is no tokenizer that can be cut; {_ADVICE} (--tokenizer)")


def _read(path: Path) -> Source:
    folder = path if path.is_dir() else path.parent
    file = path / FILE if path.is_dir() else path
    if not is_there(file):
        raise OptionError(f"no tokenizer '{file}'; {_ADVICE} (--tokenizer)")
    require_plain_source(file, OptionError, "tokenizer", _ADVICE)
    try:
        tokens = Tokens(json.loads(file.read_text(encoding="utf-8")))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if is_there(folder / CONFIG) else {}
        beside = {name: (folder / name).read_text(encoding="utf-8") for name in _BESIDE if is_there(folder / name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"cannot read the tokenizer '{file}': {first_line(error)}; {_ADVICE}") from error
    return Source(tokens, folder, config, beside)


def read_texts(keep: Any, count: int | None) -> tuple[list[str], list[int], int | None]:
    """What is to stay: texts, ids, and a number.

    Raises:
        OptionError: It is none of these.
    """
    if isinstance(keep, bool) or (keep is None and count is None):
        raise OptionError(
            "what is to stay? give keep: a text file, texts, ids of tokens, or how many tokens (--tokens)"
        )
    if isinstance(keep, int):
        keep, count = None, keep
    if count is not None and count < 1:
        raise OptionError(f"{count} tokens cannot stay; expected 1 or more")
    if keep is None:
        return [], [], count
    if isinstance(keep, str | Path):
        path = Path(keep)
        require_plain_source(path, OptionError, "text", "give a text file in UTF-8")
        try:
            return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line], [], count
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read the text '{path}': {first_line(error)}; give a file in UTF-8") from error
    given = list(keep) if isinstance(keep, Iterable) else None
    if given and all(isinstance(each, str) for each in given):
        return given, [], count
    try:
        ids = [int(each) for each in given or () if int(each) == each]
    except (TypeError, ValueError):
        ids = []
    if not given or len(ids) != len(given):
        raise OptionError(f"keep is {keep!r:.60}; expected a text file, texts, ids of tokens, or how many tokens")
    return [], ids, count
