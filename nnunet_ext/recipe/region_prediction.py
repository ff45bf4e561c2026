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
from nnunet_ext.roi.centre import MIN_VOXELS, Centre, body_box, centre_of, find_all
from nnunet_ext.roi.chain import Chain, Located, chain_of, rung_name
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.pasting import pasted
from nnunet_ext.roi.region import CENTRE, Region, box_entry
from nnunet_ext.roi.sides import Part, frame_labels, parts_of

Labels = NDArray[np.integer]
IN_REGION = "region"
APART_MM = 30.0
"""Our choice: two models that see an organ this far apart cannot both be right; a reader is told."""


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
        anatomy: First channel of the recipe, in HU, for the box of the body.
        grid: Of the images.
        locators: Models that may find the centre, in the order to ask.
        predict: The network: (C, Z, Y, X) to a label map.
    """

    region: Region
    learned: Mapping[str, Learned]
    images: Mapping[str, NDArray[np.float32]]
    anatomy: NDArray[np.float32]
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
        tried: list[tuple[Located, Attempt]] = []
        for located in chain.rungs:
            tried.append((located, self._attempt(part, located)))
            if np.count_nonzero(tried[-1][1].labels) >= MIN_VOXELS:
                located, attempt = tried[-1]
                break
            refused[located.rung] = "the region network found nothing there"
        else:
            located, attempt = tried[0]
        organs = self._repair(part, attempt, chain)
        self.report[part.name] = {
            "rung": located.rung,
            **box_entry(attempt.box),
            "refused": refused,
            "grown": attempt.growths,
            "touches_border": bool(attempt.cut),
            "organs": organs,
            "models_apart_mm": round(chain.apart_mm(self.grid.spacing_mm), 1),
        }
        return attempt.labels

    def _chain(self, part: Part) -> Chain:
        if self.region.source == CENTRE:
            return Chain([Located(Region.middle(self.grid), CENTRE)])
        spacing = self.grid.spacing_mm
        found = {
            rung_name(i, seen.name): find_all(seen.labels, _numbers(seen, part.organs), spacing)
            for i, seen in enumerate(self.locators)
        }
        return chain_of(
            found, self.learned[part.name].prior, self._landmarks(part), body_box(self.anatomy), spacing,
            self.region.plausible_mm,
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

    def _repair(self, part: Part, attempt: Attempt, chain: Chain) -> dict[str, str]:
        """Take organs that are cut off or missing from a whole-image model, and say of each where it comes from.

        Of several such models the one counts that agrees best with the contour inside the region: a localiser that lost
        half of an organ must not win over one that has it whole.
        """
        origin = dict.fromkeys(part.organs, IN_REGION)
        for organ in part.organs:
            number = frame_labels(self.region)[organ]
            mine = attempt.labels == number
            there = np.count_nonzero(mine) >= MIN_VOXELS
            if there and organ not in attempt.cut:
                continue
            others = self._whole_image(organ, chain)
            if others:
                best = _closest(others, mine, attempt.box) if there else next(iter(others))
                attempt.labels[mine] = 0
                attempt.labels[others[best] & (attempt.labels == 0)] = number
                origin[organ] = best
            else:
                origin[organ] = IN_REGION if there else "missing"
        return origin

    def _whole_image(self, organ: str, chain: Chain) -> dict[str, NDArray[np.bool_]]:
        """An organ as the whole-image models see it whose centre was believed, in the order to ask."""
        believed = {located.rung for located in chain.rungs}
        masks = {
            seen.name: np.isin(seen.labels, _numbers(seen, [organ]))
            for i, seen in enumerate(self.locators)
            if seen.whole_image and rung_name(i, seen.name) in believed
        }
        return {name: mask for name, mask in masks.items() if np.count_nonzero(mask) >= MIN_VOXELS}


def region_warnings(name: str, report: Mapping[str, Any]) -> list[str]:
    """What a reader of the contours must know about one entry of a region's report."""
    lines = []
    if report["rung"].startswith("fallback"):
        why = "; ".join(f"{rung}: {reason}" for rung, reason in report["refused"].items())
        lines.append(f"region of {name}: organ not found, {report['rung']} ({why})")
    for organ, origin in report["organs"].items():
        if origin == "missing":
            lines.append(f"region of {name}: {organ} was found neither there nor in the whole image")
        elif origin != IN_REGION:
            what = "touches its border" if report["touches_border"] else "is not in it"
            lines.append(f"region of {name}: {organ} {what}; its contour is that of the whole-image model {origin}")
        elif report["touches_border"]:
            lines.append(f"region of {name}: {organ} touches its border and may be cut off")
    if report["models_apart_mm"] > APART_MM:
        lines.append(f"region of {name}: models see it {report['models_apart_mm']:.0f} mm apart")
    if report["grown"]:
        lines.append(f"region of {name}: enlarged {report['grown']} times, a contour touched its border")
    return lines


def _closest(masks: Mapping[str, NDArray[np.bool_]], contour: NDArray[np.bool_], box: Box) -> str:
    """The mask with the highest Dice with a contour, inside a box; the first of equal ones."""
    inside = crop(contour, box)

    def dice(name: str) -> float:
        mask = crop(masks[name], box)
        return 2.0 * np.count_nonzero(mask & inside) / (np.count_nonzero(mask) + np.count_nonzero(inside))

    return max(masks, key=dice)


def _numbers(seen: LocatorMap, organs: Sequence[str] | Mapping[str, int]) -> list[int]:
    return [seen.numbers[organ] for organ in organs if organ in seen.numbers]
