"""Runs on disk and in trackers: the registry of finished runs, and logging to W&B or CSV files."""

from vdq.tracking.registry import runs

__all__ = ["runs"]
