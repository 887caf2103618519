"""Decisions only: no await, no clock, no randomness, no I/O. Each takes what is known and says what to do."""
