"""What is run by hand, from the root of the repository: benchmarks, sweeps, proofs of many models, planted faults.

Every tool is a module, ``python -m tools.FOLDER.NAME --help``, or a folder, ``python -m tools.FOLDER --help``. Some use
the helpers of the tests (nets, oracles), whose folders this file puts on the path, last, as pytest has them; nothing
looks for models in a network.
"""

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"


def _folders_of_tests() -> list[str]:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    return [str(ROOT / folder) for folder in options["pythonpath"]]


for _name, _value in (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error")):
    os.environ.setdefault(_name, _value)
sys.path += [folder for folder in _folders_of_tests() if folder not in sys.path]
