"""Augmentations in the form of batchgeneratorsv2, for use in trainers."""
