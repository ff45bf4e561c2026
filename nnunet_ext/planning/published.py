"""What the papers say about their models, as data: patch, batch, widths, window, spacing and training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.preprocessing.windows import SIGNED, UNIT


@dataclass(frozen=True)
class Published:
    """One paper's model. What is None stays as nnU-Net plans it.

    Args:
        configuration: The configuration that is the paper's; the others stay as nnU-Net plans them.
        patch_size: In voxels, (Z, Y, X) or (Y, X).
        features: Channels of every stage, finest first.
        strides: By what every stage is coarser than the one above it.
        settings: Training settings (``settings.TrainerSettings``).
        spacing_mm: Voxel size (Z, Y, X).
        window_hu: Lowest and highest value that CT channels keep.
        window_to: Range onto which the window is mapped.
        normalization: For all channels.
        resampling: False keeps every image on its own grid.
    """

    configuration: str
    patch_size: tuple[int, ...]
    features: tuple[int, ...]
    strides: tuple[int | tuple[int, ...], ...]
    settings: Mapping[str, Any] = field(hash=False)
    spacing_mm: tuple[float, float, float] | None = None
    window_hu: tuple[float, float] | None = None
    window_to: tuple[float, float] = SIGNED
    normalization: str | None = None
    resampling: bool = True

    @property
    def architecture(self) -> dict[str, Any]:
        """Keywords of the network that say its depth and widths; two convolutions of 3 voxels everywhere."""
        stages, dim = len(self.features), len(self.patch_size)
        return {
            "n_stages": stages,
            "features_per_stage": list(self.features),
            "strides": [[s] * dim if isinstance(s, int) else list(s) for s in self.strides],
            "kernel_sizes": [[3] * dim] * stages,
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
        }


ADAM: dict[str, Any] = {"optimizer": "Adam", "weight_decay": 0.0, "lr_schedule": "constant"}
"""All papers but StructSeg's; none of them names a weight decay or, but for the CTV, a schedule."""

LIVER = Published(
    configuration="3d_fullres",
    patch_size=(32, 128, 128),
    features=(16, 32, 64, 128, 256),
    strides=(1, 2, 2, 2, 2),
    spacing_mm=(3.0, 1.0, 1.0),
    window_hu=(-150.0, 150.0),
    settings={**ADAM, "initial_lr": 1e-4, "batch_size": 8, "loss": "dice", "deep_supervision": False,
              "augmentation": "flips", "mirror": "auto"},
)  # fmt: skip
"""RAS U-Net for liver tumour targets, and its rival with channel gates: one training for both.

The paper gives 3×1×1 mm, [-150, 150] HU onto [-1, 1], batch 8, Adam 1e-4, Dice loss, crops and flips, four poolings.
It is silent about patch and width: 16 features and 96×128×128 mm are ours, because eight such patches fit its 12 GB;
and about the length: nnU-Net's 250 000 iterations.
"""

CERVIX = Published(
    configuration="3d_fullres",
    patch_size=(72, 256, 256),
    features=(16, 32, 64, 96, 128, 128),
    strides=(1, 2, 2, 2, (1, 2, 2), (1, 2, 2)),
    window_hu=(-1024.0, 576.0),
    window_to=UNIT,
    settings={**ADAM, "initial_lr": 1e-4, "batch_size": 1, "num_epochs": 400, "num_iterations_per_epoch": 250,
              "loss": "bce_dice", "deep_supervision": False, "augmentation": "flips_noise", "mirror": "auto"},
)  # fmt: skip
"""SEResUNet for the CTV of cervical cancer, alone and in three passes.

The paper gives whole images of 72×256×256, batch 1, five poolings, features 16 to 128, values 0 to 1600 (HU + 1024)
onto [0, 1], Adam 1e-4 constant for 100 000 iterations, BCE + Dice, flips and noise. Five poolings do not divide 72: the
last two spare the slices, and the bridge has 128 features, both our reading. Spacing is nnU-Net's: the paper
resamples every patient to 72 slices. Train the passes with nnUNetTrainerExtRefine, which has a loss on each.
"""

PELVIS = Published(
    configuration="2d",
    patch_size=(256, 256),
    features=(64, 128, 256, 512),
    strides=(1, 2, 2, 2),
    spacing_mm=(2.5, 1.0, 1.0),
    window_hu=(-600.0, 1500.0),
    settings={**ADAM, "initial_lr": 1e-4, "batch_size": 2, "loss": "dice", "deep_supervision": False,
              "early_stop": 50, "augmentation": "flips", "mirror": "auto"},
)  # fmt: skip
"""Residual U-Net for four pelvic organs (the second stage of the synthetic-MR paper), on CT, its comparison.

The paper gives 2.5×1×1 mm, [-600, 1500] HU, crops of 256×256, batch 2, Adam 1e-4, Dice loss, early stopping. Patience
50 and at most 1000 epochs are ours, width and depth are Zhang's of 2018. The paper only crops; mirrors that do not
confuse left and right are made here as well.
"""

CASCADE: dict[str, Any] = {**ADAM, "initial_lr": 2e-4, "batch_size": 1, "loss": "dice", "augmentation": "flips_noise",
                           "mirror": "auto", "num_epochs": 150, "early_stop": 30}  # fmt: skip

BRAIN_CROP = Published(
    configuration="3d_fullres",
    patch_size=(32, 96, 96),
    features=(16, 32, 64, 128, 256),
    strides=(1, 2, 2, 2, (1, 2, 2)),
    spacing_mm=(1.25, 0.8, 0.8),
    window_hu=(-160.0, 240.0),
    settings=CASCADE,
)
"""Segmenter of small organs in crops that another model found, on CT and MR.

The paper gives 1.25×0.8×0.8 mm, crops of 32×96×96 (its best for most organs), batch 1, Adam 2e-4, Dice loss, flips and
noise, deep supervision, an early stop between 100 and 150 epochs; the optimiser is the localiser's, the only one
described. The "soft-tissue window" has no numbers: centre 40, width 400 is ours, as is the patience of 30
epochs. Width and five levels are Isensee's of 2017. MR keeps nnU-Net's z-score.
"""

BRAIN_WHOLE = Published(
    configuration="3d_fullres",
    patch_size=(80, 256, 256),
    features=(32, 64, 128, 256),
    strides=(1, 2, 2, 2),
    spacing_mm=(1.25, 0.8, 0.8),
    window_hu=(-160.0, 240.0),
    settings={**CASCADE, "loss": "dice_ce", "deep_supervision": False},
)
"""Localiser of the same paper: the 3D U-Net of 2016 on 80×256×256 voxels; its loss is not named, so nnU-Net's."""

STRUCTSEG = Published(
    configuration="2d",
    patch_size=(512, 512),
    features=(30, 60, 120, 240, 480, 480, 480, 480),
    strides=(1, 2, 2, 2, 2, 2, 2, 2),
    normalization="ZScoreNormalization",
    resampling=False,
    settings={"optimizer": "Adam", "initial_lr": 3e-4, "lr_schedule": "plateau", "batch_size": 11, "num_epochs": 600},
)
"""PlainConvUNet on whole axial slices, StructSeg 2019 (second place).

The paper gives features from 30 to 480, batch 11, Adam 3e-4 with a plateau schedule for about 150 000 iterations,
z-score, no resampling, no left-right mirroring. Depth is nnU-Net's for 512×512.
"""

PUBLISHED: dict[str, Published] = {
    "plain": STRUCTSEG,
    "context": BRAIN_CROP,
    "original": BRAIN_WHOLE,
    "ras": LIVER,
    "se": LIVER,
    "se-res": CERVIX,
    "deep-res": PELVIS,
    "refine:se-res": CERVIX,
}
"""Network (as in ``planning.names``) to what its paper says."""


def published(network: str) -> Published:
    """What the paper of a network says.

    Raises:
        InputError: it has none.
    """
    if network not in PUBLISHED:
        raise InputError(
            f"no paper has trained {network}, so there is no published preset of it; {', '.join(PUBLISHED)} have one."
        )
    return PUBLISHED[network]


def plans_name(default: str) -> str:
    """Name of the published plans beside the name of the recommended ones."""
    return default.replace("nnUNetPlansExt", "nnUNetPlansExtPublished", 1)


def choices(paper: Published) -> dict[str, Any]:
    """What of a paper the preprocessing of a recipe could ask for, too."""
    return {key: asdict(paper)[key] for key in ("normalization", "resampling", "window_hu", "window_to")}
