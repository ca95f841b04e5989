"""Diagnosis of a problem before it is trained: curvature, gradient noise, critical batches, stable steps."""

from __future__ import annotations

from bigopt.diagnose.run import diagnose

__all__ = ["diagnose"]
