"""DVD-Quant, a neighbouring method."""
