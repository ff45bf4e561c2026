"""Trainers that weigh every sample by how well its contours seem to fit the image."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import autocast, distributed, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.errors import InputError
from nnunet_ext.losses.competition import Competition, Samples, joined
from nnunet_ext.losses.per_sample import PerSampleLoss
from nnunet_ext.losses.quality import Gather, Verdict, alone, step_loss
from nnunet_ext.networks.quality_net import QualityNet
from nnunet_ext.roi.provenance import HELD_OUT_CSV
from nnunet_ext.training.checkpoint import write_checkpoint
from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror
from nnunet_ext.training.quality_files import LATEST, PREVIOUS, is_trained, quality_file, read_quality, write_quality
from nnunet_ext.training.quality_gather import gather_rows
from nnunet_ext.training.quality_held_out import case_answer, write_held_out
from nnunet_ext.training.quality_journal import CASES_CSV, CaseTable, Journal
from nnunet_ext.training.quality_samples import Answer, case_number, label_channels, measured, per_sample_loss

CLIP = 12
"""nnU-Net's limit of the gradient's norm, for each of the two networks."""


class nnUNetTrainerExtQuality(nnUNetTrainerExtNoMirror):
    """Trains with weights: a second network (QAM) learns from the losses which contours deserve less trust.

    Use it where contours come from many hands and up to half are grossly wrong, too large, too small or shifted.
    Contours are judged by the middle one of their organ, so it may be three quarters as long as they are wrong in both
    directions; if most are wrong in the same, no weighting that is driven by losses can find the right minority. It
    needs a training that goes on well after the organs are known; a short one gains nothing.

    The first tenth of the epochs has equal weights, then the scores rise to full strength until 40 %. Patches with less
    than 100 labelled voxels keep weight 1, and patches with an organ that the network does not know yet lose none. The
    QAM sees image and contours, never a previous segmentation, and is not needed for prediction. Validation losses are
    unweighted. ``quality_weights.csv`` beside the checkpoints lists the weights of the cases by epoch, 1 being that of
    plain training; the log warns when weights follow size. Everything is adjustable under ``quality`` of the settings.
    The training loss of the log is unweighted too, so that it compares.

    The loss is nnU-Net's, but its Dice is per sample even where the plans have batch_dice (2D), because it is samples
    that have weights. So the control with equal weights is this trainer with ``"quality": {"burn_in": 1, "ramp": 1}``;
    ``"lambda_": 0`` or another trainer may have another loss.

    Source: QAM + OCM (Zhu, Shi, Wu 2019: Pick-and-Learn, MICCAI; JSRT chest organs, batch 32), whose own form is
    nnUNetTrainerExtQualityLiteral. Differs, because the literal form can settle on eroded or on dilated contours:
    driver, burn-in, ramp, centre and competition are ours; nnU-Net's loss and optimiser; 31 samples remembered where
    few compete.

    Of a batch of 2 one patch must contain foreground, of 3 two (``oversample_foreground_percent`` 0.66); ask for 1.0
    where all shall compete.

    Raises:
        InputError: settings under which nothing competes.
    """

    mirror = "auto"
    oversample_foreground_percent = 0.66
    quality: ClassVar[dict[str, Any]] = {}

    qam: Any = None
    qam_optimizer: torch.optim.Optimizer
    per_sample_loss: PerSampleLoss
    competition: Competition
    gather: Gather = staticmethod(alone)
    processes = 1
    journal: Journal
    case_table: CaseTable
    qam_trained = False
    """Whether the QAM has had a step in which samples competed; before, its answers are noise."""
    qam_lost = False
    """Whether the segmenter was loaded without the QAM that was trained beside it."""
    _untrained: Mapping[str, torch.Tensor]
    """Weights of the QAM at the beginning, the same in all processes."""

    # --- parts -------------------------------------------------------------------------------------------------------

    @property
    def weighs(self) -> bool:
        """Whether there is anything to do beside plain training."""
        return self.settings.quality.lambda_ > 0

    def initialize(self) -> None:
        """As the base; builds the QAM with its optimiser, the loss per sample and the competition."""
        super().initialize()
        if not self.weighs or self.qam is not None:
            return
        s = self.settings.quality
        if s.accumulate * self.configuration_manager.batch_size + s.memory == 1:
            raise InputError(
                "a batch of 1 has nothing to compete with; set quality.memory or quality.accumulate in the plans, or "
                "a larger batch_size."
            )
        self.per_sample_loss = per_sample_loss(self.settings.loss, self.label_manager, self.loss)
        self.case_table = CaseTable(Path(self.output_folder, CASES_CSV))
        self.competition = self._build_competition()
        self.qam = self._build_qam().to(self.device)
        self.qam_optimizer = torch.optim.Adam(self.qam.parameters(), lr=s.qam_lr)
        if self._do_i_compile():
            self.qam = torch.compile(self.qam)
        if self.is_ddp:
            self.qam = DistributedDataParallel(self.qam, device_ids=[self.local_rank])
            self.gather = partial(gather_rows, device=self.device)
            self.processes = distributed.get_world_size()
        self._untrained = copy.deepcopy(self.bare_qam.state_dict())

    def _build_competition(self) -> Competition:
        s = self.settings.quality
        return Competition(
            self._organs,
            bound=s.lambda_,
            bounded=s.ocm,
            centre=s.centre,
            driver=s.driver,
            ready_dice=s.ready_dice,
            min_foreground=s.min_foreground,
            memory=s.memory,
            case_memory=s.case_memory,
        )

    @property
    def _organs(self) -> int:
        heads: int = self.label_manager.num_segmentation_heads
        return heads if self.label_manager.has_regions else heads - 1

    @property
    def _image_channels(self) -> int:
        """Channels of the image; a cascade appends its previous segmentation, which would give the contour away."""
        appended = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        channels: int = self.num_input_channels - appended
        return channels

    def _build_qam(self) -> nn.Module:
        """The QAM for image, heads and, with an ignore label, validity; it pools as the planned network does."""
        labels = self.label_manager.num_segmentation_heads + self.label_manager.has_ignore_label
        dim = len(self.configuration_manager.patch_size)
        planned = [list(stride) for stride in self.configuration_manager.pool_op_kernel_sizes][1:5]
        strides = planned + [[2] * dim] * (4 - len(planned))
        return QualityNet(self._image_channels + labels, dim, strides=strides)

    @property
    def bare_qam(self) -> nn.Module:
        """The QAM without the wrappers of DDP and torch.compile."""
        qam = self.qam.module if self.is_ddp else self.qam
        return qam._orig_mod if isinstance(qam, OptimizedModule) else qam

    # --- a step ------------------------------------------------------------------------------------------------------

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One optimiser step of segmenter and QAM; the loss that it returns is unweighted."""
        if not self.weighs:
            return super().train_step(batch)
        self.start_iteration()
        strength = self.settings.quality.strength(
            (self.current_epoch + (self.iteration - 1) / self.num_iterations_per_epoch) / self.num_epochs
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.qam_optimizer.zero_grad(set_to_none=True)
        if self.settings.quality.accumulate == 1:
            answer = self.answer(batch, strength)
            (verdict,), total = self.verdicts([answer.samples], strength)
            self.backward(answer, verdict, total, strength)
            losses = answer.losses.detach()
        else:
            losses = self.accumulate(batch, strength)
        self.update_weights(qam=strength is not None)
        return {"loss": losses.mean().cpu().numpy()}

    def accumulate(self, batch: dict[str, Any], strength: float | None) -> torch.Tensor:
        """Gradients of several batches as of one, with the memory of one: all are seen twice, first without gradient.

        A norm that keeps running statistics (nnU-Net's do not) takes in every batch twice.

        Source: ours; exact, because weights and pulls need numbers of all batches, but their gradients of one only.
        """
        others = (next(self.dataloader_train) for _ in range(self.settings.quality.accumulate - 1))
        batches = [batch, *others]
        with torch.no_grad(), self.same_randomness():
            samples = [self.answer(part, strength).samples for part in batches]
        verdicts, total = self.verdicts(samples, strength)
        losses = []
        for part, verdict in zip(batches, verdicts, strict=True):
            answer = self.answer(part, strength)
            self.backward(answer, verdict, total, strength)
            losses.append(answer.losses.detach())
        return torch.cat(losses)

    @contextlib.contextmanager
    def same_randomness(self) -> Iterator[None]:
        """What follows draws the same dropout as what is inside, on CPUs and CUDA devices."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield

    def answer(self, batch: dict[str, Any], strength: float | None) -> Answer:
        """Forward passes of both networks, and the numbers that a competition needs."""
        with self.present_only(batch):
            image = batch["data"].to(self.device, non_blocking=True)
            target = _on_device(batch["target"], self.device)
            heads, valid = label_channels(target[0] if isinstance(target, list) else target, self.label_manager)
            with autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
                output = self.network(image)
                answers = None if strength is None else self.qam(self.qam_inputs(image, heads, valid))
        losses = self.per_sample_loss(output, target)
        samples = measured(
            self.final_logits(output, target),
            heads,
            valid,
            regions=self.label_manager.has_regions,
            spacing_mm=self.configuration_manager.spacing[2 - image.ndim :],
            losses=losses if self.settings.quality.driver != "loss" else self.measures(losses, batch["keys"]),
            answers=answers,
            keys=batch["keys"],
        )
        return Answer(losses, answers, samples)

    def measures(self, losses: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """Losses that say something about contours: those of a case that lacks organs are low for that alone, so NaN.

        Without this a case that nobody contoured wins all the weight.
        """
        lacking = torch.tensor([str(key) in self.absent_in_cases() for key in keys], device=losses.device)
        return losses.detach().masked_fill(lacking, torch.nan)

    def qam_inputs(self, image: torch.Tensor, heads: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Image and labels as the QAM sees them; what is to be ignored has no label and is marked."""
        parts = [image[:, : self._image_channels]]
        parts += [heads.to(image)] if valid is None else [(heads & valid).to(image), valid.to(image)]
        return torch.cat(parts, 1)

    def final_logits(self, output: Any, target: Any) -> torch.Tensor:
        """The finest output of the last pass."""
        last = output[-1] if self.per_sample_loss.pass_weights is not None else output
        return last[0] if isinstance(target, list) else last

    def verdicts(self, samples: Sequence[Samples], strength: float | None) -> tuple[list[Verdict], int]:
        """Of each of these batches, after a competition with those of all processes; and the number of all samples."""
        everyone, start = self.gather(joined(samples).rows())
        everyone = Samples.of_rows(everyone)
        outcome = self.competition.judge(everyone, strength)
        self.qam_trained |= bool(strength) and bool(outcome.verdict.pull.any())
        self.journal.add(everyone, outcome)
        verdicts = []
        for part in samples:
            mine = slice(start, start + len(part.loss))
            columns = (column[mine].to(part.loss.dtype) for column in outcome.verdict)  # not every device has doubles
            verdicts.append(Verdict(*(column.to(self.device) for column in columns)))
            start = mine.stop
        return verdicts, len(everyone.loss)

    def backward(self, answer: Answer, verdict: Verdict, total: int, strength: float | None) -> None:
        """Add the gradients of a batch, of ``total`` samples in this step, to both networks."""
        answers = answer.answers
        scores = None if answers is None or strength is None else self.competition.score(answers, strength)
        loss = step_loss(answer.losses, scores, verdict, total, self.processes)
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()

    def update_weights(self, *, qam: bool) -> None:
        """Step both optimisers, each with its own limit; the QAM's only after burn-in and by a finite gradient."""
        pairs = [(self.optimizer, self.network), *([(self.qam_optimizer, self.qam)] if qam else [])]
        for optimizer, network in pairs:
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            if self.grad_scaler is not None:
                self.grad_scaler.step(optimizer)
            elif network is not self.qam or bool(norm.isfinite()):
                optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    # --- an epoch ----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """As the base; names the cases that cannot compete."""
        super().on_train_start()
        train = self.cases["train"] if self.cases else []
        lacking = sum(case in self.absent_in_cases() for case in train)
        if self.weighs and self.settings.quality.driver == "loss" and lacking:
            self.print_to_log_file(
                f"WARNING: {lacking} of {len(train)} training cases keep weight 1, because the loss of a case where "
                'organs were not contoured says nothing about its contours; "quality": {"driver": "readiness"} judges '
                "them by the organs that they have."
            )

    def on_train_epoch_start(self) -> None:
        """As the base, with an empty journal."""
        super().on_train_epoch_start()
        self.journal = Journal()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """As stock; reports the weights."""
        super().on_train_epoch_end(train_outputs)
        if not self.weighs or self.local_rank != 0 or self.cases is None:
            return
        summary = self.journal.summary()
        for line in (summary, *summary.warnings(), *self.unknown_organs()):
            self.print_to_log_file(line)
        names = {case_number(case): case for case in self.cases["train"]}
        self.case_table.add(self.current_epoch, self.journal.rows(self.current_epoch, names))

    def unknown_organs(self) -> list[str]:
        """Where samples should compete by now, the organs that are not known well enough to judge contours by them."""
        s, readiness = self.settings.quality, self.competition.readiness
        begun = (self.current_epoch + 1) / self.num_epochs > s.burn_in
        if s.driver != "readiness" or not begun or s.burn_in == 1 or bool(readiness.ready.all()):
            return []
        organs = self.head_names[-self._organs :]
        numbers = zip(organs, readiness.dice.tolist(), readiness.ready.tolist(), strict=True)
        listed = ", ".join(f"{organ} {dice:.2f}" for organ, dice, ready in numbers if not ready)
        if bool(readiness.ready.any()):
            return [f"Quality: not known yet, so samples that show them do not lose weight: {listed}"]
        return [
            f"WARNING: every sample keeps weight 1, because no organ's soft Dice ({listed}; upper quartile) is "
            f"above quality.ready_dice {s.ready_dice}; lower it, or train longer."
        ]

    # --- the end -----------------------------------------------------------------------------------------------------

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As the base; lets the QAM judge the contours of the held-out cases, for ``nnunet-ext audit``."""
        super().perform_actual_validation(save_probabilities)
        if self.weighs and self.local_rank == 0:
            self.judge_held_out()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def judge_held_out(self) -> None:
        """Write the score of every held-out case beside the checkpoints; none of a QAM that was never trained."""
        path = Path(self.output_folder, HELD_OUT_CSV)
        if self.qam_lost and not self.qam_trained:
            kept = "stays as it was" if path.exists() else "is not written"
            self.print_to_log_file(f"{HELD_OUT_CSV} {kept}, because the QAM's file beside the checkpoint is missing.")
            return
        if not self.qam_trained:
            path.unlink(missing_ok=True)
            self.print_to_log_file(
                f"No {HELD_OUT_CSV}: the QAM was never trained, because burn_in lasted to the end, no organ was known "
                "well enough (quality.ready_dice), or no case could compete."
            )
            return
        _, cases = self.get_tr_and_val_datasets()
        absent, scores = self.absent_in_cases(), {}
        for case in cases.identifiers:
            image, labels, _, _ = cases.load_case(case)
            answer = case_answer(
                np.asarray(image)[: self._image_channels], np.asarray(labels), self.configuration_manager.patch_size,
                self.label_manager, self.settings.quality.min_foreground, self.ask_qam, absent.get(case),
            )  # fmt: skip
            scores[case] = float(self.competition.score(torch.tensor([answer]), 1.0))
        write_held_out(path, scores)

    def ask_qam(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Answers (B,) of the QAM to images and targets as they are trained on."""
        heads, valid = label_channels(target, self.label_manager)
        return self.bare_qam(self.qam_inputs(image, heads, valid).to(self.device)).float().cpu()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """As the base, and before it QAM, its optimiser and the memories in a file beside it."""
        if self.weighs and self.local_rank == 0 and not self.disable_checkpointing:
            content = {
                "qam_weights": self.bare_qam.state_dict(),
                "qam_optimizer": self.qam_optimizer.state_dict(),
                "competition": self.competition.state_dict(),
                "qam_trained": self.qam_trained,
                "current_epoch": self.current_epoch + 1,
            }
            write_quality(content, quality_file(Path(filename)))
        super().save_checkpoint(filename)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As the base; a QAM of another epoch than the segmenter's is not taken."""
        super().load_checkpoint(filename_or_checkpoint)
        if self.weighs and not isinstance(filename_or_checkpoint, dict):
            self._load_quality(quality_file(Path(filename_or_checkpoint)))

    def _load_quality(self, path: Path) -> None:
        read = read_quality(path, self.current_epoch)
        self.qam_lost = read is None
        if read is None:
            self._begin_anew()
            self.print_to_log_file(
                f"WARNING: no readable {path.name} of epoch {self.current_epoch}; the QAM and its memories begin anew."
            )
            return
        found, content = read
        self.bare_qam.load_state_dict(content["qam_weights"])
        self.qam_optimizer.load_state_dict(content["qam_optimizer"])
        for group in self.qam_optimizer.param_groups:
            group["lr"] = self.settings.quality.qam_lr  # the plans may have changed
        self.competition.load_state_dict(content["competition"])
        self.qam_trained = is_trained(content)
        if found != path and self.local_rank == 0:  # else the next save would keep the wrong one
            write_checkpoint(content, path)

    def _begin_anew(self) -> None:
        self.bare_qam.load_state_dict(self._untrained)
        self.qam_optimizer.state.clear()
        self.competition = self._build_competition()
        self.qam_trained = False

    def on_train_end(self) -> None:
        """As the base; what was needed to continue goes."""
        super().on_train_end()
        if self.local_rank == 0:
            for name in (LATEST, PREVIOUS):
                Path(self.output_folder, name).unlink(missing_ok=True)


def _on_device(target: Any, device: torch.device) -> Any:
    if isinstance(target, list):
        return [_on_device(level, device) for level in target]
    return target.to(device, non_blocking=True)
