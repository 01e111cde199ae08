"""What is run by hand, from the root of the repository: benchmarks, sweeps, proofs of many models, planted faults.

Every tool is a module, ``python -m tools.FOLDER.NAME --help``, or a folder, ``python -m tools.FOLDER --help``. Some use
the helpers of the tests (nets, oracles), which this file puts on the path, last; nothing looks for models in a network.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

for _name, _value in (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error")):
    os.environ.setdefault(_name, _value)
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))
