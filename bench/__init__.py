"""The benchmark: ``python bench/run.py``. Not a part of the installed package."""
