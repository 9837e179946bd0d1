"""Telescopes by name or by what their images say: the image part of the survey profiles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tapetum.core.errors import InputError
from tapetum.surveys.profile import (
    ImageFields,
    ImageKeys,
    ImageMask,
    SurveyProfile,
    all_profiles,
    load_profile,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GENERIC = "generic"
SUFFIX = re.compile(r"\.(?:fits|fit|fts)(?:\.(?:fz|gz))?$", re.IGNORECASE)


def telescope_names() -> list[str]:
    """Names of all telescopes whose images are known, as they are usually spelt, sorted without regard to case."""
    return sorted((spelling(profile) for profile in _image_profiles()), key=str.lower)


def spelling(profile: SurveyProfile) -> str:
    """The name of a telescope as people write it: its first alias, else the name of the profile."""
    return profile.aliases[0] if profile.aliases else profile.name


def find_telescope(name: str | Path) -> SurveyProfile:
    """The profile of a telescope, by a spelling of its name or by the path of a ``profile.toml``.

    Case does not matter, nor whether words are joined by ``-``, ``_`` or a space.

    Raises
    ------
    InputError
        There is no such telescope, or its profile has no part for images.
    """
    wanted = str(name)
    if wanted.endswith(".toml"):
        profile = load_profile(wanted)
        image_fields(profile)
        return profile
    for profile in all_profiles():
        if _plain(wanted) in {_plain(known) for known in (profile.name, *profile.aliases)}:
            image_fields(profile)
            return profile
    raise InputError(
        f"{wanted!r} is not a telescope; known: {', '.join(telescope_names())}, or the path of a profile.toml"
    )


def image_fields(profile: SurveyProfile) -> ImageFields:
    """The image part of a profile.

    Raises
    ------
    InputError
        It has none.
    """
    if profile.image is None:
        raise InputError(
            f"{profile.name}: this profile has no part [image]; known telescopes: {', '.join(telescope_names())}"
        )
    return profile.image


def recognise(header: Mapping[str, object], filename: str = "") -> SurveyProfile:
    """The profile of the telescope that an image comes from; ``generic`` where none is recognised.

    Header rules come first (of several that hold, the one with most keys), then the grammar of file names,
    then a ``TELESCOP`` that is the name of a telescope.

    Parameters
    ----------
    header
        Of the image; anything with ``get``.
    filename
        Without its folder.
    """
    profiles = _image_profiles()
    best = max(profiles, key=lambda profile: _n_agreeing(profile, header))
    if _n_agreeing(best, header):
        return best
    for profile in profiles:
        if filename and file_name_groups(profile, filename):
            return profile
    telescope = _plain(str(header.get("TELESCOP") or ""))
    for profile in profiles:
        if telescope and telescope in {_plain(known) for known in (profile.name, *profile.aliases)}:
            return profile
    return generic_profile()


def generic_profile() -> SurveyProfile:
    """What holds for telescopes that are not known."""
    return load_profile(GENERIC)


def _image_profiles() -> list[SurveyProfile]:
    return [profile for profile in all_profiles() if profile.image is not None]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", "_", name.strip()).casefold()


def _n_agreeing(profile: SurveyProfile, header: Mapping[str, object]) -> int:
    """How many header values agree with the longest rule that holds; 0 where none does."""
    assert profile.image is not None
    rules = profile.image.recognise
    return max((len(rule) for rule in rules if _holds(rule, header)), default=0)


def _holds(rule: Mapping[str, str], header: Mapping[str, object]) -> bool:
    return all(re.search(pattern, str(header.get(key) or "")) for key, pattern in rule.items())


def keys_of(profile: SurveyProfile) -> ImageKeys:
    """Header keys of a telescope; what its profile leaves out comes from ``generic``."""
    own, common = image_fields(profile).keys, image_fields(generic_profile()).keys
    return own.model_copy(
        update={name: getattr(common, name) for name in ImageKeys.model_fields if getattr(own, name) is None}
    )


def mask_rules(profile: SurveyProfile) -> ImageMask:
    """How the mask beside an image is called and read; the rules of ``generic`` where the profile has none."""
    return image_fields(profile).mask or image_fields(generic_profile()).mask or ImageMask()


def band_of(profile: SurveyProfile, filter_name: str) -> str | None:
    r"""The sncosmo name of a filter, ``clear`` for none in the beam, or None when it is not known.

    Examples
    --------
    >>> band_of(generic_profile(), "R"), band_of(generic_profile(), "r'"), band_of(generic_profile(), "Clear")
    ('bessellr', 'sdssr', 'clear')
    """
    for fields in (image_fields(profile), image_fields(generic_profile())):
        for pattern, name in fields.bands.items():
            found = re.fullmatch(pattern, filter_name.strip())
            if found:
                return found.expand(name).lower() if "\\" in name else name
    return None


def file_name_groups(profile: SurveyProfile, filename: str) -> dict[str, str]:
    """What a file's name says by the grammar of its telescope, ``name`` being all of it; empty if it is another."""
    pattern = image_fields(profile).file_name
    found = re.search(pattern, filename) if pattern else None
    if found is None:
        return {}
    return {
        "name": found.group(),
        **{key: text for key, text in found.groupdict().items() if text is not None},
    }


def mask_file_names(profile: SurveyProfile, filename: str) -> list[str]:
    """Names, without their suffixes, that the mask of an image may have."""
    stem = SUFFIX.sub("", filename)
    names = [re.sub(rule.find, rule.put, stem, count=1) for rule in mask_rules(profile).files]
    return list(dict.fromkeys(name for name in names if name != stem))


def masks_among(filenames: Sequence[str]) -> set[str]:
    """Those of the files in a folder that are masks of others, by the rules of any telescope."""
    names = {name for found in any_mask_file_names(filenames) for name in found}
    return {filename for filename in filenames if SUFFIX.sub("", filename) in names}


def any_mask_file_names(filenames: Sequence[str]) -> list[set[str]]:
    """Of each file the `mask_file_names` by the rules of all telescopes."""
    profiles = [profile for profile in _image_profiles() if image_fields(profile).mask]
    return [
        {name for profile in profiles for name in mask_file_names(profile, filename)}
        for filename in filenames
    ]


def archive_path(profile: SurveyProfile, filename: str, product: str = "science") -> str:
    """Where the telescope's archive keeps an image or its companions, relative to the archive's base address.

    Parameters
    ----------
    filename
        Name of any of the image's files.
    product
        ``science``, ``mask``, ``difference``, ``reference``, ...: as in the profile.

    Raises
    ------
    InputError
        The profile knows no archive or no such product, or the name does not say enough.
    """
    archive = image_fields(profile).archive
    if archive is None or product not in archive.products:
        known = ", ".join(archive.products) if archive else "none"
        raise InputError(
            f"{profile.name}: its archive is not known to keep {product!r}; known products: {known}"
        )
    groups = file_name_groups(profile, filename)
    try:
        return archive.products[product].format_map(groups)
    except KeyError as missing:
        raise InputError(
            f"{filename}: not enough of a {profile.name} file name to find its {product} image: no {missing.args[0]}"
        ) from None


def describe_telescopes() -> list[dict[str, str]]:
    """Name, profile, title and what is known beyond common header keys, of every telescope."""
    rows = []
    for name in telescope_names():
        profile = find_telescope(name)
        rows.append({"name": name, "profile": profile.name, "title": profile.title, "known": _known(profile)})
    return rows


def _known(profile: SurveyProfile) -> str:
    fields = image_fields(profile)
    if profile.name == GENERIC:
        return "common header keys"
    known = {
        "recognised by its header": fields.recognise,
        "file names": fields.file_name,
        "mask": fields.mask,
        "quality flags": fields.quality,
        "archive": fields.archive,
    }
    return ", ".join(name for name, part in known.items() if part) or "all values from the header"
