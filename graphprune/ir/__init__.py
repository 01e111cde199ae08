"""The intermediate representation: dimension expressions, coupling rules, graphs, and their text forms."""
