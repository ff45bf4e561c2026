"""``nnunet-ext plan``: fingerprint, plan and preprocess a dataset with our planners."""

from __future__ import annotations

import click

from nnunet_ext.planning.names import NETWORKS, describe_networks


@click.command()
@click.option("-d", "dataset_id", type=int, required=True, help="Number of the dataset.")
@click.option("--preset", type=click.Choice(["default", "cpu", "published"]), default="default", show_default=True,
              help="cpu: small networks and patches that learn in minutes on two cores; published: patch, batch, "
                   "window, widths and training of the network's paper.")  # fmt: skip
@click.option("--network", type=click.Choice(list(NETWORKS)), default="plain", show_default=True,
              help=describe_networks())  # fmt: skip
@click.option(
    "--axial/--no-axial", default=True, show_default=True, help="Keep the head-foot axis first (axial slices)."
)
@click.option("-c", "configurations", multiple=True, default=("2d", "3d_fullres"), show_default=True,
              help="Configurations to preprocess.")  # fmt: skip
@click.option("--gpu-gb", type=float, help="GPU memory to plan for, in GB; not with --preset cpu.")
@click.option("--spacing-mm", type=click.FloatRange(min=0, min_open=True), nargs=3, metavar="Z Y X",
              help="Voxel size to resample to; default nnU-Net's choice.")  # fmt: skip
@click.option("-p", "plans_name", help="Name of the plans; default nnUNetPlansExt[CPU|Published][Context|RAS|…].")
@click.option("-np", "processes", type=int, default=2, show_default=True, help="Worker processes.")
@click.option("--no-pp", "no_preprocessing", is_flag=True, help="Plan only, do not preprocess.")
def command(
    dataset_id: int,
    preset: str,
    network: str,
    axial: bool,
    configurations: tuple[str, ...],
    gpu_gb: float | None,
    spacing_mm: tuple[float, float, float] | None,
    plans_name: str | None,
    processes: int,
    no_preprocessing: bool,
) -> None:
    """Plan a dataset: fingerprint, plans and preprocessed data, for stock nnU-Net and for our trainers."""
    if preset == "cpu" and gpu_gb is not None:
        raise click.UsageError("--preset cpu plans for no GPU; drop --gpu-gb, or take another preset.")
    from nnunet_ext.planning.plan import make_fingerprint, make_plans, preprocess

    make_fingerprint(dataset_id, processes)
    name = make_plans(dataset_id, preset, axial=axial, gpu_gb=gpu_gb, plans_name=plans_name, spacing_mm=spacing_mm,
                      network=network)  # fmt: skip
    if not no_preprocessing:
        preprocess(dataset_id, name, configurations, processes)
    click.echo(
        f"plans {name} are ready; next: nnunet-ext train RECIPE, or nnUNetv2_train {dataset_id} 3d_fullres 0 -p {name}"
    )
