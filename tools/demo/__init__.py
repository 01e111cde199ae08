"""How the demo network of graphprune was trained."""
