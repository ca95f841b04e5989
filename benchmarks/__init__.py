"""bigopt beside what a user would pick instead, and beside the physical limits, in one run on the same data.

The ideas, which are benchopt's for the most part:

- A **row** of the table is a module of `benchmarks.rows`: what is computed, by whom, and what the figures mean.
- A **side** is who computes it: bigopt, a peer, or a limit of the machine. Each side is a class that lives in a process
  of its own (`benchmarks.player`), so that nobody's threads, JVM or settings disturb another's. Data is made before the
  clock starts, and the clock stops while anything is evaluated. A side that cannot run says why, and is skipped.
- A **round** runs every side once, in rotating order. A figure (a ratio, a difference, a share of a limit) is computed
  within a round, and reported as median and quartiles over the rounds: what changes from minute to minute cancels.
- A run on **busy cores** does not count and is repeated within its round (`benchmarks.rounds`; the rule is
  `benchmarks.statistics.disagreement`): with half a core missing, PyTorch's OpenMP is up to 40 times slower, and any
  win over it is free.

``python -m benchmarks --help``, or ``make bench`` and ``make bench-quick``; see docs/benchmarks.md.
"""
