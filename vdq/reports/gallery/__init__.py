"""A static page that shows the videos of runs side by side; it opens from disk."""

from vdq.reports.gallery.write import write_gallery

__all__ = ["write_gallery"]
