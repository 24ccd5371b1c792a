"""What `scripts/fuzz.py` and `tests/test_fuzz.py` run: samples, mutations, readers, and workers with a watchdog."""
