"""The networks of MaxiMask and MaxiTrack as ONNX, made from their arrays.

MaxiMask (Paillassa, Bertin & Bouy 2020, A&A 634, A48) is an encoder of 3 x 3 convolutions and 2 x 2 maximum pooling
that remembers where each maximum was, and a decoder that puts values back at those places; four side paths lead from
the levels of the decoder to full resolution. Where several pixels of a window are the maximum, the first in row-major
order is the one: after a ReLU most such windows are all zero, and any other choice changes probabilities by up to 1.

The graph is arranged for little work and memory. A tile is asked about its core only, so the decoder, where most of the
work is, leaves out at each level what cannot reach the core any more. At full resolution the 32 planes go in two
groups, so that never more than one group is unpooled at a time, and the last convolution is a sum over the five paths
instead of one over their 70 planes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tapetum.core.errors import FormatError
from tapetum.models.keras_onnx import IR_VERSION, OPSET, Graph
from tapetum.models.tiles import CORE_INPUT

Arrays = Mapping[str, NDArray[np.float32]]

FRAME_INPUT, PROBABILITY_OUTPUT = "frame", "probability"
EVERYTHING = 2**30  # the end of a core that is the whole frame [pixel]
HALOS = {1: 2, 2: 2, 3: 4, 4: 4}  # what convolutions need beside the core at each level, even [pixel there]
N_CLASSES = 14
TRACK_SIDE = 400  # MaxiTrack's activations have slopes for every position, so no other tile fits [pixel]
GROUP = 16  # planes that are unpooled together at full resolution; what fast kernels take as one block
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
ENCODER = (("conv1",), ("conv2",), ("conv3_1", "conv3_2"), ("conv4_1", "conv4_2"), ("conv5_1", "conv5_2"))
DECODER = {  # level 2 has one convolution, which ends in groups of planes
    5: ("upconv5_2", "upconv5_1"),
    4: ("upconv4_2", "upconv4_1"),
    3: ("upconv3_2", "upconv3_1"),
}


@dataclass(frozen=True)
class Places:
    """Where the maxima of a pooling were: names of the indices and of the shape before pooling."""

    indices: str
    shape: str


@dataclass(frozen=True)
class Region:
    """Part of the planes of one level: names of its first row and column, and of the ends."""

    start: str
    end: str


class _Builder:
    """Operations of MaxiMask on named tensors."""

    def __init__(self, arrays: Arrays) -> None:
        self.graph = Graph("2")
        self._arrays = arrays

    def kernel(self, layer: str) -> NDArray[np.float32]:
        """Of a convolution, (out, in, y, x)."""
        return _array(self._arrays, f"{layer}/kernel", 4).transpose(3, 2, 0, 1)

    def bias(self, layer: str) -> NDArray[np.float32]:
        """Of a convolution, (out,)."""
        return _array(self._arrays, f"{layer}/bias", 1)

    def convolve(
        self, x: str, kernel: NDArray[np.float32], bias: NDArray[np.float32] | None, label: str
    ) -> str:
        """Convolution with zeros beyond the border, as large as `x`."""
        operands = [x, self.graph.constant(kernel, label)]
        if bias is not None:
            operands.append(self.graph.constant(bias, label))
        half = kernel.shape[2] // 2
        return self.graph.add(
            "Conv", operands, label, kernel_shape=[2 * half + 1] * 2, pads=[half] * 4, strides=[1, 1]
        )

    def relu(self, x: str) -> str:
        return self.graph.add("Relu", [x], "relu")

    def add(self, one: str, other: str) -> str:
        return self.graph.add("Add", [one, other], "add")

    def layers(self, x: str, *names: str) -> str:
        """Convolutions with ReLU, one after the other."""
        for name in names:
            x = self.relu(self.convolve(x, self.kernel(name), self.bias(name), name))
        return x

    def groups_out(self, x: str, name: str) -> list[str]:
        """A convolution with ReLU whose planes come out in groups."""
        kernel, bias = self.kernel(name), self.bias(name)
        return [
            self.relu(self.convolve(x, kernel[i : i + GROUP], bias[i : i + GROUP], name))
            for i in range(0, len(kernel), GROUP)
        ]

    def groups_in(self, groups: Sequence[str], name: str) -> str:
        """A convolution with ReLU over planes in groups; planes of zeros fill its output up to a whole group."""
        kernel, bias = _filled(self.kernel(name), 0), _filled(self.bias(name), 0)
        total = ""
        for i, group in enumerate(groups):
            part = kernel[:, i * GROUP : (i + 1) * GROUP]
            one = self.convolve(group, part, None if total else bias, name)
            total = self.add(total, one) if total else one
        return self.relu(total)

    def pool(self, x: str) -> tuple[str, Places]:
        """2 x 2 maximum of planes with even sides."""
        pooled, indices = (f"{what}_{len(self.graph.nodes)}" for what in ("pooled", "places"))
        self.graph.nodes.append(helper.make_node("MaxPool", [x], [pooled, indices], name=pooled, **POOL))
        return pooled, Places(indices, self.graph.add("Shape", [x], "shape"))

    def largest(self, x: str) -> str:
        """`pool` where the places are not needed, which is faster."""
        return self.graph.add("MaxPool", [x], "largest", **POOL)

    def unpool(self, x: str, places: Places) -> str:
        """Every value where its maximum had been, zeros elsewhere."""
        return self.graph.add("MaxUnpool", [x, places.indices, places.shape], "unpooled", **POOL)

    def even(self, x: str) -> str:
        """With a row or column of zeros at the end where a side is odd: no maximum, as `x` has no negative values."""
        odd = self._pair("Mod", self.plane(x), 2)
        pads = self.graph.add("Concat", [self._numbers(0, 0, 0, 0, 0, 0), odd], "pads", axis=0)
        return self.graph.add("Pad", [x, pads], "even")

    def plane(self, x: str) -> str:
        """Numbers of rows and columns."""
        return self._part(self.graph.add("Shape", [x], "shape"), 2)

    def cut(self, x: str, start: str, end: str) -> str:
        """Rows and columns from `start` to `end`."""
        return self.graph.add("Slice", [x, start, end, self._numbers(2, 3)], "cut")

    def first(self, x: str, end: str) -> str:
        """Rows and columns up to `end`."""
        return self.cut(x, self._numbers(0, 0), end)

    def regions(self) -> dict[int, Region]:
        """What of each level can reach the core; of level 0, the core itself; of level 5, everything."""
        start, end = self._part(CORE_INPUT, 0), self._part(CORE_INPUT, 2)
        plane = self.plane(FRAME_INPUT)
        found = {0: Region(start, self.graph.add("Min", [end, plane], "end"))}
        for level, halo in HALOS.items():
            scale = 2 ** (level - 1)
            before = self._pair("Sub", self._pair("Div", start, scale), halo)
            after = self._pair("Add", self._pair("Div", end, scale), halo)
            sides = self._pair("Div", plane, scale)
            found[level] = Region(self._pair("Max", before, 0), self.graph.add("Min", [after, sides], "end"))
        found[5] = Region(self._numbers(0, 0), "")
        return found

    def within(self, x: str, outer: Region, inner: Region, scale: int) -> str:
        """Of planes that are `outer`, what becomes `inner` when they are spread by `scale`."""
        ends = (self._pair("Div", end, scale) if scale > 1 else end for end in (inner.start, inner.end))
        return self.cut(x, *(self.graph.add("Sub", [end, outer.start], "within") for end in ends))

    def _part(self, x: str, start: int) -> str:
        """Two numbers of a list."""
        return self.graph.add("Slice", [x, self._numbers(start), self._numbers(start + 2)], "part")

    def _pair(self, operation: str, x: str, value: int) -> str:
        """The same done to rows and columns."""
        return self.graph.add(operation, [x, self._numbers(value, value)], "pair")

    def _numbers(self, *values: int) -> str:
        return self.graph.constant(np.array(values, np.int64), "numbers")


def maximask_onnx(arrays: Arrays) -> bytes:
    """The network of MaxiMask.

    Parameters
    ----------
    arrays
        ``LAYER/kernel`` (3, 3, in, out) and ``LAYER/bias`` (out,) of its 28 convolutions, by the names that they have
        in the published SavedModel.

    Returns
    -------
    bytes
        ONNX. Input ``frame``, float32 (n, 1, n_y, n_x) with sides that are multiples of 16, in units of the sky noise.
        Input ``core``, int64, which may be left out: first row, first column, end of rows, end of columns that are
        asked for, multiples of 16, the same for all frames. Output ``probability``, float32 (n, 14, n_y, n_x) of the
        core, at the training priors. The same arrays give the same bytes.

    Raises
    ------
    FormatError
        An array is missing or has another shape than the network needs; names it.
    """
    builder = _Builder(arrays)
    regions = builder.regions()
    frame = builder.graph.add("Asinh", [FRAME_INPUT], "asinh")
    first = builder.groups_out(frame, *ENCODER[0])
    x = builder.graph.add("Concat", [builder.largest(group) for group in first], "joined", axis=1)
    maps = {}
    for level, names in enumerate(ENCODER[1:], start=2):
        maps[level] = builder.layers(x, *names)
        x = builder.largest(maps[level]) if level < 5 else maps[level]
    # the original's tiles of 400 pixels have 25 here
    x, deepest = builder.pool(builder.even(maps[5]))
    x = builder.first(builder.unpool(builder.layers(x, "convmid"), deepest), builder.plane(maps[5]))
    x = builder.layers(builder.add(x, maps[5]), *DECODER[5])
    decoder = _Decoder(builder, regions)
    unpooled = {}
    for level in (4, 3, 2):
        skip = decoder.enter(level, [maps[level]])
        [unpooled[level]] = decoder.unpool([x], level)
        x = builder.add(unpooled[level], skip[0])
        if level > 2:
            x = builder.layers(x, *DECODER[level])
    halves = [decoder.side_path(unpooled[level], level) for level in (4, 3, 2)]
    total = decoder.full_resolution(first, builder.groups_out(x, "upconv2"), halves)
    core = builder.within(total, regions[1], regions[0], 1)
    last = builder.graph.add("Sigmoid", [core], "sigmoid")
    return _finish(builder.graph, last, N_CLASSES, None, with_core=True)


class _Decoder:
    """What MaxiMask does from level 4 up to full resolution, each level within its region."""

    def __init__(self, builder: _Builder, regions: Mapping[int, Region]) -> None:
        self._builder = builder
        self._regions = regions
        self._places: dict[int, list[Places]] = {}

    def enter(self, level: int, groups: Sequence[str]) -> list[str]:
        """The encoder's planes within the region of a level, whose maxima `unpool` needs."""
        region = self._regions[level]
        cut = [self._builder.cut(group, region.start, region.end) for group in groups]
        self._places[level] = [self._builder.pool(group)[1] for group in cut]
        return cut

    def unpool(self, groups: Sequence[str], level: int) -> list[str]:
        """Planes of the level below, at the places of this level's maxima."""
        outer, inner = self._regions[level + 1], self._regions[level]
        return [
            self._builder.unpool(self._builder.within(group, outer, inner, 2), places)
            for group, places in zip(groups, self._places[level], strict=True)
        ]

    def side_path(self, x: str, level: int) -> list[str]:
        """From an unpooled level to half resolution, in groups of planes."""
        for step in range(level, 2, -1):
            [x] = self.unpool([self._builder.layers(x, f"ucp{level}_conv{step}")], step - 1)
        return self._builder.groups_out(x, f"ucp{level}_conv2")

    def full_resolution(
        self, first: Sequence[str], last: Sequence[str], halves: Sequence[Sequence[str]]
    ) -> str:
        """The five paths at full resolution and the convolution over them, path by path."""
        builder = self._builder
        first = self.enter(1, first)
        unpooled = self.unpool(last, 1)
        skipped = [builder.add(one, other) for one, other in zip(unpooled, first, strict=True)]
        outputs = {
            number: (self.unpool(groups, 1), f"ucp{5 - number}_conv1")
            for number, groups in enumerate(halves, 1)
        }
        outputs |= {0: (skipped, "upconv1"), 4: (unpooled, "ucp1_conv1")}
        kernel, bias = builder.kernel("final_conv"), builder.bias("final_conv")
        total = ""
        for number in (1, 2, 3, 4, 0):  # runtimes work depth first: what ends early does not wait in memory
            path = builder.groups_in(*outputs[number])
            part = _filled(kernel[:, N_CLASSES * number : N_CLASSES * (number + 1)], 1)
            one = builder.convolve(path, part, None if total else bias, "final_conv")
            total = builder.add(total, one) if total else one
        return total


def maxitrack_onnx(arrays: Arrays) -> bytes:
    """The network of MaxiTrack.

    Parameters
    ----------
    arrays
        ``convN/{kernel,bias,prelu}``, N from 1 to 5, ``denseN/{kernel,bias}``, N from 1 to 3, and ``denseN/prelu`` for
        the first two, shaped as in the published SavedModel.

    Returns
    -------
    bytes
        ONNX. Input ``frame``, float32 (n, 1, 400, 400), in units of the sky noise; output ``probability`` (n, 2): no
        tracking error, tracking error.

    Raises
    ------
    FormatError
        As `maximask_onnx`.
    """
    builder = _Builder(arrays)
    graph = builder.graph
    x, side = graph.add("Asinh", [FRAME_INPUT], "asinh"), TRACK_SIDE
    for number in range(1, 6):
        name = f"conv{number}"
        x = builder.convolve(x, builder.kernel(name), builder.bias(name), name)
        slope = _array(arrays, f"{name}/prelu", 3, (side, side, len(builder.bias(name))))
        x = graph.add("PRelu", [x, graph.constant(slope.transpose(2, 0, 1), name)], name)
        x, side = graph.add("MaxPool", [x], name, **POOL), side // 2
    x = graph.add("Flatten", [x], "flat", axis=1)
    n_channels = len(builder.bias("conv5"))
    for number in range(1, 4):
        name = f"dense{number}"
        weights = _array(arrays, f"{name}/kernel", 2)
        if number == 1:  # the original flattens row, column, channel
            weights = _array(arrays, f"{name}/kernel", 2, (side * side * n_channels, None))
            weights = weights.reshape(side, side, n_channels, -1).transpose(2, 0, 1, 3)
            weights = weights.reshape(side * side * n_channels, -1)
        bias = builder.bias(name)
        x = graph.add("Gemm", [x, graph.constant(weights, name), graph.constant(bias, name)], name)
        if number < 3:
            slope = _array(arrays, f"{name}/prelu", 1, (len(bias),))
            x = graph.add("PRelu", [x, graph.constant(slope, name)], name)
    return _finish(graph, graph.add("Softmax", [x], "softmax", axis=1), len(bias), TRACK_SIDE)


def _array(arrays: Arrays, name: str, n_axes: int, shape: tuple[int | None, ...] = ()) -> NDArray[np.float32]:
    if name not in arrays:
        raise FormatError(f"the array {name} is missing")
    values = np.asarray(arrays[name], dtype=np.float32)
    fits = all(want in (None, got) for want, got in zip(shape, values.shape, strict=False))
    if values.ndim != n_axes or not fits:
        raise FormatError(f"the array {name} has the shape {values.shape}, not {shape or f'{n_axes} axes'}")
    return values


def _filled(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """With zeros at the end of an axis up to a whole group."""
    pads = [(0, 0)] * values.ndim
    pads[axis] = (0, -values.shape[axis] % GROUP)
    return np.pad(values, pads)


def _finish(graph: Graph, last: str, n_columns: int, side: int | None, *, with_core: bool = False) -> bytes:
    graph.nodes.append(helper.make_node("Identity", [last], [PROBABILITY_OUTPUT], name=PROBABILITY_OUTPUT))
    plane: list[int | str] = ["y", "x"] if side is None else [side, side]
    answer: list[int | str] = ["batch", n_columns, *(["core_y", "core_x"] if with_core else [])]
    takes = [helper.make_tensor_value_info(FRAME_INPUT, TensorProto.FLOAT, ["batch", 1, *plane])]
    if with_core:  # an input with a value of its own may be left out
        everything = np.array([0, 0, EVERYTHING, EVERYTHING], np.int64)
        graph.constants.append(numpy_helper.from_array(everything, CORE_INPUT))
        takes.append(helper.make_tensor_value_info(CORE_INPUT, TensorProto.INT64, [4]))
    gives = helper.make_tensor_value_info(PROBABILITY_OUTPUT, TensorProto.FLOAT, answer)
    made = helper.make_graph(graph.nodes, "network", takes, [gives], graph.constants)
    return _checked(made, OPSET)


def _checked(made: Any, opset: int) -> bytes:
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="tapetum"
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise FormatError(f"the arrays do not fit together: {str(problem).strip().splitlines()[0]}") from None
    return bytes(model.SerializeToString(deterministic=True))


# --- for runtimes that cannot unpool ---


def without_unpooling(network: bytes) -> bytes:
    """The same network, with index unpooling written in operations that every runtime has.

    Only 2 x 2 pooling with stride 2 is rewritten, which is all that MaxiMask has; a network without unpooling comes
    back as it is. The first of several equal maxima is the one, also where coarse numbers (bfloat16) make many
    equal: each maximum is marked 4, 3, 2 or 1 by its place in the window, and the largest mark wins.

    Raises
    ------
    FormatError
        Not ONNX, or another kind of unpooling.
    """
    try:
        model = onnx.load_model_from_string(network)
    except Exception as problem:  # noqa: BLE001 - protobuf's own errors have no common class of their own
        raise FormatError(f"not an ONNX network: {problem}") from None
    old = model.graph
    if not any(node.op_type == "MaxUnpool" for node in old.node):
        return network
    graph = Graph("2")
    graph.constants = list(old.initializer)
    rewriter = _Rewriter(graph)
    for node in old.node:
        if node.op_type == "MaxPool" and len(node.output) == 2:
            rewriter.pool(node)
        elif node.op_type == "MaxUnpool":
            rewriter.unpool(node)
        else:
            graph.nodes.append(node)
    made = helper.make_graph(graph.nodes, old.name, list(old.input), list(old.output), graph.constants)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return _checked(made, opset)


class _Rewriter:
    """Replaces pooling with indices, and unpooling by them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._winners: dict[str, str] = {}  # indices -> which pixel won
        self._scales = self._constant([1, 1, 2, 2], np.float32)
        self._zero = self._constant(0, np.float32)
        self._marks = self._constant([[[[4, 3], [2, 1]]]], np.float32)
        self._first, self._last, self._two, self._one = (
            self._constant(values, np.int64) for values in ([2], [4], [2, 2], [1, 1])
        )

    def pool(self, node: Any) -> None:
        """MaxPool with indices: the same without them, and a plane that says which pixel won."""
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if settings != POOL:
            raise FormatError(f"{node.name}: unpooling of windows other than 2 x 2 is not supported")
        x, (pooled, indices) = node.input[0], node.output
        self._graph.nodes.append(helper.make_node("MaxPool", [x], [pooled], name=node.name, **POOL))
        plane = self._add("Slice", self._add("Shape", x), self._first, self._last)
        repeats = self._add("Concat", self._one, self._add("Div", plane, self._two), axis=0)
        pattern = self._add("Tile", self._marks, repeats)
        marked = self._add("Where", self._add("Equal", x, self._spread(pooled)), pattern, self._zero)
        largest = self._add("MaxPool", marked, **POOL)
        self._winners[indices] = self._add("Equal", marked, self._spread(largest))

    def unpool(self, node: Any) -> None:
        """MaxUnpool: the value where the pixel won, zero elsewhere."""
        winner = self._winners.get(node.input[1])
        if winner is None:
            raise FormatError(f"{node.name}: unpooling by indices of something else than a pooling")
        operands = [winner, self._spread(node.input[0]), self._zero]
        self._graph.nodes.append(helper.make_node("Where", operands, [node.output[0]], name=node.name))

    def _spread(self, x: str) -> str:
        """Every value in the four pixels of its window."""
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._add("Resize", x, "", self._scales, **how)

    def _add(self, operation: str, *inputs: str, **settings: Any) -> str:
        return self._graph.add(operation, inputs, f"rewritten/{operation}", **settings)

    def _constant(self, values: Any, kind: type) -> str:
        return self._graph.constant(np.array(values, kind), "rewritten")
