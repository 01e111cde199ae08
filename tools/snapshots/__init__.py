"""Records what compilations give, so that a redesign can be held against it."""
