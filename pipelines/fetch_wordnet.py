"""Write the glosses of WordNet 3.0 into data/raw/wordnet.csv: gloss, part of speech, lexical file.

python pipelines/fetch_wordnet.py [FOLDER]

They are read from the Debian package wordnet-base; where it is not installed it is downloaded by apt-get and unpacked
in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bigopt.core.errors import BigoptError
from bigopt.data.demo_wordnet import fetch_wordnet


def main() -> int:
    """Run and return the exit code."""
    try:
        path, rows = fetch_wordnet(Path(sys.argv[1] if len(sys.argv) > 1 else "data/raw"))
    except BigoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{path}  {rows:,} glosses, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
