"""Data: what rows are (`source`), how they are opened (`open`), written (`writer`) and described (`inspect`).

The package imports with NumPy alone; `zarrstore` and `parquet*` are imported when such a dataset is met.
"""
