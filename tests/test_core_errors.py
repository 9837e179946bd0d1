"""The exception tree, the log and the progress bars."""

from __future__ import annotations

import json
import logging

import pytest

from tapetum.core import errors
from tapetum.core.log import configure_logging
from tapetum.core.progress import open_progress

CODES = {
    "TapetumError": 1, "UsageError": 2, "InputError": 3, "FormatError": 3, "LimitError": 3, "MissingExtraError": 4,
    "PartialFailureError": 5, "NetworkError": 1, "ModelError": 1, "StoreError": 1,
}  # fmt: skip


def test_one_tree_with_the_exit_codes_of_the_contract():
    found = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    assert {name: kind.exit_code for name, kind in found.items()} == CODES
    assert all(issubclass(kind, errors.TapetumError) for kind in found.values())


def test_a_missing_extra_says_how_to_get_it():
    assert "pip install 'tapetum[train]'" in str(errors.MissingExtraError("train", "training a network"))


@pytest.fixture
def _own_logger():
    logger = logging.getLogger("tapetum")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.usefixtures("_own_logger")
def test_log_lines_are_json_where_asked(capsys):
    configure_logging(1, as_json=True)
    logging.getLogger("tapetum.alerts").info("read %d packets", 3)
    logging.getLogger("tapetum.alerts").debug("too much")
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert json.loads(line)["message"] == "read 3 packets"
    assert json.loads(line)["level"] == "info"
    assert captured.out == ""


@pytest.mark.usefixtures("_own_logger")
@pytest.mark.parametrize(("verbosity", "heard"), [(-1, 1), (0, 2), (1, 3), (2, 4)])
def test_verbosity(verbosity, heard, capsys):
    configure_logging(verbosity)
    logger = logging.getLogger("tapetum.store")
    for level in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
        logger.log(level, "x")
    assert len(capsys.readouterr().err.splitlines()) == heard


def test_progress_is_silent_away_from_a_terminal(capsys):
    with open_progress("scoring", enabled=False) as progress:
        progress(3, 10)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
