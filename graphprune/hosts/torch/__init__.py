"""The wing of PyTorch modules: traced, edited, run, compared and rebuilt; the operators' rows are in ``ops``."""

from graphprune.hosts.late import import_onnx_ir

import_onnx_ir()
