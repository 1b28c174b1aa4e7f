"""Images with more than a class folder says."""
