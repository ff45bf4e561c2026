"""Checks of an installation: each yields findings in plain words with what to do about them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from nnunet_ext.locations import DATA_VARIABLES, TRAINER_VARIABLE, expose_trainers, trainers_folder

DISTRIBUTION = "nnunet-ext"
PACKAGE = "nnunet_ext"

GIB = 1024**3
ENOUGH_DISK_GIB = 20.0
"""Our choice: preprocessed data, five folds and checkpoints of one small dataset."""

ENOUGH_MEMORY_GIB = 8.0
"""nnU-Net's own export of one head-and-neck case with 22 organs takes 7 to 10 GB (measured on 2.8.1)."""

ENOUGH_GPU_GIB = 8.0
"""nnU-Net plans for 8 GB of GPU memory unless told otherwise."""

STOCK_PROCESSES = 8
"""nnU-Net's own default for nnUNet_def_n_proc."""

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: "ok", "warning" (works, but not as it could) or "problem" (will not work).
        topic: What was looked at.
        text: What was found.
        advice: What to do; empty where all is well.
    """

    level: Level
    topic: str
    text: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """All findings, one after the other as they are made; a check that breaks is itself a problem.

    Takes the seconds that nnU-Net needs to import. Changes nothing.
    """
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield Finding("problem", name, f"the check failed with {type(error).__name__}: {error}", "report this.")


def check_versions() -> Iterator[Finding]:
    """Python and every dependency against what our own package metadata asks for."""
    yield Finding("ok", "python", platform.python_version())
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate():
            yield _version(wanted)


def check_imports() -> Iterator[Finding]:
    """Whether nnU-Net loads: a torchvision that does not fit torch breaks timm, and with it nnU-Net."""
    for name in ("torch", "torchvision", "timm", "nnunetv2"):
        if importlib.util.find_spec(name) is None:
            continue  # a missing requirement was named before; torchvision comes with timm
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)
        except Exception as error:
            text = f"is installed but cannot be imported ({_first_line(error)})"
            yield Finding("problem", name, text, f"pip install --force-reinstall {name} torch, so that they fit.")
            return
    yield Finding("ok", "imports", "torch, timm and nnU-Net load")


def check_folders() -> Iterator[Finding]:
    """nnU-Net's three data folders: set, there, writable, with room."""
    for name in DATA_VARIABLES:
        yield _folder(name, os.environ.get(name, "").strip())


def check_package() -> Iterator[Finding]:
    """Another package of our name: it would be imported instead of us, here or in another folder."""
    here = Path(__file__).resolve().parents[1]
    owners = set(importlib.metadata.packages_distributions().get(PACKAGE, [])) - {DISTRIBUTION}
    for owner in sorted(owners):
        text = f"the distribution {owner} brings a package of the same name"
        yield Finding("problem", PACKAGE, text, f"pip uninstall {owner}, then install {DISTRIBUTION} again.")
    foreign = [*_foreign_packages(sys.path, here, "problem"), *_foreign_packages([""], here, "warning")]
    yield from foreign
    if not owners and not foreign:
        yield Finding("ok", PACKAGE, f"is imported from {here}")


def check_trainers() -> Iterator[Finding]:
    """Whether nnU-Net's own look-up finds each of our trainers, and nobody else's of that name."""
    before = os.environ.get(TRAINER_VARIABLE)
    yield _trainer_variable(before)
    try:
        expose_trainers()
        names = sorted(file.stem for file in trainers_folder().glob("nnUNetTrainer*.py"))
        wrong = [finding for name in names for finding in _trainer(name)]
    finally:
        if before is None:
            os.environ.pop(TRAINER_VARIABLE, None)
        else:
            os.environ[TRAINER_VARIABLE] = before
    yield from wrong
    if not wrong:
        yield Finding("ok", "trainers", f"nnU-Net finds {', '.join(names)}")


def check_gpu() -> Iterator[Finding]:
    """The GPUs that torch can use, with their memory."""
    import torch

    if not torch.cuda.is_available():
        advice = "plan with --preset cpu, or install the GPU build of torch."
        yield Finding("warning", "GPU", "torch sees none; stock plans would take days", advice)
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        size_gib = device.total_memory / GIB
        text = f"{device.name}, {size_gib:.0f} GiB"
        if size_gib >= ENOUGH_GPU_GIB * 0.9:
            yield Finding("ok", "GPU", text)
        else:
            yield Finding("warning", "GPU", f"{text}; stock plans want {ENOUGH_GPU_GIB:g}", "plan with --gpu-gb.")


def check_machine() -> Iterator[Finding]:
    """Main memory, cores, and the thread settings that cost a factor of five when they are wrong."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = _memory_gib()
    if memory_gib and memory_gib < ENOUGH_MEMORY_GIB:
        text = f"{memory_gib:.1f} GiB; a whole head and neck with many organs may need {ENOUGH_MEMORY_GIB:g}"
        yield Finding("warning", "memory", text, "predict with regions, one case at a time.")
    yield from _threads(cores)
    yield from _processes(cores)


CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    check_versions,
    check_imports,
    check_package,
    check_folders,
    check_trainers,
    check_gpu,
    check_machine,
)

_SHADOW = "remove or rename it, take its parent off PYTHONPATH, and do not start from that folder."


def _version(wanted: Requirement) -> Finding:
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("problem", wanted.name, "is not installed", f"pip install '{wanted}'.")
    if wanted.specifier.contains(found, prereleases=True):
        return Finding("ok", wanted.name, found)
    return Finding("problem", wanted.name, f"is {found}, expected {wanted.specifier}", f"pip install '{wanted}'.")


def _folder(name: str, value: str) -> Finding:
    if not value:
        return Finding("problem", name, "is not set", f"export {name}=FOLDER (in ~/.bashrc to keep it).")
    folder = Path(value)
    if not folder.is_dir():
        return Finding("problem", name, f"{folder} does not exist", f"mkdir -p '{folder}', or correct {name}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("problem", name, f"{folder} cannot be written to", "change its owner or choose another folder.")
    free_gib = shutil.disk_usage(folder).free / GIB
    if free_gib < ENOUGH_DISK_GIB:
        return Finding("warning", name, f"{folder}, only {free_gib:.1f} GiB free", "make room before you train.")
    return Finding("ok", name, f"{folder}, {free_gib:.0f} GiB free")


def _foreign_packages(places: Iterable[str], here: Path, level: Level) -> Iterator[Finding]:
    """Packages or modules of our name in some folders of the search path that are not us."""
    for place in sorted({Path(entry or ".").resolve() for entry in places}):
        package, module = place / PACKAGE, place / f"{PACKAGE}.py"
        for path in (package, module):
            if (path / "__init__.py" if path is package else path).is_file() and path.resolve() != here:
                text = f"{path} has the same name as us and may be imported instead"
                yield Finding(level, PACKAGE, text, _SHADOW)


def _trainer_variable(value: str | None) -> Finding:
    advice = 'our own commands set it themselves; for stock ones run: eval "$(nnunet-ext env)".'
    parts = [part for part in (value or "").split(os.pathsep) if part.strip()]
    missing = [part for part in parts if not Path(part).is_dir()]
    if missing:
        return Finding("warning", TRAINER_VARIABLE, f"names missing folders: {', '.join(missing)}", advice)
    if trainers_folder() not in [Path(part).resolve() for part in parts]:
        return Finding("warning", TRAINER_VARIABLE, "does not name our trainers, stock commands miss them", advice)
    return Finding("ok", TRAINER_VARIABLE, f"names {trainers_folder()}")


def _trainer(name: str) -> Iterator[Finding]:
    """What is wrong with one trainer; nothing where nnU-Net finds ours."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = recursive_find_trainer_class_by_name(name).__module__
    except Exception as error:
        text = f"nnU-Net's look-up fails with {type(error).__name__}: {_first_line(error)}"
        yield Finding(
            "problem",
            name,
            text,
            f"install {DISTRIBUTION} again; other folders in {TRAINER_VARIABLE} may break it.",
        )
        return
    if not module.startswith(f"{PACKAGE}."):
        text = f"nnU-Net takes the class of this name from {module}, not ours"
        yield Finding("problem", name, text, f"remove or rename that class, or its folder in {TRAINER_VARIABLE}.")


def _threads(cores: int) -> Iterator[Finding]:
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not value:
        advice = "for small networks on a CPU: export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE."
        yield Finding(
            "warning",
            "OMP_NUM_THREADS",
            f"is not set, torch takes all {cores} cores and waits busily",
            advice,
        )
    elif value.isdigit() and int(value) > cores:
        yield Finding("warning", "OMP_NUM_THREADS", f"is {value} on {cores} cores", f"export OMP_NUM_THREADS={cores}.")
    else:
        yield Finding("ok", "OMP_NUM_THREADS", f"{value} on {cores} cores")


def _processes(cores: int) -> Iterator[Finding]:
    value = os.environ.get("nnUNet_def_n_proc", str(STOCK_PROCESSES))
    if value.isdigit() and int(value) > cores:
        advice = f"export nnUNet_def_n_proc={cores}; each process imports torch first."
        yield Finding("warning", "nnUNet_def_n_proc", f"{value} worker processes on {cores} cores", advice)


def _memory_gib() -> float:
    """Main memory of the machine, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        return 0.0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
