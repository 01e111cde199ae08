"""Rivals that are tools of their own, on the same models, data and budgets: Torch-Pruning and onnxsim.

Neither meets a budget of MACs by itself, so that their ratio is searched: the smallest one whose result has at most
``ratio + TOLERANCE`` of the MACs, which favours the rival. Nobody fine-tunes. MACs of modules are counted by PyTorch's
own counter, those of ONNX files by our cost model (as for our results).
"""

from __future__ import annotations

import copy
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.registry import fetch, importable
from tools.quality.cases import Case, Run, module_runner, onnx_runner

TOLERANCE = 0.005
MAX_STEPS = 9
LARGEST = 0.95
"""Ratios of rivals up to which is searched."""

ONNXSIM = "onnxsim==0.8.1"
TORCH_PRUNING = "torch-pruning==1.6.1"

RIVALS: dict[str, dict[str, Any]] = {
    "tp-l2-uniform": {"importance": "magnitude", "global_pruning": False},
    "tp-l2-global": {"importance": "magnitude", "global_pruning": True},
    "tp-l2-isomorphic": {"importance": "magnitude", "global_pruning": True, "isomorphic": True},
    "tp-l2-uniform-inner": {"importance": "magnitude", "global_pruning": False, "inner": True},
    "tp-fpgm-uniform": {"importance": "fpgm", "global_pruning": False},
    "tp-fpgm-uniform-inner": {"importance": "fpgm", "global_pruning": False, "inner": True},
    "tp-lamp-global": {"importance": "lamp", "global_pruning": True},
    "tp-lamp-global-inner": {"importance": "lamp", "global_pruning": True, "inner": True},
    "tp-taylor-uniform": {"importance": "taylor", "global_pruning": False},
    "tp-taylor-global": {"importance": "taylor", "global_pruning": True},
    "tp-taylor-isomorphic": {"importance": "taylor", "global_pruning": True, "isomorphic": True},
    "tp-taylor-uniform-inner": {"importance": "taylor", "global_pruning": False, "inner": True},
    "tp-taylor-global-inner": {"importance": "taylor", "global_pruning": True, "inner": True},
    "tp-taylor-isomorphic-inner": {
        "importance": "taylor", "global_pruning": True, "isomorphic": True, "inner": True,
    },
    "onnxsim-l2": {"onnxsim": "magnitude"},
    "onnxsim-wanda": {"onnxsim": "wanda"},
    "onnxsim-wanda-global": {"onnxsim": "wanda", "global_sparsity": True},
}  # fmt: skip
"""Name -> options. ``inner`` leaves the residual stream (and what the case names) whole; otherwise everything goes."""

TABLE = ("tp-l2-isomorphic", "tp-taylor-uniform", "tp-taylor-isomorphic", "tp-taylor-isomorphic-inner", "onnxsim-wanda")
"""What is run unless others are asked for: the best of them on any model of a first full run."""


class Rivals:
    """The rivals on one case; what ratios give which MACs is remembered between budgets."""

    def __init__(self, case: Case, cache: Path) -> None:
        self.case, self.cache = case, cache
        self._curves: dict[str, dict[float, float]] = {}
        self._gradients: list[Any] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._dense: Path | None = None

    def applies(self, name: str) -> bool:
        """Whether a rival takes such a model: Torch-Pruning takes modules."""
        return "onnxsim" in RIVALS[name] or not isinstance(self.case.model, Path)

    def pruned(self, name: str, ratio: float) -> tuple[Run, dict[str, float]]:
        """A rival's result.

        Returns:
            How to run it; the fraction of MACs and the rival's own ratio.

        Raises:
            Exception: Whatever the rival raises; RuntimeError where it cannot meet the budget.
        """
        make = self._onnxsim if "onnxsim" in RIVALS[name] else self._torch_pruning
        curve = self._curves.setdefault(name, {0.0: 1.0})
        made: dict[float, Any] = {}

        def measure(x: float) -> float:
            model, curve[x] = make(RIVALS[name], x)
            made.clear()
            made[x] = model
            return curve[x]

        high = min((x for x, kept in curve.items() if kept <= ratio + TOLERANCE), default=0.0)
        while not high:  # widths cut on both sides leave about the square of what is kept; then double
            x = max(1 - ratio**0.5, min(2 * max(curve), LARGEST))
            if measure(x) <= ratio + TOLERANCE:
                high = x
            elif x >= LARGEST:
                raise RuntimeError(f"at its ratio {x} it still keeps {curve[x]:.1%} of the MACs")
        for _ in range(MAX_STEPS):
            if curve[high] >= ratio - TOLERANCE:
                break
            low = max(x for x, kept in curve.items() if kept > ratio + TOLERANCE and x < high)
            # MACs are about quadratic in the ratio: interpolate in the square root, but never too close to an end
            ends, goal = np.sqrt([curve[low], curve[high]]), np.sqrt(ratio)
            share = float(np.clip((ends[0] - goal) / (ends[0] - ends[1]), 0.1, 0.9))
            x = low + share * (high - low)
            if measure(x) <= ratio + TOLERANCE:
                high = x
        if high not in made:
            measure(high)
        return self._runner(made[high]), {"macs": curve[high], "own_ratio": high}

    def _runner(self, model: Any) -> Run:
        if isinstance(model, Path):
            return onnx_runner(model)
        return module_runner(model)

    # -- Torch-Pruning ------------------------------------------------------------------------------------------------

    def _torch_pruning(self, options: dict[str, Any], ratio: float) -> tuple[Any, float]:
        importable(self.cache, TORCH_PRUNING)
        import torch
        import torch_pruning as tp

        case = self.case
        model = copy.deepcopy(case.model)
        for parameter in model.parameters():
            parameter.requires_grad_()
        if options["importance"] == "taylor":
            for parameter, gradient in zip(model.parameters(), self._taylor(), strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
        importance = {
            "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
            "fpgm": lambda: tp.importance.FPGMImportance(),
            "lamp": lambda: tp.importance.LAMPImportance(),
            "taylor": lambda: tp.importance.GroupTaylorImportance(),
        }[options["importance"]]()
        modules = dict(model.named_modules())
        last = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)][-1]
        patterns = case.residual if options.get("inner") else (re.escape(last),)
        ignored = [m for name, m in modules.items() if any(re.fullmatch(p, name) for p in patterns)]
        pruner = tp.pruner.BasePruner(
            model, dict(case.example or {}), importance=importance, pruning_ratio=ratio, max_pruning_ratio=0.95,
            global_pruning=options["global_pruning"], isomorphic=options.get("isomorphic", False),
            ignored_layers=ignored, num_heads={modules[name]: n for name, n in case.heads.items()},
            output_transform=lambda out: getattr(out, "logits", out),
        )  # fmt: skip
        pruner.step()
        model.zero_grad()
        for parameter in model.parameters():
            parameter.grad = None
        _tell_head_sizes(model, case)
        return model.eval(), module_macs(model, case) / module_macs(case.model, case)

    def _taylor(self) -> list[Any]:
        """Gradients of the mean loss over the calibration batches and their labels."""
        if self._gradients is None:
            import torch

            case, model = self.case, copy.deepcopy(self.case.model)
            for parameter in model.parameters():
                parameter.requires_grad_()
            for batch, labels in zip(case.calibration, case.labels, strict=True):
                result = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
                logits, wanted = getattr(result, "logits", result), torch.from_numpy(labels)
                if logits.ndim == 3:
                    logits, wanted = logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten()
                (torch.nn.functional.cross_entropy(logits, wanted) / len(case.calibration)).backward()
            self._gradients = [parameter.grad for parameter in model.parameters()]
        return self._gradients

    # -- onnxsim ------------------------------------------------------------------------------------------------------

    def _onnxsim(self, options: dict[str, Any], ratio: float) -> tuple[Path, float]:
        import onnx

        folder = str(fetch(self.cache, ONNXSIM))
        if folder not in sys.path:
            sys.path.insert(0, folder)
        import onnxsim

        model = onnx.load(self.dense_onnx())
        if options["onnxsim"] == "wanda":
            pruned = onnxsim.apply_structured_wanda_pruning(
                model, self.case.calibration, sparsity=ratio, global_sparsity=options.get("global_sparsity", False)
            )
        else:
            pruned = onnxsim.apply_structured_pruning(model, sparsity=ratio)
        path = Path(self._folder.name) / f"{options['onnxsim']}-{ratio:.5f}.onnx"
        onnx.save(pruned, path)
        return path, self._file_macs(path) / self._file_macs(self.dense_onnx())

    def dense_onnx(self) -> Path:
        """The dense model as an ONNX file."""
        if isinstance(self.case.model, Path):
            return self.case.model
        if self._dense is None:
            from graphprune.opening import open_host

            path = Path(self._folder.name) / "dense.onnx"
            open_host(self.case.model, self.case.example).save_onnx(path)
            self._dense = path
        return self._dense

    def _file_macs(self, path: Path) -> float:
        import graphprune as gp
        from graphprune.planning.cost import build_cost_model

        return build_cost_model(gp.analyze(path, shapes=self.case.shapes)).cost("macs")


def _tell_head_sizes(model: Any, case: Case) -> None:
    """Attention modules of transformers keep head sizes as numbers; Torch-Pruning leaves them to the user."""
    modules = dict(model.named_modules())
    for name, n in case.heads.items():
        parent = modules[name.rpartition(".")[0]]
        width = modules[name].out_features
        for attribute, value in (("attention_head_size", width // n), ("all_head_size", width)):
            if hasattr(parent, attribute):
                setattr(parent, attribute, value)


def module_macs(model: Any, case: Case) -> float:
    """Multiply-accumulates of a module on the example, by PyTorch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**dict(case.example or {}))
    return counter.get_total_flops() / 2
