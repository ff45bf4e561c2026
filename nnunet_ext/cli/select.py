"""``nnunet-ext select``: the owner of every organ, from cross-validation."""

from __future__ import annotations

import click


@click.command()
@click.argument("recipe")
def command(recipe: str) -> None:
    """Choose the best model per organ of a trained RECIPE; write fusion.json, print the honest estimate."""
    from nnunet_ext.recipe.places import Places
    from nnunet_ext.recipe.schema import Recipe
    from nnunet_ext.recipe.selection import select

    places = Places.of(Recipe.load(recipe))
    select(places, click.echo)
    click.echo(f"written: {places.fusion_table}")
