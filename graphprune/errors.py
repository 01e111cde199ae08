"""The errors that graphprune raises.

Every message has four parts, in this order: what is wrong, where, what was got and expected, what to do.
The command line prints the message of a :class:`GraphpruneError` and exits with status 2; anything else is a bug.
"""

from __future__ import annotations


class GraphpruneError(Exception):
    """Base of all errors that a user can cause or has to act on."""


class ModelError(GraphpruneError):
    """The model cannot be read, is malformed, or uses something that graphprune refuses."""


class BoundError(ModelError):
    """The model asks for more work or memory than :mod:`graphprune.bounds` allows."""


class RuleError(GraphpruneError):
    """A coupling rule is malformed or does not fit the shapes of its operator."""


class OptionError(GraphpruneError):
    """An option, a selector or a pipeline text is wrong."""


class TargetError(GraphpruneError):
    """A budget is malformed or cannot be met."""


class PlanError(GraphpruneError):
    """A plan is malformed or belongs to another model."""


class ProofError(GraphpruneError):
    """A compiled model does not compute what it should."""


class OutputError(GraphpruneError):
    """An output file cannot be written."""


class GraphpruneWarning(UserWarning):
    """Something that a user should know, though the work was done."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in one line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
