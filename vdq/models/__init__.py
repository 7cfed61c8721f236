"""Video models: the VideoModel contract and the networks behind it."""
