"""Random operations on one file, against a model in memory: `python -m tests.integrity DIRECTORY [--second DIRECTORY]`."""
