"""QVD, a neighbouring method."""
