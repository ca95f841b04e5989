"""Write Fashion-MNIST into data/raw: fashion_mnist_train.npz and fashion_mnist_test.npz.

python pipelines/fetch_fashion_mnist.py [FOLDER]

Where the Debian package dataset-fashion-mnist is not installed, the committed sample of 2,000 + 500 images stands in
and the last line says SAMPLE.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bigopt.core.errors import BigoptError
from bigopt.data.demo import SAMPLE, fetch_fashion_mnist


def main() -> int:
    """Run and return the exit code."""
    sample = Path(__file__).resolve().parents[1] / SAMPLE
    try:
        paths, is_sample = fetch_fashion_mnist(Path(sys.argv[1] if len(sys.argv) > 1 else "data/raw"), sample=sample)
    except BigoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for path in paths:
        print(f"{path}  {path.stat().st_size:,} bytes")
    if is_sample:
        print("SAMPLE: 2,000 + 500 of the 70,000 images (install the Debian package dataset-fashion-mnist for all)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
