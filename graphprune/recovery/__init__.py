"""Recovery: a pruned model is trained to answer as the original does, on inputs without labels; never to its harm."""
