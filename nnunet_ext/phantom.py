"""A digital head-and-neck phantom: planning CTs with contours, drawn in code, no two alike.

Use it for the demonstration and for tests, never as evidence about patients: its organs are ellipsoids and
its noise is kind. Both parotids look the same, so only their position tells the side, as in a patient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nnunet_ext.geometry import Grid
from nnunet_ext.labels import partner

ORGANS: dict[str, int] = {
    "Brainstem": 1,
    "SpinalCord": 2,
    "Parotid_L": 3,
    "Parotid_R": 4,
    "Bone_Mandible": 5,
    "OpticChiasm": 6,
}
"""TG-263 name to label."""

GRID = Grid((40, 96, 96), (3.0, 2.0, 2.0), (-95.0, -95.0, -58.5))
"""Head to shoulders at 3 mm slices; small enough to train on in minutes (our choice)."""

AIR_HU = -1000.0
NOISE_HU = 22.0
"""Standard deviation of the noise; 20 to 25 HU is common for 3 mm planning CT."""

FLOOR_HU = -1024.0
NECK_PIVOT_MM = (0.0, 25.0, -25.0)
_FREE = float("inf")

Triple = tuple[float, float, float]
Points = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """An ellipsoid (a cylinder where a radius is infinite) of one tissue, possibly hollow and cut by a box.

    Args:
        hu: Its density in HU.
        centre_mm: Centre as xyz in mm, LPS, in the average patient.
        radii_mm: Half axes along xyz in mm.
        organ: Name in ``ORGANS`` if it is contoured.
        hole_mm: Half axes of the hollow inside; None for a solid.
        low_mm: Nothing is drawn below this corner (xyz).
        high_mm: Nothing is drawn above this corner (xyz).
    """

    hu: float
    centre_mm: Triple
    radii_mm: Triple
    organ: str | None = None
    hole_mm: Triple | None = None
    low_mm: Triple = (-_FREE, -_FREE, -_FREE)
    high_mm: Triple = (_FREE, _FREE, _FREE)

    def mask(self, points: Points) -> Mask:
        """Which points it fills.

        Shape:
            points: (3, Z, Y, X), xyz in mm.
            returns: (Z, Y, X), bool.
        """
        filled = _is_inside(points, self.centre_mm, self.radii_mm)
        if self.hole_mm:
            filled &= ~_is_inside(points, self.centre_mm, self.hole_mm)
        for axis in range(3):
            filled &= (points[axis] >= self.low_mm[axis]) & (points[axis] <= self.high_mm[axis])
        return filled

    def mirrored(self) -> Shape:
        """Its partner on the patient's right; the shape itself is on the left (larger x)."""
        x, y, z = self.centre_mm
        return replace(self, centre_mm=(-x, y, z), organ=partner(self.organ or "") or self.organ)


def _pair(left: Shape) -> tuple[Shape, Shape]:
    return left, left.mirrored()


_TRUNK = (
    Shape(50, (0, 0, 40), (72, 88, 85), low_mm=(-_FREE, -_FREE, -20)),  # head
    Shape(50, (0, -32, -14), (52, 48, 42)),  # lower face
    *_pair(Shape(50, (46, 0, -6), (27, 34, 40))),  # cheek and angle of the jaw
    Shape(50, (0, 16, -40), (54, 50, _FREE), high_mm=(_FREE, _FREE, 10)),  # neck
    Shape(50, (0, 26, -76), (94, 46, 34)),  # shoulders
)
"""What is inside the skin."""

_TISSUES = (
    Shape(750, (0, 4, 52), (67, 80, 56), hole_mm=(61, 74, 50)),  # skull
    Shape(38, (0, 4, 52), (61, 74, 50)),  # brain
    *_pair(Shape(-90, (30, -66, 26), (17, 17, 15))),  # fat of the orbit
    *_pair(Shape(12, (30, -68, 26), (12, 12, 12))),  # eye
    Shape(AIR_HU, (0, -62, 10), (9, 20, 12)),  # nasal cavity
    Shape(AIR_HU, (0, -4, -30), (9, 6, _FREE), high_mm=(_FREE, _FREE, -2)),  # airway
    Shape(420, (0, 17, -40), (14, 9, _FREE), high_mm=(_FREE, _FREE, 0)),  # vertebral bodies
    Shape(480, (0, 32, -40), (16, 14, _FREE), hole_mm=(9, 8, _FREE), high_mm=(_FREE, _FREE, 0)),  # arch
    Shape(8, (0, 32, -40), (9, 8, _FREE), high_mm=(_FREE, _FREE, 6)),  # fluid of the canal
    Shape(4, (0, 27, 21), (20, 18, 20)),  # cisterns around the brainstem
    Shape(4, (0, -3, 38), (17, 13, 9)),  # suprasellar cistern
    *_pair(Shape(-5, (55, 4, -6), (13, 17, 22), organ="Parotid_L")),
    Shape(34, (0, 28, 20), (13, 12, 19), organ="Brainstem", low_mm=(-_FREE, -_FREE, 3)),
    Shape(40, (0, 32, -40), (5.5, 5, _FREE), organ="SpinalCord", high_mm=(_FREE, _FREE, 3)),
    Shape(46, (0, -3, 38), (8, 4, 3.1), organ="OpticChiasm"),
    *_pair(Shape(800, (43, -12, -9), (4.5, 12, 22), organ="Bone_Mandible")),  # rami
    Shape(
        800,
        (0, -22, -26),
        (46, 50, _FREE),
        organ="Bone_Mandible",
        hole_mm=(38, 41, _FREE),
        low_mm=(-_FREE, -_FREE, -35),
        high_mm=(_FREE, -14, -17),
    ),  # body of the mandible: a horseshoe, open to the back
)
"""Everything else, painted in this order; what comes later overrides."""


def draw_case(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], Grid]:
    """A planning CT of one patient with its contours; the same seed gives the same patient.

    Args:
        seed: Number of the patient.

    Shape:
        image: (Z, Y, X) float32, HU.
        labels: (Z, Y, X) uint8, values of ``ORGANS``.
    """
    rng = np.random.default_rng(seed)
    points = _posed(_voxel_points(GRID), rng)
    hu, labels = _painted(points, rng)
    return _scanned(hu, rng), labels, GRID


def _painted(points: Points, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Densities and labels of one patient: fat under the skin, muscle, then every tissue over the last."""
    hu = np.full(points.shape[1:], AIR_HU)
    labels = np.zeros(points.shape[1:], dtype=np.uint8)
    body = np.any([shape.mask(points) for shape in _TRUNK], axis=0)
    muscle = gaussian_filter(body.astype(float), (1, 2, 2)) > 0.95
    hu[body] = rng.normal(-95, 5)
    hu[muscle] = rng.normal(50, 4)
    for shape in _individual(rng):
        mask = shape.mask(points) & body
        hu[mask] = shape.hu
        labels[mask] = ORGANS.get(shape.organ or "", 0)
    return hu, labels


def _individual(rng: np.random.Generator) -> list[Shape]:
    """The tissues of one patient: every organ a little moved and resized, densities shared by both sides."""
    parotid_hu = rng.uniform(-15, 15)
    shapes = []
    for shape in _TISSUES:
        if shape.organ and shape.organ.startswith("Parotid"):
            shape = _varied(replace(shape, hu=parotid_hu), rng, move_mm=2.5, resize=0.12)
        elif shape.organ == "OpticChiasm":
            shape = _varied(shape, rng, move_mm=1.5, resize=0.04)
        elif shape.organ and shape.organ != "Bone_Mandible":
            shape = _varied(shape, rng, move_mm=1.0, resize=0.08)
        shapes.append(shape)
    return shapes


def _varied(shape: Shape, rng: np.random.Generator, move_mm: float, resize: float) -> Shape:
    """The shape elsewhere and of another size: uniform in ± move_mm and ± resize (a fraction) per axis."""
    x, y, z = np.asarray(shape.centre_mm) + rng.uniform(-move_mm, move_mm, 3)
    a, b, c = np.asarray(shape.radii_mm) * rng.uniform(1 - resize, 1 + resize, 3)
    return replace(shape, centre_mm=(float(x), float(y), float(z)), radii_mm=(float(a), float(b), float(c)))


def _posed(points: Points, rng: np.random.Generator) -> Points:
    """Where each voxel lies in the average patient: place on the couch, head on neck, size, crookedness."""
    points = points - rng.uniform(-6, 6, 3)[:, None, None, None]
    points = _tilted(points, rng.normal(0, [5, 2.5, 4]).clip(-10, 10))
    points = points / rng.uniform(0.94, 1.06, 3)[:, None, None, None]
    left_side = np.clip(points[0] / 30, -1, 1)
    points[0] *= 1 + rng.uniform(-0.03, 0.03) * left_side  # one side of the face is wider
    return points + _wave(points, rng, amplitude_mm=1.5)


def _tilted(points: Points, angles_deg: NDArray[np.float64]) -> Points:
    """Turn the head on the neck: pitch, roll and turn about x, y and z, fading out towards the shoulders."""
    pivot = np.reshape(NECK_PIVOT_MM, (3, 1, 1, 1))
    arms = points - pivot
    turned = np.tensordot(Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix(), arms, axes=1)
    weight = np.clip((arms[2] + 15) / 40, 0, 1)
    return np.asarray(pivot + arms + weight * (turned - arms))


def _wave(points: Points, rng: np.random.Generator, amplitude_mm: float) -> Points:
    """A smooth displacement, one wave of random direction, 80 to 150 mm long, per axis."""
    direction = rng.normal(size=(3, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    phase = np.tensordot(direction * (2 * np.pi / rng.uniform(80, 150, (3, 1))), points, axes=1)
    return np.asarray(amplitude_mm * np.sin(phase + rng.uniform(0, 2 * np.pi, 3)[:, None, None, None]))


def _scanned(hu: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """What the scanner makes of it: blurred edges and noise with a little grain, never below −1024 HU."""
    grain = gaussian_filter(rng.normal(size=hu.shape), (0.3, 0.6, 0.6))
    noise = grain * (NOISE_HU / grain.std()) * np.where(hu > AIR_HU, 1.0, 0.3)
    return np.asarray(np.maximum(gaussian_filter(hu, (0.3, 0.5, 0.5)) + noise, FLOOR_HU), dtype=np.float32)


def _voxel_points(grid: Grid) -> Points:
    """Positions of all voxel centres: (3, Z, Y, X), xyz in mm."""
    index = np.indices(grid.shape).reshape(3, -1).T
    return np.ascontiguousarray(grid.points_mm(index).T.reshape(3, *grid.shape))


def _is_inside(points: Points, centre_mm: Triple, radii_mm: Triple) -> Mask:
    distance = sum(((points[axis] - centre_mm[axis]) / radii_mm[axis]) ** 2 for axis in range(3))
    return np.asarray(distance <= 1)
