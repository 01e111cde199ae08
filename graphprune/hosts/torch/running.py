"""Runs of a traced graph by an interpreter, with what an operator raises as an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import fx

from graphprune.errors import GraphpruneError, ModelError, first_line
from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.torch.calls import Signature
from graphprune.hosts.torch.masked import Interpreter
from graphprune.hosts.torch.stored import to_numpy


def interpreted(interpreter: Interpreter, signature: Signature, inputs: Arrays) -> dict[str, Array]:
    """The outputs of a graph by name.

    Raises:
        ModelError: It does not run.
    """
    flat = signature.flat(inputs)
    with _explained(), torch.no_grad(), interpreter.precision():
        return signature.named(interpreter.run(*flat, enable_io_processing=False))


def shown(
    interpreter: Interpreter,
    signature: Signature,
    inputs: Arrays,
    values: Mapping[fx.Node, str],
    names: Sequence[str],
) -> Iterator[tuple[str, Array]]:
    """Values on the way and then the outputs of a graph, one after the other; see ``Runnable.shown``."""
    asked = frozenset(names)
    wanted = {node: name for node, name in values.items() if name in asked and node.op == "call_function"}
    flat = signature.flat(inputs)
    with _explained():
        for node, result in interpreter.steps(flat, wanted):
            if node in wanted:
                yield wanted[node], to_numpy(result)
            else:
                yield from ((f">{name}", each) for name, each in signature.named(result).items())


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except GraphpruneError:
        raise
    except Exception as error:  # an operator raises what it likes
        raise ModelError(
            f"the traced model does not run: {first_line(error)}; "
            "give example inputs of the types and values that the model takes"
        ) from error
