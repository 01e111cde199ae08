"""What readers know groups and tensors by, whose names are an exporter's counters."""

from __future__ import annotations

from graphprune.analysis.groups import Analysis, Group


def tensor_title(analysis: Analysis, tensor: str) -> str:
    """What a stored tensor is known by, if its name says nothing; empty otherwise."""
    value = analysis.graph.values.get(tensor)
    return value.title if value is not None else ""


def axis_title(analysis: Analysis, axis: str) -> str:
    """The same of one axis of a tensor, written ``tensor[0]``."""
    tensor, bracket, rest = axis.rpartition("[")
    title = tensor_title(analysis, tensor) if bracket else ""
    return f"{title}[{rest}" if title else ""


def group_title(analysis: Analysis, group: Group) -> str:
    """What a group is known by, if the tensor that it is named after has a name that says nothing; empty otherwise."""
    site = group.sites[0]
    title = tensor_title(analysis, site.tensor)
    return f"{title}{group.name.removeprefix(site.tensor)}" if title and group.name.startswith(site.tensor) else ""


def named(name: str, title: str) -> str:
    """A name with what it is known by: ``val_121[1] = encoder.0.mlp (MatMul)[1]``."""
    return f"{name} = {title}" if title else name
