"""A region model on one image: locate, crop, predict, look at the border, paste. An organ is never lost in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Box, Grid
from nnunet_ext.roi.border import Side, grown, touched_sides
from nnunet_ext.roi.boxes import crop
from nnunet_ext.roi.centre import MIN_VOXELS, Centre, body_box, centre_of, find_all, mask_of
from nnunet_ext.roi.chain import Chain, Located, chain_of, rung_name
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.pasting import pasted
from nnunet_ext.roi.region import CENTRE, Region, box_entry
from nnunet_ext.roi.sides import Part, frame_labels, parts_of

Labels = NDArray[np.integer]
IN_REGION, MISSING = "region", "missing"
NOWHERE = "outside the image"
"""Rung of a region of which the image shows no place where it could lie."""
APART_MM = 30.0
"""Our choice: two models that see an organ this far apart cannot both be right; a reader is told."""
AGREE_DICE = 0.5
"""Our choice: with less inside the region, a whole-image contour is not the organ that the region shows."""


@dataclass(frozen=True)
class LocatorMap:
    """What an earlier model says about the image.

    Args:
        name: Of the model.
        labels: (Z, Y, X) on the whole image.
        numbers: Organ to label number in them.
        whole_image: Whether it looked at the whole image, so that its contours may stand in for a region's.
    """

    name: str
    labels: Labels
    numbers: Mapping[str, int]
    whole_image: bool


@dataclass
class Attempt:
    """One region, predicted.

    Args:
        labels: (Z, Y, X) whole image with the part's organs, in ``frame_labels``.
        box: The region, as large as it became.
        growths: How often it was enlarged.
        cut: Organs that still touch a side of it inside the image.
    """

    labels: NDArray[np.uint8]
    box: Box
    growths: int
    cut: list[str]


@dataclass
class RegionalPrediction:
    """One region model on one image.

    Args:
        region: What to cut.
        learned: Part to what its training cases taught.
        images: Channel name to (Z, Y, X), canonical frame, in the model's order.
        anatomy: First channel of the recipe's dataset, in HU, for the box of the body; a region in the middle of the
            image needs none.
        grid: Of the images.
        locators: Models that may find the centre, in the order to ask.
        predict: The network: (C, Z, Y, X) to a label map.
    """

    region: Region
    learned: Mapping[str, Learned]
    images: Mapping[str, NDArray[np.float32]]
    anatomy: NDArray[np.float32] | None
    grid: Grid
    locators: Sequence[LocatorMap]
    predict: Callable[[NDArray[np.float32]], Labels]
    report: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> NDArray[np.uint8]:
        """The region's organs on the whole image, in ``frame_labels``; fills ``report``, one entry per part."""
        whole = np.zeros(self.grid.shape, dtype=np.uint8)
        for part in parts_of(self.region):
            mine = self._part(part)
            whole = np.where(mine > 0, mine, whole)
        return whole

    # --- one part ----------------------------------------------------------------------------------------------------

    def _part(self, part: Part) -> NDArray[np.uint8]:
        chain = self._chain(part)
        refused = dict(chain.refused)
        if not chain.rungs:
            self.report[part.name] = _nowhere(part, refused)
            return np.zeros(self.grid.shape, dtype=np.uint8)
        tried: list[tuple[Located, Attempt]] = []
        for located in chain.rungs:
            tried.append((located, self._attempt(part, located)))
            if np.count_nonzero(tried[-1][1].labels) >= MIN_VOXELS:
                located, attempt = tried[-1]
                break
            refused[located.rung] = "the region network found nothing there"
        else:
            located, attempt = tried[0]
        repaired = self._repair(part, attempt, chain)
        self.report[part.name] = {
            "rung": located.rung,
            **box_entry(attempt.box),
            "refused": refused,
            "grown": attempt.growths,
            "touches_border": attempt.cut,
            **repaired,
            "models_apart_mm": round(chain.apart_mm(self.grid.spacing_mm), 1),
        }
        return attempt.labels

    def _chain(self, part: Part) -> Chain:
        if self.region.source == CENTRE:
            return Chain([Located(Region.middle(self.grid), CENTRE)])
        if self.anatomy is None:
            raise ValueError("a region that follows the anatomy needs an image of it.")
        spacing, learned = self.grid.spacing_mm, self.learned[part.name]
        found = {
            rung_name(i, seen.name): find_all(seen.labels, _numbers(seen, part.organs), spacing)
            for i, seen in enumerate(self.locators)
        }
        return chain_of(
            found, learned.prior, self._landmarks(part), body_box(self.anatomy), spacing, self.region.plausible_mm,
            lambda located: self.region.is_in(self.grid, located, learned),
        )  # fmt: skip

    def _landmarks(self, part: Part) -> dict[str, Centre]:
        """Other organs that the first model which knows them sees."""
        wanted = [organ for organ in self.learned[part.name].prior.landmarks if organ not in part.organs]
        centres: dict[str, Centre] = {}
        for seen in self.locators:
            for organ in (o for o in wanted if o in seen.numbers and o not in centres):
                centre = centre_of(seen.labels, [seen.numbers[organ]], self.grid.spacing_mm)
                if centre is not None:
                    centres[organ] = centre
        return centres

    def _attempt(self, part: Part, located: Located) -> Attempt:
        """Predict a region; enlarge it while a contour touches its border inside the image."""
        box = self.region.box(self.grid, located, self.learned.get(part.name))
        most = 0 if self.region.source == CENTRE else self.region.grow_at_most
        for growths in range(most + 1):
            labels = self._predict(part, box)
            touched = self._touched(part, crop(labels, box), box)
            if not touched or growths == most:
                break
            sides = {side for found in touched.values() for side in found}
            box = grown(box, sorted(sides), self.grid.spacing_mm)
        return Attempt(labels, box, growths, list(touched))

    def _touched(self, part: Part, inside: NDArray[np.uint8], box: Box) -> dict[str, list[Side]]:
        """Organs that touch a side of their region inside the image, and which sides."""
        numbers = frame_labels(self.region)
        found = {o: touched_sides(inside == numbers[o], box, self.grid.shape) for o in part.organs}
        return {organ: sides for organ, sides in found.items() if sides}

    def _predict(self, part: Part, box: Box) -> NDArray[np.uint8]:
        parts = np.stack([crop(image, box, self.region.padding(name)) for name, image in self.images.items()])
        labels = self.predict(part.seen(parts))
        return pasted(np.zeros(self.grid.shape, dtype=np.uint8), labels, box, part, self.region)

    # --- what the region could not give ------------------------------------------------------------------------------

    def _repair(self, part: Part, attempt: Attempt, chain: Chain) -> dict[str, dict[str, Any]]:
        """Take organs that are cut off or missing from a whole-image model.

        Of several such models the one counts that agrees best with the contour inside the region: a localiser that lost
        half of an organ must not win over one that has it whole. If even that one disagrees, what either sees is taken:
        too much is there for a reader to see, and a lost part is not.

        Returns:
            Entries of the report: organ to where it comes from, to the voxels of that model that were not believed, and
            to what it and the region see where they disagree.
        """
        origin, left_out, disagreements = dict.fromkeys(part.organs, IN_REGION), dict[str, int](), dict[str, Any]()
        for organ in part.organs:
            number = frame_labels(self.region)[organ]
            mine = attempt.labels == number
            there = np.count_nonzero(mine) >= MIN_VOXELS
            if there and organ not in attempt.cut:
                continue
            others = self._whole_image(part, organ, chain)
            if not others:
                origin[organ] = IN_REGION if there else MISSING
                continue
            best = _closest(others, mine, attempt.box) if there else next(iter(others))
            if there and _dice(others[best], mine, attempt.box) < AGREE_DICE:
                origin[organ] = f"{IN_REGION}+{best}"
                disagreements[organ] = {
                    "model": best,
                    "region_voxels": int(np.count_nonzero(mine)),
                    "model_voxels": int(np.count_nonzero(others[best])),
                }
            else:
                origin[organ] = best
                attempt.labels[mine] = 0
            attempt.labels[others[best] & (attempt.labels == 0)] = number
            seen = next(seen for seen in self.locators if seen.name == best)
            doubted = int(np.count_nonzero(seen.labels == seen.numbers[organ]) - np.count_nonzero(others[best]))
            if doubted >= MIN_VOXELS:
                left_out[organ] = doubted
        return {"organs": origin, "left_out_voxels": left_out, "disagreements": disagreements}

    def _whole_image(self, part: Part, organ: str, chain: Chain) -> dict[str, NDArray[np.bool_]]:
        """An organ as the whole-image models see it at the places that were believed, in the order to ask."""
        believed = {located.rung: located for located in chain.rungs}
        masks: dict[str, NDArray[np.bool_]] = {}
        for i, seen in enumerate(self.locators):
            located = believed.get(rung_name(i, seen.name))
            if not seen.whole_image or organ not in seen.numbers or located is None or located.found is None:
                continue
            places = (located.found, *located.others)
            there = mask_of(seen.labels, _numbers(seen, part.organs), places, self.grid.spacing_mm)
            masks[seen.name] = there & (seen.labels == seen.numbers[organ])
        return {name: mask for name, mask in masks.items() if np.count_nonzero(mask) >= MIN_VOXELS}


def region_warnings(name: str, report: Mapping[str, Any]) -> list[str]:
    """What a reader of the contours must know about one entry of a region's report."""
    lines = []
    why = "; ".join(f"{rung}: {reason}" for rung, reason in report["refused"].items())
    if report["rung"] == NOWHERE:
        return [f"region of {name}: {organ} was not looked for, {why}" for organ in report["organs"]]
    if report["rung"].startswith("fallback"):
        lines.append(f"region of {name}: organ not found, {report['rung']} ({why})")
    elif why:
        lines.append(f"region of {name}: {report['rung']}, with doubts ({why})")
    for organ, count in report["left_out_voxels"].items():
        lines.append(f"region of {name}: {count} voxels far from the usual place were not taken for {organ}")
    for organ, origin in report["organs"].items():
        if origin == MISSING:
            lines.append(f"region of {name}: {organ} was found neither there nor at a plausible place elsewhere")
        elif organ in report["disagreements"]:
            lines.append(f"region of {name}: {_disagreement(organ, report['disagreements'][organ])}")
        elif origin != IN_REGION:
            what = "touches its border" if organ in report["touches_border"] else "is not in it"
            lines.append(f"region of {name}: {organ} {what}; its contour is that of the whole-image model {origin}")
        elif organ in report["touches_border"]:
            lines.append(f"region of {name}: {organ} touches its border and may be cut off")
    if report["models_apart_mm"] > APART_MM:
        lines.append(f"region of {name}: models see it {report['models_apart_mm']:.0f} mm apart")
    if report["grown"]:
        lines.append(f"region of {name}: enlarged {report['grown']} times, a contour touched its border")
    return lines


def _nowhere(part: Part, refused: Mapping[str, str]) -> dict[str, Any]:
    """The report on a part whose region would lie outside the image wherever it were."""
    return {
        "rung": NOWHERE,
        "start": None,
        "stop": None,
        "refused": dict(refused),
        "grown": 0,
        "touches_border": [],
        "organs": dict.fromkeys(part.organs, MISSING),
        "left_out_voxels": {},
        "disagreements": {},
        "models_apart_mm": 0.0,
    }


def _disagreement(organ: str, seen: Mapping[str, Any]) -> str:
    """What a cut organ consists of where the whole-image model sees something else."""
    return (
        f"{organ} touches its border and the whole-image model {seen['model']} sees something else "
        f"({seen['region_voxels']} voxels here, {seen['model_voxels']} there); the contour is both together"
    )


def _closest(masks: Mapping[str, NDArray[np.bool_]], contour: NDArray[np.bool_], box: Box) -> str:
    """The mask with the highest Dice with a contour, inside a box; the first of equal ones."""
    return max(masks, key=lambda name: _dice(masks[name], contour, box))


def _dice(mask: NDArray[np.bool_], contour: NDArray[np.bool_], box: Box) -> float:
    """Dice of two masks inside a box, in which the second one is not empty."""
    seen, inside = crop(mask, box), crop(contour, box)
    return 2.0 * np.count_nonzero(seen & inside) / (np.count_nonzero(seen) + np.count_nonzero(inside))


def _numbers(seen: LocatorMap, organs: Sequence[str] | Mapping[str, int]) -> list[int]:
    return [seen.numbers[organ] for organ in organs if organ in seen.numbers]
