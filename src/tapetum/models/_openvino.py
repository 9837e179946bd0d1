"""OpenVINO, the extra `openvino`: computes in bfloat16 on processors that can. Nothing else in Tapetum imports it."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import MissingExtraError, ModelError
from tapetum.models.maximask_onnx import without_unpooling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SHAPES = 2  # compiled networks that are kept; tiles of one frame have one shape, golden vectors another


def open_network(onnx: bytes, origin: str, *, threads: int = 1) -> OpenvinoRunner:
    """A network on the processor.

    Parameters
    ----------
    onnx
        The file's content.
    origin
        For messages.
    threads
        It uses.

    Raises
    ------
    MissingExtraError
        openvino is not installed.
    ModelError
        Not a network that it can run; names `origin`.
    """
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("openvino", "running a network with OpenVINO") from None
    try:
        return OpenvinoRunner(openvino.Core(), without_unpooling(onnx), threads)
    except RuntimeError as problem:
        raise ModelError(f"{origin}: not a network that OpenVINO can run: {problem}") from None


class OpenvinoRunner:
    """A network in OpenVINO, compiled for each shape of input: fixed shapes need less memory."""

    optional: tuple[str, ...] = ()  # inputs that may be left out keep their values

    def __init__(self, core: Any, onnx: bytes, threads: int) -> None:
        self._core = core
        self._onnx = onnx
        self._compiled: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.exact = not capable
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if capable else "f32",
        }
        model = core.read_model(onnx)
        self.inputs: Mapping[str, tuple[Any, ...]] = {port.any_name: _shape(port) for port in model.inputs}
        self.outputs = tuple(port.any_name for port in model.outputs)

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """These outputs for a batch; the arrays are overwritten by the next call.

        Raises
        ------
        ValueError
            The arrays do not fit the network, or it cannot be run.
        """
        try:
            request = self._request({name: values.shape for name, values in feed.items()})
            arrays = {name: np.ascontiguousarray(values) for name, values in feed.items()}
            answer = request.infer(arrays, share_inputs=True, share_outputs=True)
        except RuntimeError as problem:
            raise ValueError(str(problem)) from None
        return [answer[output] for output in outputs]

    def _request(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """An open request for inputs of these shapes."""
        key = tuple(sorted(shapes.items()))
        if key not in self._compiled:
            while len(self._compiled) >= SHAPES:
                self._compiled.popitem(last=False)
            model = self._core.read_model(self._onnx)
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._compiled[key] = self._core.compile_model(
                model, "CPU", self._settings
            ).create_infer_request()
        self._compiled.move_to_end(key)
        return self._compiled[key]


def _shape(port: Any) -> tuple[Any, ...]:
    return tuple(side.get_length() if side.is_static else str(side) for side in port.partial_shape)
