"""Losses and what steers them: formulas on tensors, without files and without nnU-Net."""
