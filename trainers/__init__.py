"""nnU-Net's catalogue of our trainers: one re-export per file, found through ``nnUNet_extTrainer``."""
