"""The command line: arguments of `train.py`."""
