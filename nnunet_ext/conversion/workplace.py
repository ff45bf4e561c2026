"""The hidden folder in which a dataset grows until it is whole: lock, resume, publish."""

from __future__ import annotations

import contextlib
import glob
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_ext.conversion.record import CaseRecord
from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.lock import locked
from nnunet_ext.locations import FILE_ENDING

RECORDS = ".cases"


class Workplace:
    """Where one conversion writes: a folder beside the final one, which nnU-Net does not see, renamed when it
    is done.

    A killed conversion leaves it; the same command finds the finished cases in it. The final dataset is
    therefore always whole, and an overwritten one stays usable until its successor is ready.

    Args:
        raw: The folder nnUNet_raw.
        dataset: Name of the dataset, ``Dataset101_NAME``.
    """

    def __init__(self, raw: Path, dataset: str) -> None:
        """Name the folders; nothing is created yet."""
        self.final = raw / dataset
        self.folder = raw / f".converting-{dataset}"
        self._signature = self.folder / RECORDS / "conversion.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            BusyError: another process converts to the same dataset.
        """
        lock = self.folder.with_name(self.folder.name + ".lock")
        busy = f"another process is converting to {self.final}; wait until it has finished."
        with locked(lock, busy, remove=True):
            yield

    @contextlib.contextmanager
    def emptied(self) -> Iterator[None]:
        """Start with nothing, and leave nothing if the block fails: for work that is not resumed; only under the lock.

        What a killed process left is removed by the next one.
        """
        self.discard()
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def prepare(self, signature: dict[str, Any], *, overwrite: bool) -> None:
        """Open the folder for a conversion: resume the same one, start a new one otherwise.

        Raises:
            InputError: it holds an unfinished conversion of something else, and ``overwrite`` is not set.
        """
        if self.folder.is_dir():
            same = self._signature.is_file() and read_json(self._signature) == signature
            if not same and not overwrite:
                raise InputError(
                    f"{self.folder} holds an unfinished conversion of another source or with other options; "
                    "finish that one, choose another number, or add --overwrite to discard it."
                )
            if not same:
                shutil.rmtree(self.folder)
        write_json(self._signature, signature)
        for leftover in self.folder.glob("*/.part-*"):
            leftover.unlink()

    def finished(self, identifier: str, stamp: str) -> CaseRecord | None:
        """The record of a case that was converted from these very files, or None."""
        path = self._record(identifier)
        if not path.is_file():
            return None
        record = CaseRecord.from_json(read_json(path))
        return record if record.stamp == stamp else None

    def remember(self, record: CaseRecord) -> None:
        """Mark a case as finished; called when its files are written."""
        write_json(self._record(record.identifier), record.as_json())

    def forget(self, identifier: str) -> None:
        """Remove everything of a case, such as a half-written or outdated one."""
        self._record(identifier).unlink(missing_ok=True)
        for part in ("imagesTr", "imagesTs"):
            for path in (self.folder / part).glob(f"{glob.escape(identifier)}_[0-9][0-9][0-9][0-9]{FILE_ENDING}"):
                path.unlink()
        for part in ("labelsTr", "labelsTs"):
            (self.folder / part / f"{identifier}{FILE_ENDING}").unlink(missing_ok=True)

    def keep_only(self, identifiers: set[str]) -> None:
        """Forget cases of an earlier run that the source no longer has."""
        for path in (self.folder / RECORDS).glob("case-*.json"):
            identifier = path.name.removeprefix("case-").removesuffix(".json")
            if identifier not in identifiers:
                self.forget(identifier)

    def publish(self, replaced: list[Path]) -> None:
        """Give the whole dataset its final name; what it replaces goes just before."""
        for path in replaced:
            shutil.rmtree(path)
        self.folder.replace(self.final)
        shutil.rmtree(self.final / RECORDS)

    def discard(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, identifier: str) -> Path:
        return self.folder / RECORDS / f"case-{identifier}.json"
