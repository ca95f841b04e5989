"""Limits of the machine, measured in the run that they are compared with: memory, products, decoding, empty tasks."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.machine import cores
from benchmarks.sides import Base


class MemoryRead(Base):
    """Seconds to read X once: a compiled, vectorised sum over it, one thread a core.

    NumPy's own sum reaches two thirds of this.
    """

    def __init__(self, folder: str, passes: int = 5) -> None:
        import numba

        @numba.njit(nogil=True, fastmath=True)  # fastmath lets the compiler add in vectors
        def total(x: Any) -> float:
            sums = np.float32(0)
            for i in range(x.size):
                sums += x[i]
            return sums

        X, _ = data.load(folder)
        self._bytes, self._passes, self._total = X.nbytes, passes, total
        self._parts = np.array_split(X.reshape(-1), len(cores()))
        self._pool = ThreadPoolExecutor(len(self._parts))
        total(self._parts[0][:8])

    def run(self) -> dict[str, float]:
        """Return seconds of one pass, and the rate."""
        begin = time.perf_counter()
        for _ in range(self._passes):
            list(self._pool.map(self._total, self._parts))
        seconds = (time.perf_counter() - begin) / self._passes
        return {"seconds": seconds, "gb_per_s": self._bytes / seconds / 1e9}


class MatrixProduct(Base):
    """Seconds of the three products of a two-layer network's gradient (forward and both backward ones of layer 1).

    One BLAS thread a core, each on its half of the batch, as workers do; nothing else of the gradient is computed.
    """

    def __init__(self, rows: int, widths: list[int], repeats: int = 60) -> None:
        from threadpoolctl import threadpool_limits

        self._limit = threadpool_limits(1, "blas")
        self._repeats = repeats
        self._threads = len(cores())
        share = max(1, rows // self._threads)
        rng = np.random.default_rng(0)
        self._work = []
        self._flops = 0
        for _ in range(self._threads):
            products = []
            for k, (n, m) in enumerate(itertools.pairwise(widths)):
                z, W, delta = (rng.random(s, dtype=np.float32) for s in ((share, n), (n, m), (share, m)))
                products += [(z, W, np.empty((share, m), np.float32)), (z.T, delta, np.empty((n, m), np.float32))]
                self._flops += 4 * share * n * m
                if k:
                    products.append((delta, W.T, np.empty((share, n), np.float32)))
                    self._flops += 2 * share * n * m
            self._work.append(products)

    def _multiply(self, products: Any) -> None:
        for _ in range(self._repeats):
            for a, b, out in products:
                np.matmul(a, b, out=out)

    def run(self) -> dict[str, float]:
        """Return seconds of the products of one batch, and the rate."""
        seconds = _together([partial(self._multiply, p) for p in self._work]) / self._repeats
        return {"seconds": seconds, "gflop_per_s": self._flops / seconds / 1e9}


class Decode(Base):
    """Seconds to bring all chunks of a Zarr array from the page cache into memory: read, checksum, decode, no more.

    The codecs are the array's own, one thread a core works through the chunks, each into memory that is used again.
    """

    def __init__(self, path: str) -> None:
        import numcodecs
        import numcodecs.zstd
        import zarr

        array: Any = zarr.open_array(f"{path}/X", mode="r")
        names = [type(codec).__name__ for codec in array.metadata.codecs]
        self._zstd = numcodecs.zstd.Zstd() if "ZstdCodec" in names else None
        self._crc = "Crc32cCodec" in names
        if set(names) - {"BytesCodec", "ZstdCodec", "Crc32cCodec"}:
            raise ValueError(f"no decoder here for {names}")
        self._files = sorted((Path(path) / "X" / "c").glob("*/*"))
        self._chunk = int(np.prod(array.chunks)) * array.dtype.itemsize
        self._bytes = int(np.prod(array.shape)) * array.dtype.itemsize

    def _decode(self, files: list[Path]) -> None:
        import google_crc32c

        out = np.empty(self._chunk, dtype=np.uint8)
        for file in files:
            raw: Any = file.read_bytes()
            if self._crc:
                raw, found = raw[:-4], int.from_bytes(raw[-4:], "little")
                if google_crc32c.value(raw) != found:
                    raise ValueError(f"{file}: wrong checksum")
            if self._zstd is not None:
                self._zstd.decode(raw, out)
            else:
                out[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)

    def run(self) -> dict[str, float]:
        """Return seconds of one pass over the store, and the rate of decoded bytes."""
        k = len(cores())
        seconds = _together([partial(self._decode, self._files[i::k]) for i in range(k)])
        return {"seconds": seconds, "gb_per_s": self._bytes / seconds / 1e9}


def _together(jobs: list[Callable[[], None]]) -> float:
    """Run jobs in a thread each; return the seconds until all have ended."""
    failed: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if failed:
        raise failed[0]
    return seconds
