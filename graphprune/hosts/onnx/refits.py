"""Tensors that compensation has refitted: a replay cannot make them anew, so the plan knows them by their digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.arrays import digest_of
from graphprune.compensation.sequential import adopted
from graphprune.errors import PlanError
from graphprune.hosts.host import Array, Host
from graphprune.hosts.onnx.contents import Contents, digest, dtype_name
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.dims import Factor, Index
from graphprune.planning.plan import PruningPlan


@dataclass(frozen=True)
class Refits:
    """What compensation has changed, as the plan notes it.

    Attributes:
        exported: Digests of the stored tensors of the file by name, where an exporter folds refitted ones into others.
        note: What is to be said about them.
        wrong: What is wrong with them, or ``""``.
        unknown: Whether the plan does not say which values they must have.
        complete: Whether the replayed model has all of them.
    """

    exported: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    wrong: str = ""
    unknown: bool = False
    complete: bool = True


def exported_digests(path: Path) -> dict[str, str]:
    """The digests of all stored tensors of a file, by name."""
    contents = Contents.load(path)
    return {header.name: digest(contents.tensor(header)) for header in contents.proto.graph.initializer}


def with_refits(
    path: Path, plan: PruningPlan, dense: Host, sliced: Host, analysis: Analysis, kept: Mapping[Factor, Index]
) -> tuple[Host, Refits]:
    """The sliced model with the refitted tensors of a file, as far as they are those that the plan knows.

    Args:
        path: The file.
        plan: The plan.
        dense: The model as it was analysed.
        sliced: The model that the plan's cuts make of it.
        analysis: The analysis of ``dense``.
        kept: The units that stay.

    Raises:
        ModelError: The file cannot be read.
        PlanError: The file has no tensor of the shape of a refitted one.
    """
    names = tuple(plan.options.get("compensated", ()))
    if not names:
        return sliced, Refits()
    method, n = plan.options["compensation"], f"{len(names)} refitted {'tensor' if len(names) == 1 else 'tensors'}"
    digests = plan.options.get("digests")
    if digests is None:
        values = _by_name(path, names)
        note = f"{n} taken from the file as they are: the plan is of an older version, which noted no digests of them"
        return adopted(values, dense, sliced, analysis, kept, method), Refits(note=note, unknown=True)
    found = _by_digest(path, digests)
    missing = [name for name in names if name not in found]
    exported = plan.options.get("exported", {})
    if missing and (plain := _only_cut(path, sliced, missing)):
        return sliced, Refits(note=plain)
    host = adopted(found, dense, sliced, analysis, kept, method)
    if missing and not exported:
        _require_shapes(path, host, missing)
        return host, Refits(
            wrong=f"no tensor of the file is the refitted '{missing[0]}' of the plan, to the last bit", complete=False
        )
    return host, Refits(exported, f"{n} by their digests in the plan", complete=not missing)


def _by_name(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    file = OnnxHost.load(path)
    lacking = [name for name in names if name not in file.graph().values]
    if lacking:
        raise _unknown(lacking[0])
    return {name: file.read(name) for name in names}


def _unknown(name: str) -> PlanError:
    return PlanError(
        f"the plan says that tensor '{name}' was refitted, and the file has no such tensor of that shape; "
        "files exported from PyTorch name and turn tensors otherwise, so verify them where they were made"
    )


def _require_shapes(path: Path, host: Host, names: list[str]) -> None:
    shapes = {tuple(sorted(header.dims)) for header in Contents.load(path).proto.graph.initializer}
    values = host.graph().values
    for name in names:
        if name not in values or tuple(sorted(values[name].shape)) not in shapes:
            raise _unknown(name)


def _only_cut(path: Path, sliced: Host, names: list[str]) -> str:
    """What to say of a file whose tensors were only cut, as ``apply`` without data makes it; else ``""``."""
    stored = {value.name for value in sliced.graph().stored}
    plain = {name: sliced.digest(name) for name in names if name in stored}
    if len(_by_digest(path, plain)) < len(plain):
        return ""
    return f"{len(names)} that the plan's compensation refits are only cut in this file"


def _by_digest(path: Path, digests: Mapping[str, str]) -> dict[str, Array]:
    """The tensors of a file that have these digests, whatever they are called there; of matrices also turned."""
    contents = Contents.load(path)
    names: dict[str, list[str]] = {}
    for name, wanted in digests.items():
        names.setdefault(wanted, []).append(name)
    found: dict[str, Array] = {}
    for header in contents.proto.graph.initializer:
        tensor = contents.tensor(header)
        kind = dtype_name(tensor.dtype)
        if not header.dims or kind == "str":
            continue
        array = np.asarray(tensor.numpy())
        for way in [array, array.T] if array.ndim == 2 else [array]:
            own = digest_of(kind, way.shape, np.ascontiguousarray(way).tobytes())
            values = way if way.dtype.kind in "fiub" else way.astype(np.float32)
            found.update(dict.fromkeys(names.get(own, ()), values))
    return found
