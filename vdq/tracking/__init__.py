"""Runs on disk and in trackers: the registry of finished runs, tables, W&B and CSV logging."""

from vdq.tracking.registry import runs

__all__ = ["runs"]
