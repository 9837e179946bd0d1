"""onnxruntime, imported so that it tells nobody: everything in Tapetum that needs it takes it from here.

Since release 1.29 its official builds collect usage data and send them to their maker unless told otherwise
before the import. A survey's machine sends nothing that its operator did not ask for.
"""

from __future__ import annotations

import contextlib
import functools
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

ort.disable_telemetry_events()  # for a program that imported it before us

__all__ = ["frame_memory", "ort", "ort_errors"]

AS_REQUESTED = 1  # an arena grows by what is asked for; by default it doubles


def frame_memory(options: ort.SessionOptions) -> None:
    """Let a session waste little memory on large inputs.

    A plan of the memory of the first run would lie beside what that run took, and an arena that doubles holds up to
    twice what is needed; without any arena the system clears every plane anew, which doubles the time.
    """
    options.enable_mem_pattern = False
    _lean_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _lean_arena() -> None:
    """The arena of this process that sessions can share; there can be only one, and an earlier one stays."""
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg({"arena_extend_strategy": AS_REQUESTED})
    # releases differ in whether a second one is an error; sessions then share the first
    with contextlib.suppress(
        ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException, RuntimeError
    ):
        ort.create_and_register_allocator(place, arena)
