"""A composed model on one readable page: which models, where, on what; which organ comes from which."""

from nnunet_ext.recipe.schema import Recipe

__all__ = ["Recipe"]
