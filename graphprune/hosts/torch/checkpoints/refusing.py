"""A module whose config does not say its shape refuses to be written with it.

What would be written could be read again, and would not be what was written: tensors of other sizes are refused or,
where layers are gone, drawn at random without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from graphprune.errors import OutputError
from graphprune.hosts.torch.checkpoints.twins import is_configured

WRITING = ("save_pretrained", "push_to_hub")
"""Methods that write a config beside weights."""


@dataclass(frozen=True)
class Refusing:
    """Stands where a method was that would write what is not true; can be copied and pickled with its module.

    Attributes:
        method: Its name.
        kind: The name of the module's class.
        reason: Why the config is not true.
    """

    method: str
    kind: str
    reason: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises.

        Raises:
            OutputError: Always.
        """
        raise OutputError(
            f"'{self.method}' of the pruned '{self.kind}' would write a config that is not true: {self.reason}; prune "
            "with layout='stock' (--layout stock) so that a config can say it, or with layout='per-layer' and write it "
            "with result.save_pretrained(folder), which adds a few lines of code"
        )


def refuse_writing(module: nn.Module, reasons: Mapping[str, str]) -> None:
    """Lets configured modules refuse to be written, with all that they hold.

    Args:
        module: The module; it is changed.
        reasons: By path: why no config says the shape.
    """
    for path, reason in reasons.items():
        for layer in module.get_submodule(path).modules():
            if is_configured(layer):
                for method in WRITING:
                    if callable(getattr(layer, method, None)):
                        object.__setattr__(layer, method, Refusing(method, type(layer).__name__, reason))
