"""Strategies: when updates are applied and to what. Machines without I/O: arrivals in, orders out."""
