"""`tapetum doctor`: what is installed, what works, what is missing and how to get it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import JsonOption, settings_of

if TYPE_CHECKING:
    from tapetum.core.settings import Settings

REINSTALL = "python -m pip install --upgrade --force-reinstall tapetum"
MIN_FREE_BYTES = 2**30  # below this a night of alerts no longer fits


@dataclass(frozen=True)
class Problem:
    """Something that is broken, and what to do about it."""

    what: str
    remedy: str


@dataclass
class Checkup:
    """What the doctor saw; the sections are plain values, ready for JSON."""

    versions: dict[str, str | None] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def broken(self, what: object, remedy: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(str(what), remedy))


def requirements() -> dict[str, list[str]]:
    """Names of the packages that Tapetum asks for, by extra; ``""`` holds those it cannot run without."""
    from importlib.metadata import requires

    wanted: dict[str, list[str]] = {"": []}
    for line in requires("tapetum") or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker)
        wanted.setdefault(extra[1] if extra else "", []).append(name)
    return wanted


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, None when it is not there."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_versions(seen: Checkup) -> None:
    """Versions of Tapetum, Python and every package it needs; which extras are complete."""
    from tapetum import __version__

    wanted = requirements()
    seen.versions = {"tapetum": __version__, "python": sys.version.split()[0]}
    for name in wanted.pop(""):
        seen.versions[name] = installed_version(name)
        if seen.versions[name] is None:
            seen.broken(f"{name} is not installed", REINSTALL)
    for extra, names in wanted.items():
        missing = [name for name in names if installed_version(name) is None]
        seen.extras[extra] = {
            "complete": not missing,
            "missing": missing,
            "install": f"python -m pip install 'tapetum[{extra}]'",
        }


def check_devices(seen: Checkup) -> None:
    """Cores and memory that this process may use, and what runs the networks."""
    from tapetum.models._ort import ort

    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    seen.devices = {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": pages * page,
        "onnxruntime_providers": ort.get_available_providers(),
    }


def check_kernels(seen: Checkup) -> None:
    """Compile the kernels into numba's cache, so that no first real run waits for it, and test each."""
    from numba.core.errors import NumbaError

    from tapetum.core.errors import TapetumError
    from tapetum.pipelines.selftest import SELF_TESTS

    for name, self_test in SELF_TESTS.items():
        start = time.perf_counter()
        problem: Exception | None = None
        try:
            self_test()
        except (TapetumError, NumbaError, OSError) as caught:
            problem = caught
            seen.broken(f"compiled part {name}: {caught}", REINSTALL + " numba")
        seen.kernels.append(
            {"name": name, "ok": problem is None, "seconds": round(time.perf_counter() - start, 3)}
        )


def check_models(seen: Checkup, settings: Settings) -> None:
    """Models that are there, and whether the one that scores alerts gives its golden vectors."""
    from tapetum.core.errors import TapetumError
    from tapetum.models.registry import list_models
    from tapetum.models.runtime import Model

    try:
        for entry in list_models():
            seen.models.append({"name": entry.name, "version": entry.version, "path": str(entry.onnx)})
        Model.load(settings.alerts.model)
    except TapetumError as problem:
        seen.broken(f"alerts.model: {problem}", f"tapetum models list, or {REINSTALL}")


def check_store(seen: Checkup, settings: Settings) -> None:
    """Whether the store of the settings, if they name one, opens and what it holds."""
    from tapetum.core.errors import TapetumError
    from tapetum.core.settings import without_password

    url = settings.store.url
    seen.store = {"url": without_password(url)}
    if url is None:
        return
    from tapetum.store.store import open_store

    try:
        with open_store(url) as store:
            seen.store |= store.info()
    except TapetumError as problem:
        seen.broken(f"store: {problem}", "tapetum store init, or another store.url in the settings")


def check_places(seen: Checkup, config: Path | None) -> None:
    """Settings file, caches and the space left for them."""
    from tapetum.core.places import cache_dir
    from tapetum.core.settings import settings_file

    cache = cache_dir()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    named = settings_file(config)
    seen.places = {
        "settings_file": str(named) if named else None,
        "cache": str(cache),
        "cache_used_bytes": used,
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "working_folder": str(Path.cwd()),
        "working_folder_free_bytes": shutil.disk_usage(Path.cwd()).free,
    }
    for place in ("cache", "working_folder"):
        if seen.places[f"{place}_free_bytes"] < MIN_FREE_BYTES:
            seen.broken(
                f"less than 1 GiB is free in {seen.places[place]}", "make room there, or work elsewhere"
            )
    if not os.access(existing, os.W_OK):
        seen.broken(f"{cache} cannot be written", "set XDG_CACHE_HOME to a folder that can")


def examine(settings: Settings, config: Path | None) -> Checkup:
    """Look at everything; what depends on a missing package is left out."""
    seen = Checkup()
    check_versions(seen)
    check_places(seen, config)
    if any(version is None for version in seen.versions.values()):
        return seen
    check_devices(seen)
    check_kernels(seen)
    check_models(seen, settings)
    check_store(seen, settings)
    return seen


def settings_rows(settings: Settings) -> list[dict[str, Any]]:
    """Every settings key with its default, the value in force and what it does."""
    from pydantic import BaseModel

    from tapetum.core.settings import without_password

    def walk(model: BaseModel, prefix: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name, info in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                rows += walk(value, f"{prefix}{name}.")
            else:
                default = info.get_default(call_default_factory=True, validated_data={})
                row = {"key": prefix + name, "value": without_password(value), "default": default}
                rows.append({**row, "description": info.description or ""})
        return rows

    return walk(settings, "")


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _pairs(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"  {key:<{width}}  {'-' if value is None else value}" for key, value in values.items()]


def describe(seen: Checkup) -> str:
    """The check-up as text for people."""
    places = {key: _size(value) if key.endswith("_bytes") else value for key, value in seen.places.items()}
    places = {key.removesuffix("_bytes"): value for key, value in places.items()}
    devices = dict(seen.devices)
    if devices:
        devices["memory"] = _size(devices.pop("memory_bytes"))
        devices["onnxruntime_providers"] = ", ".join(devices["onnxruntime_providers"])
    kernels = {
        entry["name"]: f"{'ok' if entry['ok'] else 'BROKEN'} ({entry['seconds']} s)" for entry in seen.kernels
    }
    extras = {
        name: "complete"
        if extra["complete"]
        else f"without {', '.join(extra['missing'])}; {extra['install']}"
        for name, extra in seen.extras.items()
    }
    sections = {
        "versions": seen.versions,
        "devices": devices,
        "compiled parts": kernels,
        "models": {f"{entry['name']} {entry['version']}": entry["path"] for entry in seen.models},
        "store": seen.store,
        "places": places,
        "extras": extras,
    }
    lines = [line for title, values in sections.items() if values for line in (title, *_pairs(values), "")]
    return "\n".join(lines)


def doctor(
    context: typer.Context,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is broken.")] = False,
    settings: Annotated[bool, typer.Option("--settings", help="Show every settings key instead.")] = False,
) -> None:
    """Check this installation: versions, devices, compiled parts, models, store, free disk, extras.

    Exit status 1 when something needed is broken; the remedy is named.

    Example: tapetum doctor --json
    """
    import json

    in_force = settings_of(context)
    if settings:
        rows = settings_rows(in_force)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            typer.echo(f"{row['key']} = {row['value']!r}  (default {row['default']!r})  {row['description']}")
        return
    seen = examine(in_force, context.find_root().obj)
    if as_json:
        typer.echo(json.dumps({**asdict(seen), "ok": not seen.problems}, indent=2))
    elif not quiet:
        typer.echo(describe(seen))
    for problem in seen.problems:
        typer.echo(f"broken: {problem.what}; remedy: {problem.remedy}", err=True)
    if seen.problems:
        raise typer.Exit(1)
    if not as_json and not quiet:
        typer.echo("all is well")
