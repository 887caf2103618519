"""Copying one store into another, and comparing the two."""
