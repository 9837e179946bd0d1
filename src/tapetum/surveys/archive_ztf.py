"""The ZTF archive: whole products by the name of a frame, and sessions for private data."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tapetum.core.errors import InputError, NetworkError, UsageError
from tapetum.core.places import cache_dir
from tapetum.surveys.archive_files import Wanted, fetch_files
from tapetum.surveys.archives import archive_facts
from tapetum.surveys.telescopes import archive_path, find_telescope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tapetum.core.http import HttpClient
    from tapetum.core.settings import ArchiveSettings

TRIPLET = ("science", "reference", "difference")
FILTERS = {"ztfg": "zg", "ztfr": "zr", "ztfi": "zi"}


def field_name(identity: Mapping[str, str | int], band: str | None) -> str:
    """What the names of all frames of one field, filter and quadrant have in common; their reference is called so.

    Parameters
    ----------
    identity
        `field`, `ccd`, `quadrant`, as file name or header of a frame say them.
    band
        sncosmo name of its filter.

    Raises
    ------
    InputError
        They do not say which field, quadrant and filter it is.

    Examples
    --------
    >>> field_name({"field": 655, "ccd": 13, "quadrant": 3}, "ztfr")
    'ztf_000655_zr_c13_q3'
    """
    try:
        field, ccd, quadrant = (int(identity[name]) for name in ("field", "ccd", "quadrant"))
        return f"ztf_{field:06d}_{FILTERS[band or '']}_c{ccd:02d}_q{quadrant}"
    except (KeyError, ValueError):
        known = ", ".join(f"{name} {value}" for name, value in {**identity, "band": band}.items())
        raise InputError(
            f"not known to be a ZTF image with field, CCD, quadrant and filter ({known}); name a reference file"
        ) from None


@dataclass
class ZtfArchive:
    """Products of ZTF.

    Attributes
    ----------
    client
        Asks the archive; it keeps the cookie of the session.
    settings
        Addresses, user and password.
    cache
        Where whole files are kept, in the archive's own folders.
    """

    client: HttpClient
    settings: ArchiveSettings
    cache: Path = field(default_factory=lambda: cache_dir() / "archives" / "ztf")
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _has_session: bool = field(default=False, repr=False)

    def fetch_products(self, frame: str, products: Sequence[str] = TRIPLET) -> list[Path]:
        """Whole files of a frame, from the cache where they are there.

        Parameters
        ----------
        frame
            ``ztf_<date><fraction>_<field>_<filter>_c<ccd>_o_q<quadrant>``, or the name of any of its files.
        products
            Names of the profile: ``science``, ``mask``, ``difference``, ``reference``, ...

        Raises
        ------
        InputError
            No such name or product.
        NetworkError
            The archive cannot be reached, does not have it, or refuses user and password.
        FormatError
            What came is no whole FITS file.
        """
        profile = find_telescope("ztf")
        paths = [archive_path(profile, frame, product) for product in products]
        root = (self.settings.ztf_url or archive_facts("ztf")["url"]).rstrip("/")
        self._begin_session()
        wanted = [Wanted(f"{root}/{path}", self.cache / path) for path in paths]
        return fetch_files(self.client, wanted, self.settings.downloads)

    def _begin_session(self) -> None:
        """Log in once, where a user is named; the password travels in the body, so that no URL has it."""
        user, password = self.settings.ztf_user, self.settings.ztf_password
        if not user:
            return
        if password is None:
            raise UsageError(
                "archives.ztf_user is set without archives.ztf_password; "
                "put it into TAPETUM_ARCHIVES__ZTF_PASSWORD"
            )
        with self._lock:
            if self._has_session:
                return
            facts = archive_facts("ztf")
            url = self.settings.ztf_login_url or facts["login_url"]
            form = {
                "josso_cmd": "login",
                "josso_username": user,
                "josso_password": password.get_secret_value(),
            }
            answer = self.client.request("POST", url, data=form, harmless=True)
            if not any(facts["cookie"] in step.cookies for step in (answer, *answer.history)):
                raise NetworkError(f"{url}: the ZTF archive does not know user {user!r} with this password")
            self._has_session = True
