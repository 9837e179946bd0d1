"""What contaminates the image that is searched: from masks made before, or by the network, now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import InputError, ModelError, UsageError
from tapetum.finders.contaminants import MODEL, Config, Contaminants, checked_contract, class_rules, load
from tapetum.images.fits import path_of
from tapetum.images.frame import Bad
from tapetum.images.mask_codes import masks_of, read_codes
from tapetum.models.card import load_card
from tapetum.models.registry import CARD_NAME, find_model, list_models
from tapetum.pipelines.steps import WARNING
from tapetum.surveys.telescopes import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tapetum.images.frame import Frame

    Say = Callable[[str], None]

NONE = "none"


@dataclass(frozen=True)
class ContaminantChoice:
    """Where codes are to come from, as the user asked for them.

    Attributes
    ----------
    kind
        ``auto``: masks beside the image, else our own network where it is installed; ``model``; ``masks`` of a file or
        folder; ``none``.
    name
        Of the network, file or folder; empty where none was named.
    """

    kind: Literal["auto", "model", "masks", "none"]
    name: str = ""

    @classmethod
    def parse(cls, text: str | None) -> ContaminantChoice:
        """What an option means: nothing, ``none``, a FITS file or a folder of masks, or a network.

        Raises
        ------
        InputError
            No such file.
        """
        if text is None:
            return cls("auto")
        if text.lower() == NONE:
            return cls("none")
        path = path_of(text)
        if SUFFIX.search(path.name):
            if not path.is_file():
                raise InputError(f"{text}: no such file of contaminant masks")
            return cls("masks", text)
        return cls("masks" if path.is_dir() and not (path / CARD_NAME).is_file() else "model", text)

    def masks_for(self, source: str) -> str | None:
        """The masks that are to be read for an image; None where there are none."""
        if self.kind == "masks" and not Path(self.name).is_dir():
            return self.name
        if self.kind not in ("auto", "masks"):
            return None
        found = masks_of(source, Path(self.name) if self.name else None)
        return None if found is None else str(found)

    @property
    def network(self) -> str | None:
        """The network that may have to be run; None where there is none."""
        if self.kind == "auto":
            return MODEL if any(files.name == MODEL for files in list_models()) else None
        return self.name if self.kind == "model" else None

    @property
    def identity(self) -> str | None:
        """What the network is, as its card says; None where there is none.

        Raises
        ------
        ModelError
            No such network.
        """
        return None if self.network is None else load_card(find_model(self.network).card).identity

    def check(self) -> None:
        """Raise before the work what could not be done for any image.

        Raises
        ------
        ModelError
            No such network.
        UsageError
            It answers another question.
        """
        if self.kind != "model":
            return
        card = load_card(find_model(self.name).card)
        try:
            checked_contract(card)
        except InputError as problem:
            raise UsageError(f"--contaminants {problem}") from None
        class_rules(card.classes, Config())


class ContaminantLookup:
    """Says what contaminates an image; the network is loaded when it is needed first."""

    def __init__(self, asked: ContaminantChoice, *, threads: int = 1) -> None:
        self.asked = asked
        self.threads = threads

    @cached_property
    def finder(self) -> Contaminants | None:
        """The network; None where there is none."""
        return None if self.asked.network is None else load(self.asked.network, threads=self.threads)

    def codes(self, frame: Frame, say: Say) -> tuple[NDArray[np.uint16] | None, str]:
        """Codes of every pixel, and who gave them; None where nobody knows.

        Raises
        ------
        InputError, FormatError, ModelError
            What was named cannot be used; what nobody asked for is only told.
        """
        try:
            return self._codes(frame, say)
        except (InputError, ModelError) as problem:
            if self.asked.kind != "auto":
                raise
            say(f"{WARNING}contaminants are not known: {problem}")
            return None, ""

    def _codes(self, frame: Frame, say: Say) -> tuple[NDArray[np.uint16] | None, str]:
        masks = self.asked.masks_for(frame.source)
        if masks is not None and self._is_older(masks, frame.source):
            say(
                f"{WARNING}{masks}: older than its image, and not used; make it again, or name it with --contaminants"
            )
            masks = None
        if masks is not None:
            codes, network = read_codes(masks, frame.source)
            return codes, f"{masks} ({network})" if network else masks
        if self.asked.kind == "masks":
            say(f"{WARNING}no contaminant masks of it in {self.asked.name}")
        if self.finder is None:
            return None, ""
        bad = frame.mask & np.uint8(Bad.NO_DATA)
        found = self.finder.find(frame.data, bad, saturation=frame.info.saturation)
        card = self.finder.model.card
        return found.codes, f"{card.name} {card.version}"

    def _is_older(self, masks: str, source: str) -> bool:
        if self.asked.kind != "auto":
            return False
        return Path(masks).stat().st_mtime_ns < path_of(source).stat().st_mtime_ns
