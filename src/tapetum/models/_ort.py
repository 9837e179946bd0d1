"""onnxruntime, imported so that it tells nobody: everything in Tapetum that needs it takes it from here.

Since release 1.29 its official builds collect usage data and send them to their maker unless told otherwise
before the import. A survey's machine sends nothing that its operator did not ask for.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

ort.disable_telemetry_events()  # for a program that imported it before us

__all__ = ["ort", "ort_errors"]
