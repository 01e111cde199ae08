"""Checkpoints of pruned modules: written by the class's own writer, read again by its own reader, and compared.

The folder takes its place when all of that is done, or never.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.errors import GraphpruneError, OptionError, OutputError, ProofError, first_line
from graphprune.files import is_there, require_writable_folder, temporary_folder
from graphprune.hosts.torch.checkpoints.own_code import auto_class_of, read_with_code, write_with_code
from graphprune.hosts.torch.checkpoints.reading import TOKENIZER_FILES
from graphprune.hosts.torch.checkpoints.twins import is_configured
from graphprune.hosts.torch.generate import prompt_of
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.trace import Example, inference
from graphprune.pipeline.state import Check

SHARD = "5GB"
"""The largest file of weights."""
PLAN, CARD = "plan.json", "README.md"
N_NEW = 8
"""Tokens that are generated for comparison."""


@dataclass(frozen=True)
class Reloaded:
    """What was read again is what was written.

    Attributes:
        difference: The largest difference of an output.
        generated: Whether greedy generation with a cache was compared, too.
    """

    difference: float
    generated: bool

    @property
    def check(self) -> Check:
        """The line of the proof."""
        note = "from_pretrained = module, no missing or unexpected keys"
        return Check("reloaded", self.difference, 0.0, f"{note}, the same tokens" if self.generated else note)


def write_checkpoint(
    module: nn.Module,
    folder: Path,
    example: Example,
    tokenizer: Any,
    beside: Mapping[str, Callable[[Path], None]],
    *,
    code: bool = False,
) -> Reloaded:
    """Writes a module as its class does, reads it again, compares, and puts the folder into its place.

    Args:
        module: The module.
        folder: The folder, which is new, empty, or an earlier checkpoint of ours.
        example: A call of it.
        tokenizer: What has ``save_pretrained``, or the path of a tokenizer's folder or file; ``None``: none.
        beside: By name of a file: writes it.
        code: Whether a few lines of code go with it, since no config says its shape.

    Raises:
        OptionError: The module has no config, or the tokenizer is none.
        OutputError: Its config does not say its shape, or something cannot be written.
        ProofError: What is read again is not the module.
    """
    if not is_configured(module):
        raise OptionError(
            f"'{type(module).__name__}' is no model with a config that transformers could read; keep it with save_state"
        )
    require_writable_folder(folder)
    with _taking_the_place_of(folder) as inside:
        try:
            with quiet(), _without_bars():
                if code:
                    write_with_code(module, inside, max_shard_size=SHARD)
                else:
                    module.save_pretrained(inside, max_shard_size=SHARD)  # type: ignore[operator]
                write_tokenizer(tokenizer, inside)
            for name, write in beside.items():
                write(inside / name)
        except GraphpruneError:
            raise
        except Exception as error:  # the class's own writer raises what it likes
            raise OutputError(f"cannot write '{folder}': {first_line(error)}; see what the class needs") from error
        for each in inside.iterdir():
            each.chmod(0o644)  # writers of weights keep them to their owner
        return _reloaded(module, inside, example, code=code)


@contextmanager
def _taking_the_place_of(folder: Path) -> Iterator[Path]:
    """A folder beside another one, which takes its place if the block succeeds."""
    with temporary_folder(folder.parent / f"{folder.name}.new") as temporary:
        inside = temporary / "new"
        inside.mkdir()
        yield inside
        try:
            if is_there(folder):
                folder.rename(temporary / "old")
            inside.rename(folder)
        except OSError as error:
            if is_there(temporary / "old") and not is_there(folder):
                (temporary / "old").rename(folder)
            raise OutputError(f"cannot write '{folder}': {error.strerror}; give another folder") from error


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer's files into a folder.

    Args:
        tokenizer: What has ``save_pretrained``, or the path of a tokenizer's folder or file; ``None``: none.
        folder: The folder.

    Raises:
        OptionError: It is none.
    """
    if tokenizer is None:
        return
    if callable(getattr(tokenizer, "save_pretrained", None)):
        tokenizer.save_pretrained(folder)
        return
    source = Path(tokenizer) if isinstance(tokenizer, str | Path) else None
    if source is None or not is_there(source):
        raise OptionError(
            f"{tokenizer!r:.60} is no tokenizer; give one with save_pretrained, or the path of a tokenizer's folder"
        )
    found = [source] if source.is_file() else [each for name in TOKENIZER_FILES for each in source.glob(name)]
    if not found:
        raise OptionError(f"'{source}' holds no files of a tokenizer; give a tokenizer's folder, or its tokenizer.json")
    for each in found:
        if each.is_file() and not (folder / each.name).exists():
            shutil.copyfile(each, folder / each.name)


# -- what is read again ------------------------------------------------------------------------------------------------


def _reloaded(module: nn.Module, folder: Path, example: Example, *, code: bool) -> Reloaded:
    """Reads a module again and compares it, value by value and by what it computes.

    Raises:
        ProofError: It differs.
    """
    kind = type(module).__name__
    config: Any = vars(module)["config"]
    chosen = getattr(config, "_attn_implementation", None)
    options: dict[str, Any] = {"attn_implementation": chosen} if chosen is not None else {}
    try:
        with quiet(), _without_bars():
            read: Any = type(module)
            if code:
                read = partial(read_with_code, auto=auto_class_of(module))
            else:
                read = read.from_pretrained
            again, found = read(folder, output_loading_info=True, dtype="auto", **options)
    except Exception as error:
        raise ProofError(
            f"'{kind}' cannot read what it has written: {first_line(error)}; nothing was written"
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found.get(what):
            first = next(iter(found[what]))
            raise ProofError(f"'{kind}' reads what it has written with {what} such as {first!r}; nothing was written")
    mine, theirs = module.state_dict(), again.state_dict()
    for name, value in mine.items():
        if name not in theirs or not _same(value, theirs[name]):
            raise ProofError(f"'{name}' is not what it was once '{kind}' is read again; nothing was written")
    difference = _difference(module, again, example)
    if difference != 0:  # kernels round by where in memory numbers lie
        difference = _difference(_settled(module), _settled(again), example)
    if difference != 0:
        raise ProofError(
            f"'{kind}' computes something else once it is read again: outputs differ by {difference:.2g}; nothing was "
            "written"
        )
    return Reloaded(difference, _generates_alike(module, again, example))


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other)
    one, other = one.detach().cpu(), other.detach().cpu()
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _settled(module: nn.Module) -> nn.Module:
    """A copy whose tensors lie in memory as new ones do, whether they were sliced, or read from a mapped file."""
    settled = copy.deepcopy(module)
    for tensor in {id(each): each for each in (*settled.parameters(), *settled.buffers())}.values():
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return settled


def _difference(module: nn.Module, again: nn.Module, example: Example) -> float:
    """The largest difference of an output, absolute."""
    worst = 0.0
    outputs = []
    for each in (module, again.to(next(module.parameters()).device)):
        with inference(each), torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(0)
            outputs.append(pytree.tree_leaves(each(*example[0], **example[1])))
    for one, other in zip(*outputs, strict=True):
        if isinstance(one, torch.Tensor):
            gap = (one.double() - other.double()).abs().nan_to_num(nan=float("inf"))
            equal = (one == other) | (one.isnan() & other.isnan())
            worst = max(worst, float(torch.where(equal, 0.0, gap).max()) if one.numel() else 0.0)
    return worst


def _generates_alike(module: Any, again: Any, example: Example) -> bool:
    """Whether greedy generation with a cache was compared; it raises where the tokens differ.

    Raises:
        ProofError: They do.
    """
    given = prompt_of(module, example)
    if given is None:
        return False
    tokens = []
    for each in (module, again):
        with inference(each), quiet():
            try:
                found = each.generate(
                    **given, max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False, num_beams=1, use_cache=True
                )
            except Exception:  # noqa: BLE001  # a class that needs more to generate than its forward
                return False
            tokens.append(found)
    if not torch.equal(*tokens):
        raise ProofError(f"'{type(module).__name__}' generates other tokens once it is read again; nothing was written")
    return True


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps the progress bars of transformers off the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
