"""The classes of contaminated pixels, with the codes and the order that MaxiMask gave them (A&A 634, A48)."""

from __future__ import annotations

from enum import IntFlag


class Contaminant(IntFlag):
    """What a pixel is contaminated by; the codes of a single mask, which may be added."""

    CR = 1
    HCL = 2
    DCL = 4
    HP = 8
    DP = 16
    P = 32
    TRL = 64
    FR = 128
    NEB = 256
    SAT = 512
    SP = 1024
    OV = 2048
    BBG = 4096


BACKGROUND = "BG"
"""The class of a pixel that nothing contaminates; its code is 0."""

TITLES: dict[str, str] = {
    "CR": "Cosmic rays",
    "HCL": "Hot columns and lines",
    "DCL": "Dead columns, lines and clusters",
    "HP": "Hot pixels",
    "DP": "Dead pixels",
    "P": "Persistence",
    "TRL": "Trails",
    "FR": "Fringe patterns",
    "NEB": "Nebulosities",
    "SAT": "Saturated pixels",
    "SP": "Diffraction spikes",
    "OV": "Overscanned pixels",
    "BBG": "Bright background",
    BACKGROUND: "Background",
}
"""Name of each of the 14 classes, in their fixed order, and what it stands for."""

NAMES: tuple[str, ...] = tuple(TITLES)


def code_of(name: str) -> int:
    """Code of a class in a single mask; 0 for the background."""
    return 0 if name == BACKGROUND else int(Contaminant[name])
