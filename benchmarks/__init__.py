"Benchmarks of the engine: `python benchmarks/run.py`, or `make bench`."
