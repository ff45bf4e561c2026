from __future__ import annotations

import gzip
import struct
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.nifti import read_grid, read_image, read_labels, write_image, write_labels, write_voxels

SHAPE = (4, 5, 6)


def oblique_mirrored_grid() -> Grid:
    a = np.radians(12.0)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return Grid(SHAPE, (3.0, 1.0, 0.7), (11.0, -27.0, 340.0), tuple((turn @ np.diag([-1.0, 1.0, 1.0])).ravel()))


def numbered(kind: type = np.float32) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(kind)


def test_an_image_and_its_grid_come_back(tmp_path):
    grid = oblique_mirrored_grid()
    write_image(tmp_path / "ct.nii.gz", numbered() - 1000.5, grid)
    image, read = read_image(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(image, numbered() - 1000.5)
    assert image.dtype == np.float32
    assert grid_difference(grid, read) is None
    assert grid_difference(grid, read_grid(tmp_path / "ct.nii.gz")) is None


def test_simpleitk_sees_the_same_voxels_at_the_same_places(tmp_path):
    grid = oblique_mirrored_grid()
    write_image(tmp_path / "ct.nii.gz", numbered(), grid)
    itk = sitk.ReadImage(str(tmp_path / "ct.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk), numbered())
    place_mm = itk.TransformIndexToPhysicalPoint((5, 3, 2))
    np.testing.assert_allclose(place_mm, grid.points_mm([[2, 3, 5]])[0], atol=1e-3)


@pytest.mark.parametrize(("top", "kind"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_labels_come_back_in_the_smallest_type_that_holds_them(tmp_path, top, kind):
    labels = np.zeros(SHAPE, np.int64)
    labels[1, 2, 3] = top
    write_labels(tmp_path / "l.nii.gz", labels, Grid(SHAPE))
    assert nibabel.load(tmp_path / "l.nii.gz").get_data_dtype() == kind
    read, _ = read_labels(tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(read, labels)


def test_voxels_keep_their_number_type(tmp_path):
    write_voxels(tmp_path / "m.nii.gz", numbered(np.int16), Grid(SHAPE))
    assert nibabel.load(tmp_path / "m.nii.gz").get_data_dtype() == np.int16


def test_an_array_that_does_not_fit_its_grid_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="differ in shape"):
        write_image(tmp_path / "ct.nii.gz", numbered(), Grid((4, 5, 7)))
    assert list(tmp_path.iterdir()) == []


def test_the_rescale_slope_of_the_file_is_applied(tmp_path):
    write_voxels(tmp_path / "ct.nii", numbered(np.int16), Grid(SHAPE))
    content = bytearray((tmp_path / "ct.nii").read_bytes())
    content[112:120] = struct.pack("<ff", 2.0, -1024.0)  # scl_slope, scl_inter
    (tmp_path / "ct.nii").write_bytes(bytes(content))
    np.testing.assert_array_equal(read_image(tmp_path / "ct.nii")[0], 2 * numbered() - 1024)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_no_numbers_are_refused(tmp_path, value):
    labels = numbered()
    labels[0, 0, 0] = value
    write_voxels(tmp_path / "l.nii.gz", labels, Grid(SHAPE))
    with pytest.raises(InputError, match="1 voxels that are not whole numbers"):
        read_labels(tmp_path / "l.nii.gz")


def test_interpolated_labels_are_refused(tmp_path):
    write_voxels(tmp_path / "l.nii.gz", numbered() / 2, Grid(SHAPE))
    with pytest.raises(InputError, match="60 voxels that are not whole numbers"):
        read_labels(tmp_path / "l.nii.gz")


@pytest.mark.parametrize(("value", "kind"), [(-1, np.int16), (70000, np.int32)])
def test_labels_out_of_range_are_refused(tmp_path, value, kind):
    labels = np.zeros(SHAPE, kind)
    labels[0, 0, 0] = value
    write_voxels(tmp_path / "l.nii.gz", labels, Grid(SHAPE))
    with pytest.raises(InputError, match="expected 0 to 65535"):
        read_labels(tmp_path / "l.nii.gz")


def test_whole_numbers_stored_as_float_are_labels(tmp_path):
    write_voxels(tmp_path / "l.nii.gz", numbered(), Grid(SHAPE))
    np.testing.assert_array_equal(read_labels(tmp_path / "l.nii.gz")[0], numbered())


@pytest.mark.parametrize("read", [read_image, read_labels, read_grid])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(InputError, match="nowhere"):
        read(tmp_path / "nowhere.nii.gz")


@pytest.mark.parametrize("read", [read_image, read_labels, read_grid])
def test_four_dimensions_are_refused(tmp_path, read):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match="expected one 3D volume"):
        read(tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("keep", [0, 1, 30, -1])
def test_labels_from_a_truncated_file_are_refused(tmp_path, keep):
    write_labels(tmp_path / "l.nii.gz", numbered(np.uint8), Grid(SHAPE))
    content = (tmp_path / "l.nii.gz").read_bytes()
    (tmp_path / "l.nii.gz").write_bytes(content[:keep])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_labels(tmp_path / "l.nii.gz")


def test_an_unpacked_file_with_too_few_voxels_is_refused(tmp_path):
    write_labels(tmp_path / "l.nii.gz", numbered(np.uint8), Grid(SHAPE))
    (tmp_path / "l.nii").write_bytes(gzip.decompress((tmp_path / "l.nii.gz").read_bytes())[:-10])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_labels(tmp_path / "l.nii")


WRITE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from nnunet_ext.errors import NnunetExtError
from nnunet_ext.geometry import Grid
from nnunet_ext.io import nifti
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, write, limit = Path(sys.argv[1]), getattr(nifti, sys.argv[2]), int(sys.argv[3])
array = np.random.default_rng(0).integers(0, 3, (20, 64, 64)).astype(np.int16)
write(path, array, Grid(array.shape))
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    write(path, array[::-1].copy(), Grid(array.shape))
except NnunetExtError as error:
    print(error)
    print(path.read_bytes() == before, [p.name for p in path.parent.iterdir()])
    sys.exit(error.exit_code)
"""
"""Writes an image, and another one in its place where files may not become longer than a limit, as on a full disk."""


@pytest.mark.parametrize("limit", [0, 100, 10_000])
@pytest.mark.parametrize("write", ["write_image", "write_labels", "write_voxels"])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_file_that_is_cut_off_while_it_is_written_never_comes_to_its_place(tmp_path, name, write, limit):
    command = [sys.executable, "-c", WRITE, tmp_path / name, write, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    assert done.stdout.splitlines() == [
        f"no space left while writing {tmp_path / name}; free some and run the same command again.",
        f"True ['{name}']",
    ]


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_every_number_type_reads_back_also_from_a_view_in_another_order(tmp_path, name, kind):
    array = numbered(np.dtype(kind))[::-1, :, ::-1]
    array[0, 0, 0] = 0 if np.dtype(kind).kind in "iu" else np.nan
    write_voxels(tmp_path / name, array, Grid(SHAPE))
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / name).dataobj).T, array)
