"""Columns of tables."""
