"""The commands, in files of one or two: they parse, call the Python interface, and print."""
