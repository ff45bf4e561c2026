"""Train and validate one fold in this process, through nnU-Net's own entry point.

``python -m nnunet_ext.training.run 102 2d 0 -tr nnUNetTrainerExtNoMirror -p nnUNetPlansExtCPU -device cpu`` does what
``nnUNetv2_train`` does, with our trainers visible and continuing where a killed run stopped.
"""

from __future__ import annotations

import click

from nnunet_ext.locations import expose_trainers


@click.command()
@click.argument("dataset")
@click.argument("configuration")
@click.argument("fold")
@click.option("-tr", "trainer", default="nnUNetTrainerExtNoMirror", show_default=True)
@click.option("-p", "plans", default="nnUNetPlansExt", show_default=True)
@click.option("-device", "device", type=click.Choice(["cpu", "cuda", "mps"]), default="cuda", show_default=True)
def main(dataset: str, configuration: str, fold: str, trainer: str, plans: str, device: str) -> None:
    """Train one fold, or continue it, and predict its validation cases."""
    expose_trainers()
    import torch
    from nnunetv2.run.run_training import run_training

    run_training(dataset, configuration, fold, trainer, plans, continue_training=True, device=torch.device(device))


if __name__ == "__main__":
    main()
