"""The node tests of the installed onnx as cases for the oracle of rules: other people's calls of the operators."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_tests
from onnx_cases import Case, Tensor

from graphprune.hosts.onnx.ops.table import BARRIERS, ROWS

SIZES = 8
"""Integer vectors up to this length are taken for stored ones: sizes, axes, bounds."""
LARGEST = 20_000
"""Elements of the largest operand: each case is run many times."""
DYNAMIC = "DynamicQuantizeLinear"
"""Its scale is that of the elements that are there, so that a cut result is another one; judged in ``onnx_cases``."""
ZEROS = {
    "QLinearConv": {0: 2, 3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
    "ConvInteger": {0: 2, 1: 3},
    "MatMulInteger": {0: 2, 1: 3},
}
"""Which operand is the zero point of which."""


def node_files() -> list[str]:
    """The names of onnx's files of node tests."""
    return sorted(found.name for found in pkgutil.iter_modules(node_tests.__path__))


@cache
def cases_of(file: str) -> tuple[Any, ...]:
    """The tests of a file, which makes them when it is imported for the first time."""
    before = len(node_tests._NodeTestCases)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        importlib.import_module(f"{node_tests.__name__}.{file}")
    return tuple(node_tests._NodeTestCases[before:])


def node_cases(part: int = 0, parts: int = 1) -> Iterator[Case]:
    """The tests of one operator of the default domain that has a row, with plain tensors.

    Args:
        part: Which part of the files of tests.
        parts: In how many parts.
    """
    for test in (test for file in node_files()[part::parts] for test in cases_of(file)):
        graph = test.model.graph
        if len(graph.node) != 1 or graph.node[0].domain not in ("", "ai.onnx") or not test.data_sets:
            continue
        node = graph.node[0]
        if node.op_type not in ROWS or node.op_type in BARRIERS or node.op_type in ("Constant", DYNAMIC):
            continue
        fed = dict(zip((value.name for value in graph.input), test.data_sets[0][0], strict=True))
        operands = [fed.get(name) if name else None for name in node.input]
        if not all(one is None or _plain(one) for one in operands):
            continue
        opset = next(entry.version for entry in test.model.opset_import if entry.domain in ("", "ai.onnx"))
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        used = tuple(i for i, name in enumerate(node.output) if name)
        tensors = tuple(None if one is None else _tensor(np.asarray(one)) for one in operands)
        zeros = {
            place: int(np.ravel(operands[zero])[0])
            for place, zero in ZEROS.get(node.op_type, {}).items()
            if zero < len(operands) and operands[zero] is not None
        }
        mixed = ("*",) if node.op_type == "LpNormalization" else ()
        yield Case(
            node.op_type, tensors, attributes, opset, "reference", used, len(node.output), test.name, zeros, mixed
        )


def on_runtime(case: Case) -> Case:
    """The case for onnxruntime, as far as it knows the opset."""
    return replace(case, runtime="onnxruntime", opset=min(case.opset, 24))


def _plain(array: object) -> bool:
    return isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "fiub" and np.size(array) <= LARGEST


def _tensor(array: np.ndarray) -> Tensor:
    sizes = array.dtype.kind in "iub" and array.ndim <= 1 and array.size <= SIZES
    return Tensor("constant" if sizes else "given", array.shape, values=array)
