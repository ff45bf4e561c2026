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

    A study (a page with methods instead of models) adds noise, trains every method and seed, and writes its table.
    Run it again after an interruption: what is done is kept.
    """
    from nnunet_ext.recipe.train import default_at_once, result_folder, train
    from nnunet_ext.study.page import Study, load_page

    page = load_page(recipe)
    at_once = jobs or default_at_once(page.device)

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if isinstance(page, Study):
        from nnunet_ext.study.run import run_study

        folder, _ = run_study(page, recipe, at_once, say)
        click.echo((folder / "table.md").read_text(encoding="utf-8"))
        click.echo(f"written: {folder}")
        return
    table = train(page, at_once, say)
    click.echo(f"owners: {', '.join(f'{organ} {model}' for organ, model in table.owner.items())}")
    click.echo(f"written: {result_folder(page)}; next: nnunet-ext predict {recipe} -i IMAGES -o OUT")
