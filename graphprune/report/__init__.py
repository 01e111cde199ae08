"""Reports: what was found and done, as data and as tables in a terminal."""
