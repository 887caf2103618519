"""The owners of partitions: group commit, fan-out, reads, presence, and the application around them."""
