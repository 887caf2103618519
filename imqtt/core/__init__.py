"""Decisions only: no await, no clock, no randomness, no I/O. Each takes facts and returns what to do."""
