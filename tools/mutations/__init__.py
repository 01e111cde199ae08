"""Plants faults in pruned models and counts which of them the proof lets pass; counts right results that it refuses."""
