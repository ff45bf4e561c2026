"""``nnunet-ext train``: everything a recipe needs, in order."""

from __future__ import annotations

import click


@click.command()
@click.argument("recipe")
@click.option(
    "--jobs", type=click.IntRange(1), help="Trainings side by side; default: one per core on a CPU, one on a GPU."
)
@click.option("--quiet", is_flag=True, help="Print the final table only.")
def command(recipe: str, jobs: int | None, quiet: bool) -> None:
    """Train RECIPE (a .yaml file or a published name): plan, preprocess, all models and folds, regions, choice.

    Run it again after an interruption: what is done is kept.
    """
    from nnunet_ext.recipe.schema import Recipe
    from nnunet_ext.recipe.train import default_at_once, result_folder, train

    page = Recipe.load(recipe)
    table = train(
        page, jobs or default_at_once(page), (lambda line: None) if quiet else lambda line: click.echo(line, err=True)
    )
    click.echo(f"owners: {', '.join(f'{organ} {model}' for organ, model in table.owner.items())}")
    click.echo(f"written: {result_folder(page)}; next: nnunet-ext predict {recipe} -i IMAGES -o OUT")
