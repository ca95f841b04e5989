"""Data: partitions, sources, readers and writers of chunked datasets; this package imports with NumPy alone."""
