"""Tools of the project's developers: benchmarks, sweeps and what writes the files that graphprune ships."""
