"""First-order optimization for data that does not fit one machine.

``import bigopt`` loads no engine (Dask, Spark), no store (Zarr, Arrow) and no GPU library.
"""

__version__ = "0.1.0"
