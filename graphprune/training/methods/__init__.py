"""The methods, one a file, each with its source, its formula and the test that proves it."""

from __future__ import annotations

from graphprune.registry import Registry
from graphprune.training.adapters import LowRank
from graphprune.training.method import Method
from graphprune.training.methods.dhspg import Dhspg
from graphprune.training.methods.group_norm import GroupNorm
from graphprune.training.methods.growing import Growing
from graphprune.training.methods.hesso import Hesso
from graphprune.training.methods.imp import Imp
from graphprune.training.methods.iterative import Iterative
from graphprune.training.methods.l0 import L0
from graphprune.training.methods.lhspg import Lhspg
from graphprune.training.methods.llm_pruner import LlmPruner
from graphprune.training.methods.lora_taylor import LoraTaylor
from graphprune.training.methods.movement import Movement
from graphprune.training.methods.slimming import Slimming
from graphprune.training.methods.soft import Soft

_FULL = (Iterative, Soft, GroupNorm, Growing, Slimming, Dhspg, Hesso, Movement, L0, Imp)
_LOW_RANK = (LowRank, LlmPruner, LoraTaylor, Lhspg)
_BUILTIN: dict[str, type[Method]] = {each.name: each for each in (*_FULL, *_LOW_RANK)}
METHODS: Registry[type[Method]] = Registry("method", _BUILTIN, ordered=True)
"""The methods by name; :meth:`graphprune.registry.Registry.register` adds one of yours."""
