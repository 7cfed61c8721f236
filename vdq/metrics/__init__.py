"""Video metrics, each in a file of its own, and the catalogue of what their values are called.

`clip`: CLIPSIM and CLIP-temp; `retrieval`: top-1; `dover`: VQA-a and VQA-t; `fidelity`: PSNR, SSIM and the distance of
latents; `lpips`; `fvd`. A new one is a subclass of `base.VideoMetric` and an entry of a conf/metrics/*.yaml.
"""
