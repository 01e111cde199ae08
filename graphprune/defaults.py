"""The default recipe and the names of its parts, apart from what they stand for: to speak of them imports nothing."""

from __future__ import annotations

CRITERION, ALLOCATION = "l2", "isomorphic"
"""Without calibration data."""
MEASURED_CRITERION, MEASURED_ALLOCATION = "obs", "measured"
"""With calibration data, chosen by ``tools/quality``."""
COMPENSATION, MEASURED_COMPENSATION = "none", "affine"
"""The refit without calibration data, and with it."""
BLOCK_CRITERION = "l2"
"""How whole blocks are scored."""
ALIGN, MIN_UNITS, MAX_RATIO = 8, 1, 0.9
"""What allocation may do to a group; see :class:`graphprune.planning.allocation.Limits`."""
SENSITIVITY_SAMPLES = 32
"""Calibration samples of a sensitivity analysis."""
SENSITIVITY_RATIOS = (0.25, 0.5, 0.75)
"""Fractions of a group's units that it removes on trial."""

CRITERIA = (
    *("l1", "l2", "random", "bn-gamma", "lamp", "fpgm", "act-rms", "act-var", "apoz", "wanda", "wifv", "obs", "taylor"),
    *("fisher", "taylor-elem", "path-taylor", "bonsai", "oracle"),
)
"""The names of :data:`graphprune.importance.CRITERIA`."""
ALLOCATIONS = ("isomorphic", "global", "uniform", "zscore", "log-ramp", "kwon", "dp", "measured", "spdy", "evolution")
"""Those of :data:`graphprune.planning.share.ALLOCATIONS`."""
COMPENSATIONS = ("none", "mean", "ols", "affine", "bn")
"""Those of :data:`graphprune.compensation.METHODS` and ``NORMS``."""
LAYOUT, STOCK, PER_LAYER = "free", "stock", "per-layer"
LAYOUTS = (LAYOUT, STOCK, PER_LAYER)
"""What may be left of a model; those of :data:`graphprune.planning.layouts.LAYOUTS`."""
STOCK_COMPENSATION = "as-is"
"""The refit with calibration data where a config has to say what is left: no layer gets a bias."""
LOSSES = ("auto", "kl", "bce", "mse", "cosine")
"""How outputs can be compared (:mod:`graphprune.importance.judge`)."""

ZEROS = "zeros"
"""The target that removes what is dead already, and nothing else."""
TRAINED = ("all", "biases", "lora")
"""Which weights are trained: all, those of one axis (biases and norms), or low-rank additions to all linear layers."""
PRECISIONS = ("auto", "float32", "bfloat16")
"""In which numbers it is trained."""
MEMORY = ("all", "blocks")
"""What is kept for its gradients."""
