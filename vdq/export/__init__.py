"""Quantized models as folders of files that need nothing of the run that made them."""
