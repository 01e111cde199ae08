"""Pass infrastructure: what a host must offer, what a pass is, and how pipelines are written and run."""
