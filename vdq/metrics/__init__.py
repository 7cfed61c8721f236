"""Video metrics, one file each: `clip` (CLIPSIM, CLIP-temp), `retrieval` (top-1), `fidelity` (PSNR, SSIM, latents).

The paper's other two, VQA-a and VQA-t, belong into `dover`, which is still to be written.
"""
