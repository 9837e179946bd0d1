"""The memory that sessions share."""

from __future__ import annotations

import pytest

from tapetum.models import _ort
from tapetum.models.runtime import Model


@pytest.fixture
def _first_session():
    """As if no session had asked for the arena yet."""
    _ort._lean_arena.cache_clear()
    yield
    _ort._lean_arena.cache_clear()


@pytest.mark.usefixtures("_first_session")
@pytest.mark.parametrize("error", [_ort.ort_errors.Fail, _ort.ort_errors.InvalidArgument, RuntimeError])
def test_another_arena_of_the_process_is_no_obstacle(monkeypatch, error):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise error("an allocator is registered already")

    monkeypatch.setattr(_ort.ort, "create_and_register_allocator", refuse)
    card = Model.load("tracking").card  # checks its golden vectors
    assert card.frame is not None
    assert len(asked) == 1
