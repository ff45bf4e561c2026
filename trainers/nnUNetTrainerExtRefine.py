"""Trains a network in several passes over its own answer, with a loss on each; the last pass validates and predicts.

Use it with plans of ``nnunet-ext plan --network refine:…``; other plans' networks are refined in three passes.
"""

from nnunet_ext.training.refinement import nnUNetTrainerExtRefine

__all__ = ["nnUNetTrainerExtRefine"]
