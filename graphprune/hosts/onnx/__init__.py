"""The wing of ONNX files: read, edited, run, compared and written; the operators' rows are in ``ops``."""

from graphprune.hosts.late import import_onnx_ir

import_onnx_ir()
