"""Job tables: one row per job, numbered; quadrants of fields, files of light curves, or whatever a table lists."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.lightcurves.formats.hats import is_hats, partitions_of
from tapetum.lightcurves.formats.opening import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tapetum.lightcurves.remote import Quadrant

JOB, COMMAND = "job", "command"
QUADRANT = ("field", "ccd", "quad")
_COUNTS = ("n_curves", "n_sources", "count")  # columns that say how much there is in a quadrant
_PLACE = re.compile(r"\{([A-Za-z_]\w*)(?::0?(\d+)d?)?\}")


@dataclass(frozen=True)
class Row:
    """One job.

    Attributes
    ----------
    index
        Its number, by which it is run.
    values
        The other columns, as text.
    """

    index: int
    values: Mapping[str, str]

    def __str__(self) -> str:
        return f"job {self.index} ({', '.join(f'{key} {value}' for key, value in self.values.items())})"


def numbered(entries: Iterable[Mapping[str, object]]) -> list[Row]:
    """Rows with numbers from 0 on."""
    rows = [
        Row(index, {key: str(value) for key, value in entry.items()}) for index, entry in enumerate(entries)
    ]
    if not rows:
        raise InputError("the job table is empty: nothing was found to work on")
    return rows


def quadrant_rows(wheres: Iterable[Quadrant]) -> list[Row]:
    """Jobs of quadrants: columns field, ccd, quad.

    Raises
    ------
    InputError
        There is none.
    """
    return numbered({"field": where.field, "ccd": where.ccd, "quad": where.quadrant} for where in wheres)


def file_rows(paths: Sequence[str | Path]) -> list[Row]:
    """Jobs of files: columns part (its path) and name (unlike every other one's, for outputs).

    Parameters
    ----------
    paths
        Files; folders, of which every file of light curves is taken; HATS catalogues, of which every partition is.

    Raises
    ------
    InputError
        One is not there, or there is none.
    """
    files = [file.absolute() for path in paths for file in _files_of(Path(path))]
    if len(set(files)) < len(files):
        twice = next(file for file, count in Counter(files).items() if count > 1)
        raise InputError(f"{twice}: is named twice; each file is one job")
    names = [_stem(file) for file in files]
    if len(set(names)) < len(names):
        width = len(str(len(files)))
        names = [f"{number:0{width}d}_{name}" for number, name in enumerate(names)]
    return numbered({"part": file, "name": name} for file, name in zip(files, names, strict=True))


def _files_of(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    if is_hats(path):
        return [file for _, file in partitions_of(path)]
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and _stem(entry) != entry.name)
    if not files:
        raise InputError(f"{path}: no light curves in this folder; known suffixes: {' '.join(SUFFIXES)}")
    return files


def _stem(file: Path) -> str:
    """The name of a file without what says that there are light curves in it."""
    plain = file.name.removesuffix(".gz")
    for suffix in SUFFIXES:
        if plain.lower().endswith(suffix):
            return plain[: -len(suffix)]
    return file.name


def product_rows(lists: Mapping[str, Sequence[str]]) -> list[Row]:
    """Jobs of every combination of values, the last column's changing fastest.

    Raises
    ------
    InputError
        A column has no value.
    """
    return numbered(
        dict(zip(lists, values, strict=True)) for values in (product(*lists.values()) if lists else ())
    )


def command_rows(path: Path) -> list[Row]:
    """Jobs of a script with one tapetum command per line: column command; comments and empty lines are none.

    Raises
    ------
    InputError
        The file cannot be read, or has no command.
    """
    lines = _text(path).replace("\\\n", " ").splitlines()
    words = [_words_of(line, path) for line in lines]
    return numbered({COMMAND: shlex.join(line)} for line in words if line)


def _words_of(line: str, path: Path) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as problem:
        raise FormatError(f"{path}: {line.strip()!r}: {problem}") from None
    return words[1:] if words[:1] == ["tapetum"] else words


def table_rows(path: Path, fields: Sequence[int] = ()) -> list[Row]:
    """Jobs of a table: any one with a header, or the described `slurm.dat` (job field ccd quad, no header).

    Parameters
    ----------
    path
        ``.dat`` and ``.txt`` hold columns between blanks; every other suffix is that of a table. A column `job` numbers
        the jobs, else their order does; quadrants that a column `n_curves` says are empty are left out.
    fields
        Only quadrants of these; none takes all.

    Raises
    ------
    InputError
        The file cannot be read, has no rows, or a number twice.
    """
    columns, entries = _from_text(path) if path.suffix.lower() in (".dat", ".txt") else _from_table(path)
    if fields and "field" not in columns:
        raise InputError(f"{path}: has no column field, so fields cannot be chosen from it")
    kept = [entry for entry in entries if _populated(entry)]
    if fields:
        kept = [entry for entry in kept if int(entry["field"]) in fields]
    if not kept:
        raise InputError(f"{path}: no job in this table")
    if JOB not in columns:
        return numbered(kept)
    return _rows_by_number(kept, path)


def _rows_by_number(entries: Sequence[dict[str, str]], path: Path) -> list[Row]:
    try:
        rows = [
            Row(int(entry[JOB]), {key: value for key, value in entry.items() if key != JOB})
            for entry in entries
        ]
    except ValueError as problem:
        raise FormatError(f"{path}: column {JOB}: {problem}") from None
    numbers = Counter(row.index for row in rows)
    wrong = [number for number, count in numbers.items() if count > 1 or number < 0]
    if wrong:
        raise FormatError(f"{path}: job {wrong[0]}: each job has a number of its own, from 0 on")
    return rows


def _populated(entry: Mapping[str, str]) -> bool:
    """Whether a quadrant has light curves, where the table says how many."""
    return all(entry.get(name) not in ("0", "0.0") for name in _COUNTS)


def _from_text(path: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    lines = [line.split() for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]
    header: Sequence[str] = (JOB, *QUADRANT)
    if lines and not lines[0][0].isdecimal():
        header, lines = lines[0], lines[1:]
    for line in lines:
        if len(line) != len(header):
            raise FormatError(
                f"{path}: {' '.join(line)!r}: {len(header)} columns belong here: {' '.join(header)}"
            )
    return header, [dict(zip(header, line, strict=True)) for line in lines]


def _from_table(path: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    from tapetum.report.read_tables import read_table

    table = read_table(path)
    names = [{"quadrant": "quad"}.get(name, name) for name in table.column_names]
    rows = table.rename_columns(names).to_pylist()
    return names, [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise InputError(f"{path}: cannot be read: {reason}") from None


def rows_to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV, with a header."""
    names = list(rows[0].values)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([JOB, *names])
    writer.writerows([row.index, *(row.values.get(name, "") for name in names)] for row in rows)
    return out.getvalue()


def rows_from_csv(path: Path) -> list[Row]:
    """As `rows_to_csv` wrote it.

    Raises
    ------
    InputError
        The file cannot be read or is not such a table.
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    entries = [{key: value or "" for key, value in entry.items() if key is not None} for entry in reader]
    if not entries or JOB not in entries[0]:
        raise FormatError(f"{path}: not a job table: its first column is {JOB}, then one row per job")
    return _rows_by_number(entries, path)


def filled(words: Sequence[str], row: Row) -> list[str]:
    """A command with the values of a row: ``{column}`` becomes its value, ``{ccd:02d}`` a number of two digits.

    Raises
    ------
    UsageError
        The table has no such column, or text where a number is wanted.
    """
    values = {JOB: str(row.index), **row.values}

    def value(match: re.Match[str]) -> str:
        name, digits = match[1], match[2]
        if name not in values:
            raise UsageError(f"{match[0]}: the job table has no column {name}; it has {' '.join(values)}")
        if digits is None:
            return values[name]
        if not values[name].isdecimal():
            raise UsageError(f"{match[0]}: {values[name]!r} of {row} is no number")
        return values[name].zfill(int(digits))

    return [_PLACE.sub(value, word) for word in words]
