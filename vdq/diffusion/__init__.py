"""Diffusion in one place: schedule, guidance, noise, samplers and the step clock."""
