"""The cases of `benchmarks/fast.py`: each measures one part of the study beside the naive ways to the same numbers."""
