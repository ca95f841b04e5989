"""Sweeps: many confs that differ in some keys, run on one engine that keeps its workers and their decoded rows.

::

    spec      what sweep.yml says, read as strictly as a conf
    trials    the confs it means: a grid, or random draws that depend on seed, number and key alone
    run       one trial after another, in rungs where halving is on; what is finished is kept
    report    the ranked table: terminal, sweep.csv, sweep.json
    picture   the metric against every key, and all learning curves
"""

from bigopt.sweep.run import sweep
from bigopt.sweep.spec import Spec, read_spec

__all__ = ["Spec", "read_spec", "sweep"]
