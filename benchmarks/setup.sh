#!/usr/bin/env bash
# Install what the benchmarks compare with (the extra `bench`) into .venv, pinned by the two constraints files. Says
# nothing and does nothing where all of it is there. PyTorch's CPU build is taken where its index can be reached: the
# one of PyPI brings gigabytes of CUDA along.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

modules='torch dask_ml sklearn dask distributed pyspark pyarrow matplotlib numba'
if .venv/bin/python -c "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, '$modules'.split())))"; then
    exit 0
fi
index=()
cpu=https://download.pytorch.org/whl/cpu
if curl --silent --fail --head --max-time 5 "$cpu/" >/dev/null 2>&1; then index=(--extra-index-url "$cpu"); fi
echo 'setup: installing the peers of the benchmarks (the first time: a few minutes)' >&2
.venv/bin/python -m pip --disable-pip-version-check --quiet install \
    -c constraints.txt -c benchmarks/constraints.txt "${index[@]}" -e '.[bench]'
