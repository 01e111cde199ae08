"""``python -m graphprune``: the command of the same name."""

from graphprune.cli import main

main()
