"""Metrics of a finished run on a dataset: ``bigopt evaluate`` as a job for make, python and spark-submit.

::

    python pipelines/evaluate.py RUN_DIR --data URI
    spark-submit --master 'local[2]' pipelines/evaluate.py RUN_DIR --data URI
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # spark-submit knows only this file's own folder

if __name__ == "__main__":
    from pipelines.job import run

    run("evaluate")
