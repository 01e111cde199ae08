"""The toy nets of the tests as rows of the coverage table.

Every net that a test proves with ``torch_proof.prove`` goes through the stages of ``tools/coverage.py`` as well,
and is added to its results.

    python tools/coverage_toys.py [--results coverage.jsonl] [tests/nets/test_constructs.py ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pytest
import torch_proof
from coverage import line, measure_module

TESTS = Path(__file__).parents[1] / "tests"
FILES = (
    "test_constructs", "test_more_constructs", "test_index_constructs", "test_adapters", "test_torch_host",
    "test_torch_values",
)  # fmt: skip


def main() -> int:
    """Runs the tests and writes a record for each net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("files", nargs="*", type=Path, default=[TESTS / f"{name}.py" for name in FILES])
    options = parser.parse_args()
    prove, records = torch_proof.prove, dict[str, dict[str, Any]]()

    def noted(model: Any, example: Any, dynamic_shapes: Any = None, **more: Any) -> torch_proof.Proof:
        test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].removesuffix(" (call)")
        name = next(n for i in range(1, 99) if (n := test if i == 1 else f"{test} ({i})") not in records)
        record = records[name] = {"type": name, "toy": True, "stage": ""}
        training = model.training
        try:
            measure_module(model, example, record, dynamic_shapes, onnx=False)
        except Exception as error:  # noqa: BLE001  (as in the sweep)
            record["error"] = line(error)
        model.train(training)
        return prove(model, example, dynamic_shapes, **more)

    torch_proof.prove = noted
    status = pytest.main(["-q", "-p", "no:cacheprovider", *map(str, options.files)])
    with options.results.open("a") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in records.values())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
