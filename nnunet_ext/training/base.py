"""The base of all our trainers: settings from the plans, exact resume, checkpoints that survive a power cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch._dynamo import OptimizedModule

from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.roi.provenance import CASES_FILE
from nnunet_ext.settings import PLANS_BLOCK, resolve_settings
from nnunet_ext.training.augmentation import augmentation
from nnunet_ext.training.checkpoint import is_latest, plain, previous_of, read_with_fall_back, write_checkpoint
from nnunet_ext.training.losses import ExclusiveBCELoss
from nnunet_ext.training.plateau import PlateauScheduler, plateau_after
from nnunet_ext.training.present import PresentLabels
from nnunet_ext.training.progress import PacedPlot

RANK_STRIDE = 100_003
"""Distance between the seeds of two ranks; more than any number of epochs."""


class EarlyStop(Exception):  # noqa: N818 (a decision, no error)
    """Raised at the start of an epoch that is not to be trained any more."""


class nnUNetTrainerExt(PresentLabels):
    """nnU-Net's own training, with settings from the plans, exact resume and safe checkpoints.

    Use it as the base of a trainer, or as ``-tr nnUNetTrainerExt`` where the stock augmentation, mirroring included,
    is wanted. For organs with a left and a right use nnUNetTrainerExtNoMirror or nnUNetTrainerExtMirrorSwap.

    Every setting of ``settings.TrainerSettings`` may be a class attribute of a subclass or a key of the plans
    block ``configurations.<name>.nnunet_ext``. A run that was killed and continued with ``--c`` ends with the same
    weights as an undisturbed one, on the CPU with ``nnUNet_n_proc_DA=0``: every epoch is re-seeded, and the blur
    augmentation does not choose its algorithm by a stop-watch.

    Raises:
        InputError: the plans block has an unknown key or a value of the wrong type.
    """

    _best_ema: float | None

    iteration = 0

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = self.configuration_manager.configuration.get(PLANS_BLOCK, {})
        self.settings = resolve_settings(type(self), block, f"plans, configurations.{configuration}.{PLANS_BLOCK}")
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr",
                     "weight_decay", "oversample_foreground_percent", "save_every"):  # fmt: skip
            setattr(self, name, getattr(self.settings, name))
        self.enable_deep_supervision = self.settings.deep_supervision
        if self.settings.batch_size is not None:
            self.configuration_manager.configuration["batch_size"] = self.settings.batch_size
        if self.device.type == "cpu" and self.settings.cpu_threads is not None:
            torch.set_num_threads(self.settings.cpu_threads)
        self.progress_plot = PacedPlot(self.logger.plot_progress_png)
        self.logger.plot_progress_png = self.progress_plot
        self.print_to_log_file(f"nnunet_ext settings: {self.settings.model_dump_json()}")

    # --- the same numbers every time ---------------------------------------------------------------------------------

    def seed_everything(self, seed: int) -> None:
        """Seed python, numpy and torch (all devices); every rank of a distributed training draws other patches."""
        seed += RANK_STRIDE * self.local_rank
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (nnU-Net's loader draws from numpy's global state)
        torch.manual_seed(seed)

    def initialize(self) -> None:
        """Build network, optimiser and loss from ``seed``; as stock otherwise."""
        self.seed_everything(self.settings.seed)
        super().initialize()

    def on_epoch_start(self) -> None:
        """Start epoch ``e`` as a resumed run does: from ``seed + e`` and the logged numbers of a checkpoint."""
        self.seed_everything(self.settings.seed + self.current_epoch)
        self.logger.load_checkpoint(plain(self.logger.get_checkpoint()))  # float32 scalars would round otherwise
        self._stop_early()
        super().on_epoch_start()

    # --- the end -----------------------------------------------------------------------------------------------------

    def run_training(self) -> None:
        """As stock; a training that stops early ends as one that reached its last epoch."""
        try:
            super().run_training()
        except EarlyStop:
            self.on_train_end()

    def _stop_early(self) -> None:
        """Decide from the logged history alone, before an epoch, so that a continued run decides the same.

        Raises:
            EarlyStop: there is nothing to gain.
        """
        limit = self.settings.early_stop
        if limit is not None and (waited := epochs_without_best(self.logger.get_value("ema_fg_dice", None))) >= limit:
            self.print_to_log_file(
                f"Stopping early after epoch {self.current_epoch - 1}: no new best for {waited} epochs."
            )
            raise EarlyStop
        if self.settings.lr_schedule == "plateau":
            plateau = plateau_after(self.training_losses(), self.initial_lr)
            if plateau.is_over:
                self.print_to_log_file(
                    f"Stopping after epoch {self.current_epoch - 1}: no lower training loss for {plateau.waited} "
                    f"epochs, and the learning rate is down to {plateau.rate:.1e}."
                )
                raise EarlyStop

    def training_losses(self) -> list[float]:
        """Mean training loss of every epoch so far."""
        return list(self.logger.get_value("train_losses", None)[: self.current_epoch])

    # --- which cases and organs ---------------------------------------------------------------------------------------

    def leaves_out_absent(self) -> bool:
        """As the setting ``present_labels`` says."""
        return self.settings.present_labels == "leave_out"

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """As stock; remembers the cases for ``cases.json``."""
        datasets = super().get_tr_and_val_datasets()
        self.cases = {name: sorted(data.identifiers) for name, data in zip(("train", "val"), datasets, strict=True)}
        return datasets

    def on_train_start(self) -> None:
        """As stock; writes ``cases.json``, so that anyone can tell which predictions are out-of-fold."""
        super().on_train_start()
        if self.local_rank == 0 and self.cases is not None:
            path = Path(self.output_folder, CASES_FILE)
            before = read_json(path)["train"] if self.current_epoch > 0 and path.exists() else []
            if set(before) - set(self.cases["train"]):
                self.print_to_log_file("The split has changed since this training began; cases.json keeps both.")
            write_json(path, {**self.cases, "train": sorted({*before, *self.cases["train"]})})

    # --- loss --------------------------------------------------------------------------------------------------------

    def _build_loss(self) -> torch.nn.Module:
        """Stock's loss with another cross-entropy, or none, so that regions, ignore label and its wrapper stay."""
        loss = super()._build_loss()
        inner = getattr(loss, "loss", loss)
        if self.settings.loss == "dice":
            inner.weight_ce = 0
        elif self.settings.loss in ("bce", "bce_dice") and not self.label_manager.has_regions:  # regions have theirs
            inner.ce = ExclusiveBCELoss(self.label_manager.ignore_label)
        if self.settings.loss == "bce":
            inner.weight_dice = 0
        return loss

    # --- optimiser ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Optimiser and learning-rate schedule of the settings."""
        s, parameters = self.settings, self.network.parameters()
        optimizer: torch.optim.Optimizer
        if s.optimizer == "SGD":
            optimizer = torch.optim.SGD(
                parameters, s.initial_lr, weight_decay=s.weight_decay, momentum=0.99, nesterov=True
            )
        else:
            kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[s.optimizer]
            optimizer = kind(parameters, lr=s.initial_lr, weight_decay=s.weight_decay)
        if s.lr_schedule == "plateau":
            return optimizer, PlateauScheduler(optimizer, s.initial_lr, self.training_losses)
        exponent = {"poly": 0.9, "constant": 0.0}[s.lr_schedule]
        return optimizer, PolyLRScheduler(optimizer, s.initial_lr, s.num_epochs, exponent)

    def on_train_epoch_start(self) -> None:
        """As stock; counts the iterations of the epoch from here."""
        super().on_train_epoch_start()
        self.iteration = 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As stock, with the learning rate of this iteration where the settings ask for it."""
        self.start_iteration()
        with self.present_only(batch):
            return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As stock, on contoured organs."""
        with self.present_only(batch):
            return super().validation_step(batch)

    def start_iteration(self) -> None:
        """Set the learning rate of this iteration where the settings ask for it, and count it."""
        if self.settings.lr_update == "iteration":
            self.lr_scheduler.step(self.current_epoch + self.iteration / self.num_iterations_per_epoch)
        self.iteration += 1

    # --- augmentation ------------------------------------------------------------------------------------------------

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """Stock augmentation, made repeatable, with ``own_transforms`` before the padding label is removed."""
        composed = super().get_training_transforms(*args, **kwargs)
        return augmentation(composed.transforms, self.settings.augmentation, self.own_transforms())

    def own_transforms(self) -> list[BasicTransform]:
        """Transforms that a subclass adds; labels are integers there, padding is −1."""
        return []

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """As stock; "flips" and "flips_noise" rotate nothing, and read no more than the patch."""
        choice = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.store_prediction_axes(choice[-1])
        if self.settings.augmentation != "full":
            return (0.0, 0.0), False, list(self.configuration_manager.patch_size), choice[-1]
        return choice

    def store_prediction_axes(self, axes: tuple[int, ...]) -> None:
        """Set what the checkpoint tells every predictor; None, never (), because stock takes the maximum."""
        self.inference_allowed_mirroring_axes = (axes or None) if self.settings.mirror_at_prediction else None

    # --- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def bare_network(self) -> torch.nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def checkpoint_content(self) -> dict[str, Any]:
        """What a checkpoint holds: stock nnU-Net's keys, and the settings under ``nnunet_ext``."""
        return {
            "network_weights": self.bare_network.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": {**self.my_init_kwargs, "device": str(self.device)},
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnunet_ext": {"settings": self.settings.model_dump()},
        }

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint whole or not at all; ``checkpoint_latest`` keeps its predecessor as the fall-back."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        path = Path(filename)
        if is_latest(path):
            self._save_new_best(path)
        write_checkpoint(self.checkpoint_content(), path, previous_of(path) if is_latest(path) else None)

    def _save_new_best(self, latest: Path) -> None:
        """Note a new best before the latest is written, not after as stock, which lets a continued run forget it."""
        score = self.logger.get_value("ema_fg_dice", step=-1)
        if self._best_ema is None or score > self._best_ema:
            self._best_ema = score
            self.print_to_log_file(f"New best EMA pseudo Dice: {score:.4f}")
            self.save_checkpoint(str(latest.with_name("checkpoint_best.pth")))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint without running code from it; a damaged latest one falls back to the last good one.

        Raises:
            InputError: no readable checkpoint is left, or the file is another trainer's damage.
        """
        if not self.was_initialized:
            self.initialize()
        content = (
            filename_or_checkpoint
            if isinstance(filename_or_checkpoint, dict)
            else read_with_fall_back(Path(filename_or_checkpoint), self.device, self.print_to_log_file)
        )
        self.bare_network.load_state_dict({k.removeprefix("module."): v for k, v in content["network_weights"].items()})
        self.current_epoch = content["current_epoch"]
        self.logger.load_checkpoint(content["logging"])
        self._best_ema = content["_best_ema"]
        self.inference_allowed_mirroring_axes = content.get(
            "inference_allowed_mirroring_axes", self.inference_allowed_mirroring_axes
        )
        self.optimizer.load_state_dict(content["optimizer_state"])
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])

    def on_train_end(self) -> None:
        """As stock; the fall-back of ``checkpoint_latest`` goes with it, and ``progress.png`` is of the last epoch."""
        super().on_train_end()
        if self.local_rank == 0:
            self.progress_plot.finish(self.output_folder)
            previous_of(Path(self.output_folder, "checkpoint_latest.pth")).unlink(missing_ok=True)


def epochs_without_best(history: Sequence[float]) -> int:
    """Epochs since the last one that was better than all before it; a score that is not a number is never better."""
    best, when = -float("inf"), -1
    for epoch, score in enumerate(history):
        if score > best:
            best, when = score, epoch
    return len(history) - 1 - when
