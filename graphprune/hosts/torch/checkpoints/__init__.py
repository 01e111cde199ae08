"""Modules that are written and read with a config, as those of Hugging Face's transformers.

A config says in a few numbers what a class builds. Whether it says a pruned module's shape is found by trying: the
class is built from changed configs, without memory, until it has the module's tensors. No table of models is needed.
"""
