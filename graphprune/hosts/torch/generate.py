"""Decoders are proven with their cache: step by step, they compute what they compute at once.

The traced forward has no cache (nobody asked for that output), so what a decoder does with one (which place in the
cache a layer takes, how wide the places are) is not in the graph that the proof looks at. Here a few tokens are decoded
by the class's own means, with a cache and without, in a batch of two of which one is padded on the left.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from graphprune.errors import first_line
from graphprune.hosts.torch.own import probe_of
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.trace import Example
from graphprune.pipeline.state import Check

N_PROMPT, N_NEW, N_PADDED = 6, 3, 2
"""Tokens of the prompt, tokens decoded, and tokens of one prompt that are padding."""

TOLERANCES = {8: 1e-10, 4: 1e-5, 2: 2e-2}
"""Largest accepted difference by bytes of a number, relative to the largest logit of a token."""

_CACHES = ("past_key_values", "cache_params", "past_key_value", "past", "cache", "mems")
"""Arguments that hold a cache; a forward that has one of them and ``use_cache`` is a decoder's."""


@dataclass(frozen=True)
class Decoding:
    """How a decoder is decoded.

    Attributes:
        ids: ``[2, n]``: prompts and the tokens that follow, whatever the model makes of them.
        mask: ``[2, n]``: zero for padding.
        accepted: For each kind of cache that the class can do (``dynamic``, ``static``), the largest accepted
            difference to the logits without a cache.
        found: The differences of the module that was judged last.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    accepted: Mapping[str, float]
    found: dict[str, float] = field(default_factory=dict, compare=False)

    def run(self, module: nn.Module) -> None:
        """Decodes with all kinds of cache."""
        for mode in self.accepted:
            _logits_of(module, self.ids, self.mask, mode)

    def judge(self, module: nn.Module) -> str:
        """Why a module does not compute with a cache what it computes without; empty if it does.

        The module is left as it is.
        """
        self.found.clear()
        probe = probe_of(module)
        try:
            got = {mode: _logits_of(probe, self.ids, self.mask, mode) for mode in self.accepted}
            for expected in _without_cache(probe, self.ids, self.mask):
                self.found.update((mode, _difference(logits, expected)) for mode, logits in got.items())
                if all(self.found[mode] <= accepted for mode, accepted in self.accepted.items()):
                    return ""
        except Exception as error:  # noqa: BLE001  # a wrong size makes the user's code fail in any way
            return f"decoding with a cache fails with '{first_line(error)}'"
        mode = next(mode for mode, accepted in self.accepted.items() if not self.found[mode] <= accepted)
        return f"with a {mode} cache its logits differ by {self.found[mode]:.2g} from those without"

    def check(self, module: nn.Module) -> Check:
        """The line of the proof, for a module that has been found to be right."""
        if not all(self.found.get(mode, float("inf")) <= accepted for mode, accepted in self.accepted.items()):
            self.judge(module)  # what was judged last was a trial that has been taken back
        worst = max(self.accepted, key=lambda mode: self.found[mode] / self.accepted[mode])
        kinds = " and ".join(self.accepted)
        note = f"step by step = at once, batch 2, left padding, {kinds} cache"
        return Check("cached", self.found[worst], self.accepted[worst], note)


@dataclass
class Cached:
    """A decoder's use of its cache, of which the user's module is asked only where a copy does not decode as it should.

    Attributes:
        source: The user's module; it is left as it is.
        example: A call of it.
        note: What to say where a decoder's cache cannot be looked at; empty if there is nothing to say.
        decoding: How it is decoded; ``None`` where it cannot be.
    """

    source: nn.Module
    example: Example
    note: str = ""
    decoding: Decoding | None = None
    _asked: bool = False

    def __post_init__(self) -> None:
        self.decoding, self.note = strict_decoding(self.source, self.example)
        self._asked = self.decoding is None

    def run(self, module: nn.Module) -> None:
        """Decodes with all kinds of cache."""
        if self.decoding is not None:
            self.decoding.run(module)

    def judge(self, module: nn.Module) -> str:
        """Why a module does not decode as the user's does; empty if it does, or if that does not decode at all."""
        reason = "" if self.decoding is None else self.decoding.judge(module)
        if not reason or self._asked:
            return reason
        self._asked = True
        self.decoding, self.note = decoding_of(self.source, self.example)
        return "" if self.decoding is None else self.decoding.judge(module)

    def checks(self, module: nn.Module) -> tuple[Check, ...]:
        """The line of the proof, for a module that has been found to be right."""
        return () if self.decoding is None else (self.decoding.check(module),)


def prompt_of(source: nn.Module, example: Example) -> dict[str, Any] | None:
    """What ``generate`` of transformers is called with for an example: the arguments that are no decoder's.

    ``None`` where a module has no such method, or the example holds no tensor.
    """
    if not _generates(source):
        return None
    args, kwargs = example
    names = [*_parameters(source)]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs = {
        name: value
        for name, value in given.items()
        if isinstance(value, torch.Tensor) and not name.startswith(("decoder_", "labels"))
    }
    return inputs or None


def decoding_of(source: nn.Module, example: Example) -> tuple[Decoding | None, str]:
    """How a decoder is decoded, as far as the user's module itself can do it; ``None`` for what is no decoder.

    Args:
        source: The user's module; it is left as it is.
        example: A call of it.

    Returns:
        Also what to say where a decoder's cache cannot be looked at; empty if there is nothing to say.
    """
    strict, reason = strict_decoding(source, example)
    if strict is None:
        return None, reason
    ids, mask = strict.ids, strict.mask
    accepted: dict[str, float] = {}
    probe = probe_of(source)
    try:
        expected = _logits_of(probe, ids, mask, "none")
        for mode, tolerance in strict.accepted.items():
            accepted[mode] = max(tolerance, 2 * _difference(_logits_of(probe, ids, mask, mode), expected))
    except Exception as error:  # noqa: BLE001  # the class's own means: whatever they raise
        reason = f"decoding with a cache was not looked at: the original fails with '{first_line(error)}'"
    return (Decoding(ids, mask, accepted), "") if accepted else (None, reason)


def strict_decoding(source: nn.Module, example: Example) -> tuple[Decoding | None, str]:
    """As :func:`decoding_of`, with nothing allowed for what the user's module itself does otherwise: it is not run."""
    if not _is_decoder(source):
        return None, ""
    ids = _prompt(source, example)
    if ids is None:
        return None, "decoding with a cache was not looked at: the example holds no matrix of tokens"
    mask = torch.ones_like(ids)
    mask[1, :N_PADDED] = 0
    tolerance = TOLERANCES[next((each.itemsize for each in source.parameters() if each.is_floating_point()), 4)]
    modes = ("dynamic", "static") if _generates(source) else ("dynamic",)
    return Decoding(ids, mask, dict.fromkeys(modes, tolerance)), ""


def _without_cache(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logits without a cache: of all tokens at once, where the class takes them so, and as its own means give them.

    What decodes as it should is like the first; it takes one forward.
    """
    if _generates(module):
        found: list[torch.Tensor] = []
        with suppress(Exception), torch.no_grad(), quiet():
            found.append(_stepped(module, ids, mask, cached=False))
        yield from found
    yield _logits_of(module, ids, mask, "none")


def _logits_of(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """``[2, N_NEW, vocabulary]``, by ``mode``: ``none`` (no cache), ``dynamic`` or ``static``."""
    with torch.no_grad(), quiet():
        if _generates(module):
            return _generated(module, ids, mask, mode)
        return _stepped(module, ids, mask, cached=mode != "none")


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit of a token."""
    scale = expected.double().abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return float(((got.double() - expected.double()).abs() / scale).nan_to_num(nan=float("inf")).max())


def _is_decoder(module: nn.Module) -> bool:
    names = _parameters(module)
    return _generates(module) or ("use_cache" in names and any(name in names for name in _CACHES))


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}


def _generates(module: nn.Module) -> bool:
    """Whether a module has the ``generate`` of transformers."""
    transformers = sys.modules.get("transformers")
    mixin: Any = getattr(transformers, "GenerationMixin", None)
    return mixin is not None and isinstance(module, mixin) and bool(module.can_generate())


def _prompt(source: nn.Module, example: Example) -> torch.Tensor | None:
    """``[2, N_PROMPT + N_NEW]``: tokens of the example, repeated as need be, but none that ends a text."""
    args, kwargs = example
    given = [kwargs["input_ids"]] if "input_ids" in kwargs else [*args, *kwargs.values()]
    found = next(
        (each for each in given if isinstance(each, torch.Tensor) and each.dim() == 2 and not each.is_floating_point()),
        None,
    )
    if found is None or found.is_meta or found.dtype is torch.bool or not found.numel():
        return None
    ends = getattr(getattr(source, "generation_config", None), "eos_token_id", None)
    last = torch.tensor(ends if isinstance(ends, list | tuple) else [-1 if ends is None else ends])
    tokens = found.flatten()[: 64 * (N_PROMPT + N_NEW)].cpu()
    tokens = tokens[~torch.isin(tokens, last)]
    if not len(tokens):
        return None
    n = 2 * (N_PROMPT + N_NEW)
    return tokens.repeat(-(-n // len(tokens)))[:n].reshape(2, -1).to(found.device)


def _generated(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """The logits of transformers' ``generate``, which is made to choose the given tokens."""
    chosen = iter(range(N_PROMPT, ids.shape[1]))

    def forced(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        following = ids[:, next(chosen), None].expand(-1, 1).to(scores.device)
        return torch.full_like(scores, -1e4).scatter(1, following, 1e4)

    generate: Callable[..., Any] = module.generate  # type: ignore[assignment]
    options: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True} if mode == "static" else {}
    found = generate(
        input_ids=ids[:, :N_PROMPT],
        attention_mask=mask[:, :N_PROMPT],
        max_new_tokens=N_NEW,
        do_sample=False,
        num_beams=1,
        use_cache=mode != "none",
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=[forced],
        pad_token_id=0,
        **options,
    )
    return torch.stack([each.float() for each in found.logits], 1)


def _stepped(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, cached: bool) -> torch.Tensor:
    """The logits of a forward that takes a cache, called at once or step by step."""
    names = _parameters(module)
    padded = "attention_mask" in names
    places = (mask.cumsum(1) - 1).clamp_min(0) if padded else torch.arange(ids.shape[1]).expand_as(ids)
    cache = next(name for name in _CACHES if name in names)

    def call(first: int, last: int, past: Any, *, use_cache: bool) -> Any:
        given: dict[str, Any] = {"use_cache": use_cache}
        if padded:
            given["attention_mask"] = mask[:, :last]
        if "position_ids" in names:
            given["position_ids"] = places[:, first:last].to(ids.device)
        if past is not None:
            given[cache] = past
        return module(ids[:, first:last], **given)

    if not cached:
        return _logits(call(0, ids.shape[1] - 1, None, use_cache=False))[:, N_PROMPT - 1 :].float()
    output = call(0, N_PROMPT, None, use_cache=True)
    found = [_logits(output)[:, -1:]]
    for place in range(N_PROMPT, ids.shape[1] - 1):
        output = call(place, place + 1, _cache(output, cache), use_cache=True)
        found.append(_logits(output)[:, -1:])
    return torch.cat(found, 1).float()


def _logits(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values())))
        return _logits(output)
    return _logits(output.logits if hasattr(output, "logits") else output[0])


def _cache(output: Any, name: str) -> Any:
    if isinstance(output, Mapping) and name in output:
        return output[name]
    return getattr(output, name) if hasattr(output, name) else output[1]
