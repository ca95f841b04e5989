"""Train many confs on one engine: ``bigopt sweep`` as a job for make, python and spark-submit.

::

    python pipelines/sweep.py -c conf/sweeps/flights.yml
    spark-submit --master 'local[2]' pipelines/sweep.py -c conf/sweeps/flights.yml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # spark-submit knows only this file's own folder

if __name__ == "__main__":
    from pipelines.job import run

    run("sweep")
