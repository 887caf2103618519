"""Measurements. `python -m bench` runs them; nothing of this is installed."""
