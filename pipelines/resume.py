"""Go on with a run from its last checkpoint: ``bigopt resume`` as a job for make, python and spark-submit.

::

    python pipelines/resume.py RUN_DIR
    spark-submit --master 'local[2]' pipelines/resume.py RUN_DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # spark-submit knows only this file's own folder

if __name__ == "__main__":
    from pipelines.job import run

    run("resume")
