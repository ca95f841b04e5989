"""Datasets in an object store: a local server that speaks S3, read with range requests, trained to the same bits.

The server is moto's, in an environment of its own (``make s3``), for its dependencies are not bigopt's.
"""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from problems import files, run_on

from bigopt.core.errors import DataError
from bigopt.data.inspect import inspect_dataset

SERVER = Path(__file__).parents[2] / ".venv-s3" / "bin" / "moto_server"
pytestmark = [pytest.mark.all, pytest.mark.skipif(not SERVER.exists(), reason="no S3 server: make s3")]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server on a free port of the loopback, with a bucket ``data``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(SERVER), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            address = f"http://127.0.0.1:{port}"
            urllib.request.urlopen(urllib.request.Request(f"{address}/data", method="PUT")).read()
            yield address
        finally:
            server.terminate()


def options(endpoint: str) -> dict[str, object]:
    """What ``data.storage_options`` needs to reach the server."""
    return {
        "endpoint": endpoint,
        "access_key_id": "test",
        "secret_access_key": "test",
        "region": "us-east-1",
        "client_options": {"allow_http": True},
    }


def put(path: Path, endpoint: str) -> str:
    """Copy a dataset into the bucket; return its URI."""
    from obstore.store import S3Store

    store = S3Store("data", **options(endpoint))
    for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
        store.put(str(file.relative_to(path.parent)), file.read_bytes())
    return f"s3://data/{path.name}"


@pytest.mark.parametrize("form", ["zarr", "parquet"])
@pytest.mark.parametrize("backend", ["local", "dask"])
def test_a_dataset_in_a_bucket_trains_to_the_same_bits(tmp_path: Path, endpoint: str, form: str, backend: str) -> None:
    path = files(tmp_path, "four", form)
    keys = ["model.name=softmax", "batch.size=50", "stop.epochs=2", "backend.workers=2"]
    there = f"data.storage_options={options(endpoint)}".replace("True", "true")
    far = run_on(put(path, endpoint), tmp_path / "far", *keys, there, f"backend.name={backend}")  # type: ignore[arg-type]
    assert far["params_sha256"] == run_on(path, tmp_path / "near", *keys)["params_sha256"]


def test_damage_in_a_bucket_is_found(tmp_path: Path, endpoint: str) -> None:
    path = files(tmp_path, "four", "zarr")
    chunk = max((p for p in path.rglob("*") if p.is_file() and "/c/" in str(p)), key=lambda p: p.stat().st_size)
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    uri = put(path, endpoint)
    with pytest.raises(DataError, match=r"four\.zarr"):
        run_on(
            uri,  # type: ignore[arg-type]
            tmp_path / "run",
            "model.name=softmax",
            "batch.size=50",
            "stop.epochs=1",
            f"data.storage_options={options(endpoint)}".replace("True", "true"),
        )


def test_what_is_not_there_is_one_line(endpoint: str) -> None:
    with pytest.raises(DataError, match="nothing"):
        inspect_dataset("s3://data/nothing.zarr", storage_options=options(endpoint))
