"""Settings: command line > ``TAPETUM_*`` environment > ``tapetum.toml`` > default. An unknown key is an error.

The file is the one given with ``--config``, else ``./tapetum.toml``, else ``$XDG_CONFIG_HOME/tapetum/tapetum.toml``.
Sections are nested models; in the environment a double underscore separates them (``TAPETUM_STORE__URL``).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from tapetum import __version__
from tapetum.core.errors import InputError
from tapetum.core.files import whole_file
from tapetum.core.places import config_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_PREFIX = "TAPETUM_"
NOT_SETTINGS = {"TAPETUM_TEST_DATA"}  # environment variables with our prefix that are not settings


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AlertSettings(_Section):
    """How alerts are read and scored."""

    model: str = Field("realbogus", description="Model that scores alerts when none is named.")
    batch: int = Field(128, ge=1, le=4096, description="Packets handed to a worker at a time.")


class StoreSettings(_Section):
    """Where alerts are kept."""

    url: str | None = Field(None, description="SQLAlchemy URL of the store, for instance sqlite:///night.db.")
    segments_url: str | None = Field(
        None, description="Folder of the cutout segments; default: beside the database."
    )
    segment_bytes: int = Field(2**30, ge=2**20, description="A segment is closed beyond this size [bytes].")
    commit_alerts: int = Field(512, ge=1, le=100_000, description="Alerts per transaction.")


class ClusterSettings(_Section):
    """Workers of `--scheduler slurm`, and how long any cluster is waited for."""

    queue: str | None = Field(None, description="SLURM partition; default: the site's.")
    account: str | None = Field(None, description="Account that pays for the jobs.")
    walltime: str = Field("01:00:00", description="Longest life of a job; a job that ends is replaced.")
    memory: str = Field("4GiB", description="Memory of one job.")
    workers_per_job: int = Field(
        1, ge=1, le=256, description="Worker processes, of one core each, in one job."
    )
    interface: str | None = Field(
        None, description="Network interface that workers can reach, for instance ib0."
    )
    directives: list[str] = Field([], description="More lines of the job script after #SBATCH.")
    prologue: list[str] = Field(
        [], description="Shell commands before a worker starts, for instance module load."
    )
    scratch: str | None = Field(
        None, description="Folder of a worker on its node; default: the working folder."
    )
    logs: str | None = Field(None, description="Folder of the jobs' output; default: where SLURM puts it.")
    wait_s: float = Field(300.0, gt=0, description="Longest wait while no worker is there [s].")


class ArchiveSettings(_Section):
    """Archives of images; an address that is not set is the archive's public one."""

    ps1_url: str | None = Field(None, description="Pan-STARRS image server, or a mirror of it.")
    hips_url: str | None = Field(None, description="Service that cuts images out of HiPS maps (hips2fits).")
    ztf_url: str | None = Field(None, description="Root of the ZTF products.")
    ztf_login_url: str | None = Field(None, description="Where a session for private ZTF data begins.")
    ztf_user: str | None = Field(None, description="User of private ZTF data; default: public data only.")
    ztf_password: SecretStr | None = Field(
        None, description="Password of that user; better in the environment."
    )
    vizier_url: str | None = Field(None, description="VizieR server that catalogues are fetched from.")
    downloads: int = Field(4, ge=1, le=32, description="Files fetched at the same time.")


class KowalskiSettings(_Section):
    """The Kowalski server that light curves and stored features are fetched from."""

    url: str | None = Field(None, description="Address of the server.")
    user: str | None = Field(None, description="Who asks.")
    password: SecretStr | None = Field(None, description="Password of that user; better in the environment.")
    token: SecretStr | None = Field(None, description="Sent instead of user and password.")
    seconds: float = Field(300.0, gt=0, description="Longest time the server may work on one question [s].")
    threads: int = Field(4, ge=1, le=64, description="Questions asked at the same time.")


class Settings(BaseSettings):
    """Every knob, typed."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid")

    jobs: int = Field(1, ge=1, le=1024, description="Worker processes.")
    scheduler: str = Field(
        "local", description="Where many inputs are worked on: local, tcp://host:port, slurm."
    )
    seed: int = Field(20260, ge=0, description="Seed of every random number generator.")
    alerts: AlertSettings = AlertSettings()
    archives: ArchiveSettings = ArchiveSettings()
    cluster: ClusterSettings = ClusterSettings()
    kowalski: KowalskiSettings = KowalskiSettings()
    store: StoreSettings = StoreSettings()


def settings_file(config: Path | None = None) -> Path | None:
    """The settings file in force, or None.

    Raises
    ------
    InputError
        `config` was named and does not exist.
    """
    if config is not None:
        if not config.is_file():
            raise InputError(f"{config}: no such settings file")
        return config
    for candidate in (Path("tapetum.toml"), config_dir() / "tapetum.toml"):
        if candidate.is_file():
            return candidate
    return None


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Layer the settings.

    Parameters
    ----------
    config
        Settings file; None looks in the usual places.
    overrides
        Values of the command line by dotted name (``"store.url"``); None values are skipped.

    Raises
    ------
    InputError
        The file is not TOML, a key is unknown, or a value does not fit; the message names it.
    """
    path = settings_file(config)
    _refuse_unknown_environment()

    class Layered(Settings):
        """The same settings, read from `path` below environment and command line."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    try:
        read = Layered(**_nest({key: value for key, value in (overrides or {}).items() if value is not None}))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: not valid TOML: {problem}") from None
    except SettingsError as problem:
        raise InputError(f"environment: {problem} (a section needs TAPETUM_SECTION__KEY)") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path or 'settings'}: {key}: {first['msg']} (known keys: tapetum doctor --settings)"
        ) from None
    # of a class that other processes can import: settings travel to workers
    return Settings.model_construct(**{name: getattr(read, name) for name in Settings.model_fields})


def write_settings(path: Path, settings: Settings, command: Mapping[str, Any]) -> None:
    """Write the settings a run used beside its output, as TOML, with version and command."""
    with whole_file(path) as part:
        part.write_text(settings_text(settings, command))


def settings_text(settings: Settings, command: Mapping[str, Any]) -> str:
    """The settings a run used as TOML, with version and command."""
    lines = [f"# written by tapetum {__version__}", "", "[run]"]
    lines += [
        f"{key} = {_toml(value)}"
        for key, value in {"version": __version__, **command}.items()
        if value is not None
    ]
    values = settings.model_dump()
    scalars = {key: value for key, value in values.items() if not isinstance(value, dict)}
    for section, content in [
        ("settings", scalars),
        *((f"settings.{k}", v) for k, v in values.items() if isinstance(v, dict)),
    ]:
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in content.items() if value is not None]
    return "\n".join(lines) + "\n"


def without_password(value: Any) -> Any:
    """A value as it may be shown or written: a URL loses its password, a secret is not shown at all."""
    if isinstance(value, SecretStr):
        return "***"
    if not isinstance(value, str):
        return value
    value = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", value)
    return re.sub(r"(?i)([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&\s]*", r"\1***", value)


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays of them are valid TOML as well
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(without_password(value))


def _nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


def _refuse_unknown_environment() -> None:
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields} | NOT_SETTINGS
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name.split("__")[0].upper() not in known:
            raise InputError(
                f"environment variable {name}: no such setting (known keys: tapetum doctor --settings)"
            )
