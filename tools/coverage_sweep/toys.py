"""The toy nets of the tests as rows of the coverage table.

Every net that a test proves with ``torch_proof.prove`` goes through the stages of ``architectures.py`` as well, and is
added to its records.

    python -m tools.coverage_sweep.toys [--json coverage.jsonl] [tests/nets/test_constructs.py ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch_proof

from tools import TESTS
from tools.bench.records import Record, Records, provenance
from tools.bench.runner import error_line, parser_of
from tools.coverage_sweep.architectures import RECORDS, measure_module

FILES = (
    "nets/test_constructs", "nets/test_more_constructs", "nets/test_index_constructs", "analysis/test_adapters",
    "hosts/torch/test_torch_host", "hosts/torch/test_torch_values",
)  # fmt: skip


def main() -> int:
    """Runs the tests and writes a record for each net."""
    parser = parser_of(__doc__)
    parser.add_argument("--json", type=Path, default=RECORDS, metavar="FILE", help="records (%(default)s)")
    parser.add_argument("files", nargs="*", default=[str(TESTS / f"{name}.py") for name in FILES])
    options = parser.parse_args()
    records, proven = Records(options.json, ("type",)), set[str]()
    prove = torch_proof.prove

    def noted(model: Any, example: Any, dynamic_shapes: Any = None, **more: Any) -> torch_proof.Proof:
        test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].removesuffix(" (call)")
        name = next(n for i in range(1, 99) if (n := test if i == 1 else f"{test} ({i})") not in proven)
        proven.add(name)
        record: Record = {"type": name, "toy": True, "stage": ""}
        training = model.training
        try:
            measure_module(model, example, record, dynamic_shapes, onnx=False)
        except Exception as error:  # noqa: BLE001  (as in the sweep)
            record["error"] = error_line(error)
        model.train(training)
        records.add({**record, **provenance()})
        return prove(model, example, dynamic_shapes, **more)

    torch_proof.prove = noted
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *options.files]))


if __name__ == "__main__":
    sys.exit(main())
