"""Many models pruned and held against what proves them: real ones, decoders, vision nets, random and node-test graphs."""
