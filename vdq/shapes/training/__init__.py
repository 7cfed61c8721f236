"""Training of the testbed's networks, one LightningModule a file."""
