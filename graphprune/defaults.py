"""The default recipe, apart from the interface that takes it: what only speaks of it imports nothing else."""

from __future__ import annotations

CRITERION, ALLOCATION = "l2", "isomorphic"
"""Without calibration data."""
MEASURED_CRITERION, MEASURED_ALLOCATION = "obs", "measured"
"""With calibration data, chosen by ``tools/bench_quality.py``."""
