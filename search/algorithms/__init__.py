"""Search algorithms, one a file; `base` holds what they share and the registry."""
