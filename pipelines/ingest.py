"""Raw files to a partitioned dataset: ``bigopt ingest`` as a job for make, python and spark-submit.

::

    python pipelines/ingest.py -c conf/flights.yml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # spark-submit knows only this file's own folder

if __name__ == "__main__":
    from pipelines.job import run

    run("ingest")
