"""What is done to CT and MR before nnU-Net sees them: arrays and grids in, arrays out."""
