"""The benchmark, run by `python -m bench`. Not installed with imqtt."""
