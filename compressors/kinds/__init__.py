"""Where a model's weights are used, and how each is read as a matrix."""
