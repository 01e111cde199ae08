"""The command on hostile files."""
