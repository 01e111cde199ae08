"""Many models pruned and proven: real ones, decoders, vision nets, random networks, node tests of onnx."""
