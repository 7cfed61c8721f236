"""LightningModules: sampling, calibration and evaluation. Device, precision and number of processes come from the
Trainer.
"""
