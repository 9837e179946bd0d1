"""Finished work: the settings beside an output say what made it, so that it need not be made twice."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapetum import __version__
from tapetum.core.errors import UsageError
from tapetum.core.files import SETTINGS_SUFFIX
from tapetum.core.settings import Settings, without_password, write_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STDOUT = "-"
MOST_COMPLAINTS = 1000  # of a run, kept in its settings file


@dataclass(frozen=True)
class FinishedRun:
    """A run that need not be repeated.

    Attributes
    ----------
    complaints
        What it said of inputs that it could not use; the first thousand of them.
    n_rejected, n_done
        How many inputs it could not use, and how many it could.
    """

    complaints: list[str]
    n_rejected: int
    n_done: int


def settings_path(output: Path) -> Path:
    """Where the settings of a run lie: beside its output."""
    return output.with_name(output.name + SETTINGS_SUFFIX)


def own_files(output: str) -> list[Path]:
    """The files that a run writes: they are never its input."""
    return [] if output == STDOUT else [Path(output), settings_path(Path(output))]


def check_output(output: str) -> None:
    """Raise UsageError when `output` cannot be a file; asked before the work, not after."""
    if output != STDOUT and (not Path(output).name or Path(output).is_dir()):
        raise UsageError(f"{output}: is a folder; name the file to write")


def check_folder(out: Path) -> None:
    """Raise UsageError when `out` cannot be a folder; asked before the work, not after."""
    for place in (out, *out.absolute().parents):
        if place.exists():
            if not place.is_dir():
                raise UsageError(f"-o {out}: {place} is a file; name a folder")
            return


def refuse_twice(inputs: Iterable[str]) -> None:
    """Raise UsageError when a file, or anything else, is named twice: what is in it would be so in the output."""
    seen: set[str] = set()
    for name in inputs:
        place = name if "://" in name else str(Path(name).resolve())
        if place in seen:
            raise UsageError(
                f"{without_password(name)}: is named twice, by itself or within a folder; name it once"
            )
        seen.add(place)


def fingerprint(inputs: Iterable[str | Path], options: Mapping[str, Any], skip: Iterable[Path] = ()) -> str:
    """Hash of what decides an output: the inputs' names, sizes and times, the options, and our version.

    Folders stand for all files in them; those of `skip`, and what lies in folders of it, do not count.
    """
    unwanted = {path.absolute() for path in skip}
    files = (file.absolute() for path in map(Path, inputs) for file in _files(path))
    seen = [_state(file) for file in files if unwanted.isdisjoint((file, *file.parents))]
    content = [seen, dict(options), __version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    try:
        return sorted(path.rglob("*")) if path.is_dir() else [path]
    except OSError:  # reading it will say why
        return [path]


def _state(path: Path) -> tuple[str, int | None, int | None]:
    try:
        status = path.stat()
    except OSError:
        return str(path.absolute()), None, None
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def finished_run(output: str, made_from: str, *, further: bool = False) -> FinishedRun | None:
    """The run that made `output` from exactly this, if there was one, and the output is as it was left.

    Parameters
    ----------
    further
        Further files beside the output belong to it: the run made them too, and they are as they were left.
    """
    if output == STDOUT or not Path(output).exists():
        return None
    try:
        run = tomllib.loads(settings_path(Path(output)).read_text(encoding="utf-8")).get("run", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    if run.get("fingerprint") != made_from or not _untouched(Path(output), run, further=further):
        return None
    return FinishedRun(list(run.get("complaints", [])), run.get("n_rejected", 0), run.get("n_done", 0))


def _untouched(output: Path, run: Mapping[str, Any], *, further: bool) -> bool:
    """Whether an output, and its further files where they are wanted, have the sizes and times that a run recorded."""
    files = list(zip(*(run.get(key, []) for key in ("files", "sizes", "times")), strict=False))
    if further and len(files) < 2:
        return False
    wanted = files if further else files[:1]
    return all(_state(output.with_name(name))[1:] == (size, time) for name, size, time in wanted)


def record_settings(
    output: Path,
    settings: Settings,
    command: Mapping[str, Any],
    made_from: str = "",
    complaints: Sequence[str] = (),
    n_done: int = 0,
    files: Sequence[Path] = (),
) -> None:
    """Write the settings beside a finished output.

    Parameters
    ----------
    files
        The output and further files beside it that are to be made again when one is missing or changed.
    """
    run = {**command, "fingerprint": made_from or None, "complaints": list(complaints)[:MOST_COMPLAINTS]}
    run |= {"n_rejected": len(complaints), "n_done": n_done}
    states = [_state(file)[1:] for file in files]
    if states and (None, None) not in states:  # what a worker has written elsewhere may not be seen here yet
        run |= {"files": [file.name for file in files]}
        run |= {"sizes": [size for size, _ in states], "times": [time for _, time in states]}
    write_settings(settings_path(output), settings, run)
