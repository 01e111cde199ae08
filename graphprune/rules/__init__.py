"""Builders of coupling rules for families of operators, shared by all hosts.

A builder takes shapes and attributes, and returns a :class:`graphprune.ir.rule.Rule` with fresh factors. It knows no
framework: names of attributes that carry sizes (``slot``) are given by the host's table.
"""
