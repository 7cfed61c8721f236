"""Video metrics, one file each: `clip` (CLIPSIM, CLIP-temp), `fidelity` (PSNR, SSIM, latents).

The paper's other two, VQA-a and VQA-t, belong into `dover`, which is still to be written.
"""
