"""Video models that are pipelines of diffusers: read, driven from outside, never changed."""
