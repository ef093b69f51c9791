"""A run's folder on disk: written so that a process may die at any moment.

``run.json`` (the configuration, first), ``edits/``, ``rows/``, ``moments/`` and ``batches/`` with a
file a batch (0 is the state before), ``status.json``, and at the end ``rows.csv.gz`` and
``moments.csv``. A batch counts once its record in ``batches/`` is there; it is written last and
holds the checksums of the batch's tables. Every file is moved into place whole.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.atomic import try_lock, write_atomically
from workbench.edits import Edit, load_edit
from workbench.errors import BusyError, DataError, OptionError
from workbench.fingerprint import seal, unseal

__all__ = ["MOMENT_COLUMNS", "ROW_COLUMNS", "RunFolder", "csv_gz", "is_run"]

FORMAT = "workbench-run/1"
ROW_COLUMNS = (
    *("run", "editor", "model", "step", "edit_step", "case_id", "probe", "kind", "target", "foil"),
    *("nll_target", "nll_foil", "exact", "token_accuracy", "success", "seconds"),
)
MOMENT_COLUMNS = (
    *("run", "editor", "model", "step", "metric", "layer", "task", "value", "unit"),
    *("n", "low", "high"),
)
#: How columns are read; all others are numbers.
BOOLEANS = ("exact", "success")
TEXTS = ("case_id", "kind", "target", "foil", "metric", "task", "unit")
WHOLE = {"step": "int64", "probe": "int64", "layer": "Int64", "n": "Int64"}
PARTS = ("edits", "rows", "moments", "batches", "models")
#: Files of a run that a fresh start takes away.
SINGLE = ("rows.csv.gz", "moments.csv", "status.json", "run.json")
#: Parts of the environment on which the last bits of a sum depend.
DECIDES_BITS = ("system", "device", "threads", "torch", "transformers")
ENDED = ("complete", "stopped")

Pathlike = str | os.PathLike[str]


def is_run(path: Pathlike) -> bool:
    """True if the folder holds the configuration of a run."""
    try:
        return RunFolder(path).config().get("format") == FORMAT
    except DataError:
        return False


@dataclass(frozen=True)
class RunFolder:
    """Paths, reading and writing of one run.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    def __init__(self, path: Pathlike) -> None:
        object.__setattr__(self, "path", Path(path).expanduser())

    @property
    def name(self) -> str:
        """The folder's name, the run's in tables."""
        return self.path.resolve().name

    def file(self, part: str, batch: int) -> Path:
        """File of a batch: ``edits/000012.safetensors``, ``rows/000012.csv`` …"""
        ending = {"edits": "safetensors", "batches": "json"}.get(part, "csv")
        return self.path / part / f"{batch:06d}.{ending}"

    # ------------------------------------------------------------------ writing

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the lock goes with the process, however it ends.

        Raises:
            BusyError: if another process holds it. StorageError: if it cannot be written.
        """
        handle = try_lock(self.path / ".lock")
        if handle is None:
            raise BusyError(
                f"another process is writing the run {self.path}: wait for it, or choose another "
                "folder."
            )
        with handle:
            yield

    def start(self, config: Mapping[str, Any], *, fresh: bool) -> bool:
        """Write the configuration, or compare it with the one that is there.

        Args:
            config: JSON-ready; the entry ``environment`` is recorded but not compared.
            fresh: take an older run's files away first.

        Returns:
            True if there was a run with this configuration.

        Raises:
            OptionError: if the folder holds another configuration, or something else.
        """
        for left in self.path.rglob(".*.part"):
            left.unlink(missing_ok=True)
        config = json.loads(json.dumps({"format": FORMAT, **config}))
        held = (self.path / "run.json").exists()
        if held and not fresh:
            before = self.config()
            _require_same(before, config, self.path)
            _warn_of_bits(before.get("environment", {}), config.get("environment", {}))
            return True
        others = [p.name for p in self.path.iterdir() if p.name != ".lock"]
        if others and not held:
            raise OptionError(
                f"{self.path} is not empty and no run ({sorted(others)[0]} is in it): choose a new "
                "folder."
            )
        self._clear()
        write_atomically(self.path / "run.json", _json(seal(config)))
        return False

    def commit(self, batch: int, record: Mapping[str, Any], **tables: pd.DataFrame | None) -> None:
        """Write a batch's tables, then its record with their checksums."""
        digests = {}
        for part, table in tables.items():
            payload = b"" if table is None else table.to_csv(index=False).encode()
            digests[part] = _digest(payload)
            if table is not None:
                write_atomically(self.file(part, batch), payload)
        record = {"batch": batch, **record, "digests": digests}
        write_atomically(self.file("batches", batch), _json(seal(record)))

    def set_status(self, state: str, **facts: Any) -> None:
        """Say where the run stands: running, complete, stopped, interrupted or failed."""
        write_atomically(self.path / "status.json", _json({"state": state, **facts}))

    def finish(self) -> pd.DataFrame:
        """Write the whole tables beside the parts; returns the rows."""
        rows, moments = self.rows(), self.moments()
        payload = csv_gz(rows)
        write_atomically(self.path / "rows.csv.gz", payload)
        write_atomically(self.path / "moments.csv", moments.to_csv(index=False).encode())
        return rows

    # ------------------------------------------------------------------ reading

    def config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            DataError: if there is none, or it is damaged.
        """
        return _read_json(self.path / "run.json", "is no run")

    def status(self) -> dict[str, Any]:
        """Where the run stands; empty if it never said."""
        with suppress(DataError):
            return _read_json(self.path / "status.json", "has no status")
        return {}

    @property
    def complete(self) -> bool:
        """True if the run came to its end (or was stopped by its alarm)."""
        return self.status().get("state") in ENDED

    def record(self, batch: int) -> dict[str, Any] | None:
        """The record of a batch; None if it was never finished or is damaged."""
        try:
            return _read_json(self.file("batches", batch), "has no such batch")
        except DataError:
            return None

    def records(self) -> list[dict[str, Any]]:
        """Records of the finished batches, in order, up to the first that is missing."""
        found: list[dict[str, Any]] = []
        while (record := self.record(len(found))) is not None:
            found.append(record)
        return found

    def all_records(self) -> list[dict[str, Any]]:
        """As :meth:`records`, for those who read a run and do not go on with it.

        Raises:
            DataError: if the run is not under way, and a record is missing or damaged that was
                there once.
        """
        found, status = self.records(), self.status()
        later = [int(p.stem) for p in (self.path / "batches").glob("*.json") if p.stem.isdigit()]
        ended = [int(status.get("batch") or 0)] if self.complete else []
        if status.get("state") != "running" and max([-1, *later, *ended]) >= len(found):
            raise DataError(
                f"{self.file('batches', len(found))} is missing or damaged: start the run again, "
                "it measures this batch anew."
            )
        return found

    def table(self, part: str, record: Mapping[str, Any]) -> pd.DataFrame | None:
        """A table of a finished batch, None if it has none.

        Raises:
            DataError: if the file is missing or does not match its checksum.
        """
        file, wanted = self.file(part, record["batch"]), record["digests"].get(part)
        payload = file.read_bytes() if file.is_file() else b""
        if _digest(payload) != wanted:
            raise DataError(
                f"{file} is missing or was changed since it was written: start the run again, it "
                "measures this batch anew."
            )
        return read_table(payload) if payload else None

    def edit(self, batch: int) -> Edit:
        """The edit of a batch.

        Raises:
            DataError: if it is missing or damaged.
        """
        return load_edit(self.file("edits", batch))

    def rows(self) -> pd.DataFrame:
        """One row a probe and moment of everything measured so far; columns of ``stream``."""
        config, records = self.config(), self.all_records()
        table = self._joined("rows", records)
        if table is None:
            return pd.DataFrame(columns=list(ROW_COLUMNS))
        held = [r for r in records if r.get("edit")]
        made = {str(c): (r["step"], r["seconds"]) for r in held for c in r["case_ids"]}
        ids = {str(c): c for c in config["case_ids"]}
        key = table["case_id"].astype(str)
        table = table[key.isin(made)].drop_duplicates(["step", "case_id", "probe"])
        key = key[table.index]
        table["case_id"] = key.map(ids)
        table["edit_step"] = key.map({c: step for c, (step, _) in made.items()}).astype("int64")
        table["seconds"] = key.map({c: seconds for c, (_, seconds) in made.items()})
        return self._named(table, config, ROW_COLUMNS)

    def moments(self) -> pd.DataFrame:
        """One row a metric and moment so far; columns of ``moments``."""
        config, records = self.config(), self.all_records()
        table = self._joined("moments", records)
        if table is None:
            return pd.DataFrame(columns=list(MOMENT_COLUMNS))
        table = table.drop_duplicates(["step", "metric", "layer", "task"], keep="last")
        table["layer"] = table["layer"].astype("Int64")
        return self._named(table, config, MOMENT_COLUMNS)

    # ------------------------------------------------------------------ inside

    def _joined(self, part: str, records: list[dict[str, Any]]) -> pd.DataFrame | None:
        tables = [t for r in records if (t := self.table(part, r)) is not None]
        return pd.concat(tables, ignore_index=True) if tables else None

    def _named(
        self, table: pd.DataFrame, config: Mapping[str, Any], columns: tuple[str, ...]
    ) -> pd.DataFrame:
        names = {"run": self.name, "editor": config["editor"], "model": config["model"]}
        return table.assign(**names)[list(columns)].reset_index(drop=True)

    def _clear(self) -> None:
        for part in PARTS:
            shutil.rmtree(self.path / part, ignore_errors=True)
        for name in SINGLE:
            (self.path / name).unlink(missing_ok=True)


def read_table(payload: bytes) -> pd.DataFrame:
    """A table as it was written: exact numbers, case ids and targets as texts.

    Numbers are converted here, since readers of tables round some of them in the last bit.
    """
    table = pd.read_csv(io.BytesIO(payload), dtype=str, keep_default_na=False)
    for name in table.columns:
        if name in BOOLEANS:
            table[name] = table[name] == "True"
        elif name in TEXTS:
            table[name] = table[name].where(table[name] != "", None)
        else:
            numbers = [float(x) if x else math.nan for x in table[name]]
            whole = name in WHOLE
            table[name] = pd.Series(numbers, index=table.index).astype(
                WHOLE[name] if whole else float
            )
    return table


def _require_same(held: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for name in sorted({*held, *wanted} - {"environment"}):
        if held.get(name) != wanted.get(name):
            raise OptionError(
                f"{path} holds a run with {name}={_short(held.get(name))}, this one has "
                f"{_short(wanted.get(name))}: choose another folder, the same {name}, or start "
                "over with fresh=True (the old run is then deleted)."
            )


def _warn_of_bits(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say so if the run goes on where sums may come out otherwise in their last bits."""
    other = [n for n in DECIDES_BITS if before.get(n) != now.get(n)]
    if other:
        told = ", ".join(f"{n} {before.get(n)} → {now.get(n)}" for n in other)
        warnings.warn(
            f"the run was begun elsewhere ({told}): it goes on, but is no longer the same bit for "
            "bit as one that was left alone.",
            stacklevel=5,
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _read_json(file: Path, problem: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found = unseal(found) if isinstance(found, dict) else found
    except FileNotFoundError as err:
        raise DataError(f"{file.parent} {problem}: there is no {file.name}.") from err
    except (OSError, ValueError) as err:
        raise DataError(f"{file} is damaged ({err}): start the run over with fresh=True.") from err
    if not isinstance(found, dict):
        raise DataError(f"{file} is damaged: start the run over with fresh=True.")
    return found


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1).encode()


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def csv_gz(table: pd.DataFrame) -> bytes:
    """A table as gzipped CSV: the same bytes for the same table, whenever it is written."""
    return gzip.compress(table.to_csv(index=False).encode(), mtime=0)
