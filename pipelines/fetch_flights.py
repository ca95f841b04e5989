"""Copy the flights and the weather of New York City, 2013, into data/raw.

python pipelines/fetch_flights.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from bigopt.core.errors import BigoptError
from bigopt.data.demo import fetch_flights


def main() -> int:
    """Run and return the exit code."""
    try:
        for path in fetch_flights(Path(sys.argv[1] if len(sys.argv) > 1 else "data/raw")):
            print(f"{path}  {path.stat().st_size:,} bytes")
    except BigoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
