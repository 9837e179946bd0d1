"""The tour of light curves names commands, options, columns and pages that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tapetum.lightcurves.features import features_of

HOW_TO = Path(__file__).resolve().parents[1] / "docs" / "how-to"
PAGE = (HOW_TO / "light-curves.md").read_text()
LINES = re.findall(r"^\$ (tapetum .*)$", PAGE, re.MULTILINE)


def command_of(words: list[str]) -> Any:
    import typer

    from tapetum.cli.app import app

    command: Any = typer.main.get_command(app)
    for word in words[1:]:
        inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            return command
        command = inner
    return command


def options_of(command: Any) -> set[str]:
    return {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)}


@pytest.mark.parametrize("line", LINES)
def test_commands_take_what_they_are_given(line: str) -> None:
    words = line.split()
    command = command_of(words)
    assert command.name == words[2]
    with command.make_context(words[2], words[3:]) as context:
        assert context.params


def test_options_of_the_text_exist() -> None:
    assert len(LINES) == 5
    known = set().union(*(options_of(command_of(line.split())) for line in LINES))
    named = set(re.findall(r"`(--[\w-]+)", PAGE))
    assert len(named) > 12
    assert named - known == set()


def test_features_of_the_text_exist() -> None:
    ours = {feature.name for feature in features_of(["scope", "tapetum"])}
    assert {"wstd", "fourier_amplitude", "fourier_power"} <= ours
    for name in ("wstd", "fourier_amplitude_best", "fourier_power_best", "period_LS_CE_AOV"):
        assert name in PAGE


def test_pages_that_it_leads_to_exist() -> None:
    for target in re.findall(r"\]\(([^)]+\.md)\)", PAGE):
        if "generated" not in target:  # made by the build
            assert (HOW_TO / target).exists(), target
