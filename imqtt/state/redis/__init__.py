"""The state in Redis, shared by several workers."""
