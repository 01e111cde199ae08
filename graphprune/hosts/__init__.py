"""Hosts: the frameworks' own representations of a model, behind one small editor interface."""
