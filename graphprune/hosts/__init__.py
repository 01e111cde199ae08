"""Hosts: the frameworks' own representations of a model, behind one small editor interface."""

from graphprune.hosts.late import late_import

with late_import("sympy", "onnx_ir._symbolic_shapes"):  # 0.3 CPU seconds, to compute with symbolic sizes, which few do
    import onnx_ir.passes.common  # noqa: F401
