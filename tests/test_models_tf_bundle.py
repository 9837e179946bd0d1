"""TensorFlow's variables without TensorFlow: a writer of our own as truth, every kind of damage, and the real files."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tapetum.core.errors import FormatError, InputError, LimitError, TapetumError
from tapetum.models import tf_bundle
from tapetum.models._crc32c import crc32c, masked_crc32c
from tapetum.models.tf_bundle import arrays_sha256, find_bundle, read_bundle

# --- a writer, from the description of the formats, slow and plain ---


def slow_crc32c(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(data):
    plain = slow_crc32c(data)
    return ((plain >> 15 | plain << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def number(field, value):
    return varint(field * 8) + varint(value)


def text(field, value):
    return varint(field * 8 + 2) + varint(len(value)) + value


def fixed(field, value):
    return varint(field * 8 + 5) + struct.pack("<I", value)


def make_block(rows, restart_every=3):
    """Rows with shared beginnings, a whole key every few rows, then where those are."""
    body, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(rows):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(before), len(key)) and before[shared] == key[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return (
        body
        + b"".join(struct.pack("<I", at) for at in restarts or [0])
        + struct.pack("<I", len(restarts) or 1)
    )


def intact(data):
    return data


def make_table(rows, per_block=4, compression=0, damage=intact):
    table, top = b"", []
    rows = sorted(rows)
    for start in range(0, len(rows), per_block):
        part = rows[start : start + per_block]
        block = damage(make_block(part))
        top.append((part[-1][0], varint(len(table)) + varint(len(block))))
        kind = bytes([compression])
        table += block + kind + struct.pack("<I", masked(block + kind))
    handles = b""
    for block in (make_block([]), damage(make_block(top, 1))):
        handles += varint(len(table)) + varint(len(block))
        table += block + b"\0" + struct.pack("<I", masked(block + b"\0"))
    return table + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = number(1, 1) + text(3, number(1, 1))


def make_entry(values, offset, *, dtype=1, data=None, checksum=None, shard=0):
    shape = b"".join(text(2, number(1, side)) for side in values.shape)
    data = values.tobytes() if data is None else data
    checksum = masked(data) if checksum is None else checksum
    return (
        number(1, dtype) + text(2, shape) + number(3, shard) + number(4, offset) + number(5, len(data))
    ) + fixed(6, checksum)


def make_graph(tree):
    """An object graph of nested dicts whose leaves are keys in the index; Keras' list of variables beside it."""
    nodes = [b""]
    leaves = []

    def add(branch):
        body = b""
        for name, value in branch.items():
            nodes.append(b"")
            place = len(nodes) - 1
            body += text(1, number(1, place) + text(2, name.encode()))
            if isinstance(value, dict):
                nodes[place] = add(value)
            else:
                leaves.append(place)
                attribute = text(1, b"VARIABLE_VALUE") + text(2, b"conv2d/kernel") + text(3, value.encode())
                nodes[place] = text(2, attribute)
        return body

    body = add(tree)
    nodes.append(b"".join(text(1, number(1, leaf) + text(2, b"%d" % i)) for i, leaf in enumerate(leaves)))
    nodes[0] = text(1, number(1, len(nodes) - 1) + text(2, b"variables")) + body
    return b"".join(text(1, node) for node in nodes)


def make_string(value):
    """Bytes and checksum of a text among the data."""
    length = struct.pack("<I", len(value))
    stored = struct.pack("<I", masked(length))
    return varint(len(value)) + stored + value, masked(length + stored + value)


def write_bundle(folder, arrays, tree, *, header=HEADER, more=(), graph=None, **table):
    """Arrays by key in the index, and the tree of objects that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    data, rows = b"", [(b"", header)]
    for key, values in arrays.items():
        dtype = {"<f4": 1, "<i8": 9}[values.dtype.str]
        rows.append((key.encode(), make_entry(values, len(data), dtype=dtype)))
        data += values.tobytes()
    stored, checksum = make_string(make_graph(tree) if graph is None else graph)
    entry = make_entry(np.empty(()), len(data), dtype=7, data=stored, checksum=checksum)
    rows.append((b"_CHECKPOINTABLE_OBJECT_GRAPH", entry))
    replaced = dict(more)
    rows = [(key, value) for key, value in rows if key not in replaced] + list(replaced.items())
    rows = [(key, value) for key, value in rows if value is not None]
    (folder / "variables.data-00000-of-00001").write_bytes(data + stored)
    (folder / "variables.index").write_bytes(make_table(rows, **table))
    return folder


END = "/.ATTRIBUTES/VARIABLE_VALUE"
TREE = {
    "conv1": {
        "activation": {"alpha": "variables/2" + END},
        "kernel": "conv1/kernel" + END,
        "bias": "conv1/bias" + END,
    },
    "dense": {"kernel": "dense/kernel" + END},
    "save_counter": "save_counter" + END,
}


@pytest.fixture
def arrays(rng):
    shapes = {
        "conv1/kernel": (3, 3, 1, 5),
        "conv1/bias": (5,),
        "dense/kernel": (7, 2),
        "variables/2": (4, 4, 5),
    }
    made = {name + END: rng.normal(0, 1, shape).astype("<f4") for name, shape in shapes.items()}
    return {**made, "save_counter" + END: np.array(3, dtype="<i8")}


@pytest.fixture
def bundle(tmp_path, arrays):
    return write_bundle(tmp_path / "model" / "variables", arrays, TREE)


# --- what is read ---


def test_checksums_are_castagnolis(rng):
    assert crc32c(b"123456789") == slow_crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720
    for n in (0, 1, 7, 8, 9, 1000):
        data = rng.bytes(n)
        assert crc32c(data) == slow_crc32c(data)
        assert crc32c(data[3:], crc32c(data[:3])) == slow_crc32c(data)
        assert masked_crc32c(data) == masked(data)


def test_arrays_come_back_under_the_names_of_their_objects(bundle, arrays):
    read = read_bundle(bundle)
    assert list(read) == ["conv1/bias", "conv1/kernel", "conv1/prelu", "dense/kernel"]
    for name, values in read.items():
        key = ("variables/2" if name == "conv1/prelu" else name) + END
        np.testing.assert_array_equal(values, arrays[key])
        assert values.dtype == np.float32


def test_folder_of_the_model_or_of_its_variables(bundle, tmp_path):
    assert find_bundle(bundle) == find_bundle(bundle.parent) == bundle
    assert find_bundle(tmp_path) is None


def test_identity_is_of_names_shapes_and_values(bundle):
    read = read_bundle(bundle)
    identity = arrays_sha256(read)
    assert arrays_sha256(dict(reversed(read.items()))) == identity
    for other in (
        {**read, "conv1/bias": read["conv1/bias"] + np.float32(1e-6)},
        {**read, "conv1/bias": read["conv1/bias"][None]},
        {**read, "more": read["conv1/bias"]},
    ):
        assert arrays_sha256(other) != identity


# --- what is refused ---


def test_missing_files(bundle, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_bundle(tmp_path)
    (bundle / "variables.data-00000-of-00001").unlink()
    with pytest.raises(InputError, match="No such file"):
        read_bundle(bundle)


KERNEL = ("conv1/kernel" + END).encode()
ROWS = {
    "no header": ({b"": None}, "no header"),
    "big endian": ({b"": number(1, 1) + number(2, 1)}, "big-endian"),
    "later": ({b"": number(1, 1) + text(3, number(2, 9))}, "later version"),
    "no shard": ({b"": number(1, 0)}, "0 data files"),
    "many shards": ({b"": number(1, 10**6)}, "1000000 data files"),
    "no graph": ({b"_CHECKPOINTABLE_OBJECT_GRAPH": None}, "no object graph"),
    "graph of numbers": ({b"_CHECKPOINTABLE_OBJECT_GRAPH": make_entry(np.zeros(2, "<f4"), 0)}, "not a text"),
    "unknown": ({KERNEL: None}, "in the object graph and not in the index"),
    "partitioned": ({KERNEL: make_entry(np.zeros(2, "<f4"), 0) + text(7, b"")}, "partitioned"),
    "shape": ({KERNEL: make_entry(np.zeros(9, "<f4"), 0, data=bytes(20))}, r"shape \(9,\) and 20 bytes"),
    "beyond": ({KERNEL: make_entry(np.zeros(2, "<f4"), 10**6)}, "cut off"),
    "other shard": ({KERNEL: make_entry(np.zeros(2, "<f4"), 0, shard=1)}, "data file 1 of 1"),
    "checksum": ({KERNEL: make_entry(np.zeros(2, "<f4"), 0)}, "checksum of .*kernel.* is wrong"),
    "dimensions": ({KERNEL: make_entry(np.zeros((1,) * 17, "<f4"), 0)}, "17 dimensions"),
    "text as number": ({KERNEL: text(1, b"x")}, "field 1 is not a number"),
    "unknown kind": ({KERNEL: varint(8 + 3)}, "unknown kind 3"),
    "endless number": ({KERNEL: b"\x08" + b"\xff" * 20}, "does not end"),
}


@pytest.mark.parametrize("case", ROWS)
def test_wrong_rows_are_named(case, tmp_path, arrays):
    more, words = ROWS[case]
    folder = write_bundle(tmp_path / "v", arrays, TREE, more=more)
    with pytest.raises(FormatError, match=words) as problem:
        read_bundle(folder)
    assert str(problem.value).startswith(str(folder / "variables.index"))


def test_compressed_tables_are_refused(tmp_path, arrays):
    folder = write_bundle(tmp_path / "v", arrays, TREE, compression=1)
    with pytest.raises(FormatError, match="compressed"):
        read_bundle(folder)


def test_graphs_that_lead_nowhere(tmp_path, arrays):
    node = text(1, text(1, number(1, 99) + text(2, b"conv1")))
    with pytest.raises(FormatError, match="names an object that it does not have"):
        read_bundle(write_bundle(tmp_path / "a", arrays, {}, graph=node))
    loop = text(1, text(1, number(1, 0) + text(2, b"self")))
    assert read_bundle(write_bundle(tmp_path / "b", arrays, {}, graph=loop)) == {}
    assert read_bundle(write_bundle(tmp_path / "c", arrays, {}, graph=b"")) == {}
    twice = {"conv1": {"activation": {"alpha": "variables/2" + END}, "prelu": "conv1/bias" + END}}
    with pytest.raises(FormatError, match="same name"):
        read_bundle(write_bundle(tmp_path / "d", arrays, twice))


def test_sizes_are_capped(bundle, monkeypatch):
    monkeypatch.setattr(tf_bundle, "WEIGHT_BYTES", 100)
    with pytest.raises(LimitError, match="100 bytes of weights"):
        read_bundle(bundle)
    monkeypatch.setattr(tf_bundle, "GRAPH_BYTES", 10)
    with pytest.raises(LimitError, match="object graph of more than 10"):
        read_bundle(bundle)
    monkeypatch.setattr(tf_bundle, "MAX_ENTRIES", 3)
    with pytest.raises(FormatError, match="more than 3 entries"):
        read_bundle(bundle)
    monkeypatch.setattr(tf_bundle, "INDEX_BYTES", 10)
    with pytest.raises(LimitError, match="10 bytes allowed"):
        read_bundle(bundle)


def test_no_damage_gives_other_arrays_or_another_kind_of_error(bundle, rng):
    """Every checksum is off in turn, so the parsers behind them see the damage."""
    good = arrays_sha256(read_bundle(bundle))
    refused = 0
    for name in ("variables.index", "variables.data-00000-of-00001"):
        path = bundle / name
        whole = path.read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            if rng.random() < 0.3:
                del data[int(rng.integers(len(data))) :]
            else:
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            try:
                assert arrays_sha256(read_bundle(bundle)) == good  # padding, or a variable nobody reads
            except TapetumError:
                refused += 1
        path.write_bytes(whole)
    assert refused > 200


def test_damage_behind_right_checksums_is_an_error_of_ours(arrays, tmp_path, rng):
    """As an attacker would write it: table and object graph are wrong before their checksums are taken."""

    def damage(data):
        out = bytearray(data)
        for at in rng.integers(0, len(out), int(rng.integers(0, 3))):
            out[at] = int(rng.integers(256))
        return bytes(out)

    refused = 0
    for i in range(250):
        graph = damage(make_graph(TREE))
        folder = write_bundle(tmp_path / f"{i}", arrays, TREE, graph=graph, damage=damage)
        try:
            read_bundle(folder)
        except TapetumError:
            refused += 1
    assert 150 < refused < 250


def test_small_files_do_not_become_large(arrays, tmp_path):
    long = b"a" * 1001
    with pytest.raises(FormatError, match="more than 1000 characters"):
        read_bundle(write_bundle(tmp_path / "a", arrays, TREE, more={long: b""}))
    chain = b"".join(text(1, text(1, number(1, i + 1) + text(2, b"a"))) for i in range(600)) + text(1, b"")
    with pytest.raises(FormatError, match="more than 1000 characters"):
        read_bundle(write_bundle(tmp_path / "b", arrays, {}, graph=chain))
    empty = struct.pack("<I", 0) * 50 + struct.pack("<I", 50)
    kind = b"\0"
    handle = varint(0) + varint(len(empty))
    top = make_block([(b"%03d" % i, handle) for i in range(100)], 1)
    table = empty + kind + struct.pack("<I", masked(empty + kind))
    handles = varint(0) + varint(len(empty)) + varint(len(table)) + varint(len(top))
    table += top + kind + struct.pack("<I", masked(top + kind))
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "variables.index").write_bytes(
        table + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    )
    with pytest.raises(FormatError, match="lie on each other"):
        read_bundle(folder)


# --- the real arrays ---


@pytest.mark.parametrize("name", ["maximask", "maxitrack"])
def test_real_arrays_survive_the_format(real_data, tmp_path, name, monkeypatch):
    """All layers of the original networks through the writer; its slow checksum only where it costs nothing."""
    stored = np.load(real_data / "maximask" / f"{name}_weights.npz")
    arrays, tree = {}, {}
    for i, key in enumerate(stored.files):
        layer, kind = key.split("/")
        place = (f"variables/{i}" if kind == "prelu" else key) + END
        arrays[place] = stored[key]
        branch = tree.setdefault(layer, {})
        branch.update({"activation": {"alpha": place}} if kind == "prelu" else {kind: place})
    monkeypatch.setitem(globals(), "masked", masked_crc32c)
    read = read_bundle(write_bundle(tmp_path / name, arrays, tree))
    assert set(read) == set(stored.files)
    for key, values in read.items():
        np.testing.assert_array_equal(values.view(np.uint32), stored[key].view(np.uint32))
