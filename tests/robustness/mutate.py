"""Damaged and hostile files, made from good ones: each a name and its bytes."""

import gzip
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

Faults = Iterator[tuple[str, bytes]]

HUGE = 1 << 40
"""Bytes or entries that a small file claims to hold."""

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cf50"
    "0f0003860180a5e3b10000000049454e44ae426082"
)
FORMATS = {
    "empty": b"",
    "one byte": b"\0",
    "zeros": bytes(4096),
    "text": b"not what the name says\n" * 20,
    "png": PNG,
    "toml": b"[network]\nwidth = 2\n",
    "json": b'{"network": {"width": 2}}',
    "gzip": gzip.compress(bytes(1000), mtime=0),
    "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
    "pickle": pickle.dumps({"weight": [1.0, 2.0]}),
    "pickled number": pickle.dumps(1),
    "html": b"<!doctype html><title>404 Not Found</title>" * 10,
    "empty zip": b"PK\x05\x06" + bytes(18),
    "utf-16": "weight = 1".encode("utf-16"),
}


def truncations(data: bytes) -> Faults:
    """Cut at the start, near it, in the middle and near the end."""
    for length in sorted({1, 7, 8, 9, 64, len(data) // 4, len(data) // 2, len(data) - 64, len(data) - 1}):
        if 0 < length < len(data):
            yield f"cut to {length}", data[:length]


def bit_flips(data: bytes, count: int, seed: int = 0) -> Faults:
    """One bit each, half of them among the first 512 bytes, where headers are."""
    rng = random.Random(seed)
    for index in range(count):
        at = rng.randrange(min(512, len(data)) if index % 2 else len(data))
        bit = rng.randrange(8)
        yield f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def splices(data: bytes, count: int, seed: int = 1) -> Faults:
    """A stretch removed, doubled, zeroed or replaced by noise, or something appended."""
    rng = random.Random(seed)
    for _ in range(count):
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice((1, 8, 100, 5000)))
        how = rng.choice(("removed", "doubled", "zeroed", "noise", "appended"))
        middle = {
            "removed": b"",
            "doubled": 2 * data[start:end],
            "zeroed": bytes(end - start),
            "noise": rng.randbytes(end - start),
            "appended": data[start:end],
        }[how]
        yield (
            f"{how} {start}:{end}",
            data + rng.randbytes(16) if how == "appended" else data[:start] + middle + data[end:],
        )


def edited(data: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """Bytes with edits: what, where (in ten-thousandths of the length), how much, with what."""
    for what, where, length, new in edits:
        start = where * len(data) // 10_000
        end = start + length
        if what == "flip" and start < len(data):
            data = data[:start] + bytes([data[start] ^ (1 << length % 8)]) + data[start + 1 :]
        elif what == "remove":
            data = data[:start] + data[end:]
        elif what == "insert":
            data = data[:start] + new + data[start:]
        elif what == "overwrite":
            data = data[:start] + new + data[start + len(new) :]
    return data


# --- safetensors ---


def with_declared(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file with its JSON header changed, and the tensors' bytes as they were."""
    length = int.from_bytes(data[:8], "little")
    declared = json.loads(data[8 : 8 + length])
    change(declared)
    return joined(json.dumps(declared).encode(), data[8 + length :])


def joined(header: bytes, body: bytes = b"") -> bytes:
    """A safetensors file of this header and these tensors' bytes."""
    return struct.pack("<Q", len(header)) + header + body


def safetensors_faults(data: bytes) -> Faults:
    """Headers that declare what is not there."""
    length = int.from_bytes(data[:8], "little")
    declared = json.loads(data[8 : 8 + length])
    name = next(key for key in declared if key != "__metadata__")

    def entry(**changes: Any) -> bytes:
        return with_declared(data, lambda header: header[name].update(changes))

    for claimed in (0, 1, length - 1, length + 1, 10**8, HUGE, 2**63, 2**64 - 1):
        yield f"header of {claimed} bytes", struct.pack("<Q", claimed) + data[8:]
    yield "terabytes", entry(shape=[HUGE], data_offsets=[0, 4 * HUGE])
    yield "terabytes in shape alone", entry(shape=[HUGE])
    yield "overflowing shape", entry(shape=[2**32, 2**32, 2**32])
    yield "shape with a negative", entry(shape=[-1, -4])
    yield "shape with a fraction", entry(shape=[1.5])
    yield "offsets backwards", entry(data_offsets=[8, 0])
    yield "offsets behind the end", entry(data_offsets=[len(data), 2 * len(data)])
    for dtype in ("F64", "BF16", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "BOOL", "NONE", 7, None):
        yield f"dtype {dtype}", entry(dtype=dtype)
    yield "no metadata", with_declared(data, lambda header: header.pop("__metadata__", None))
    yield "metadata of numbers", with_declared(data, lambda header: header.update(__metadata__={"s2ap": 1}))
    yield "metadata no JSON", with_declared(data, lambda header: header.update(__metadata__={"s2ap": "{"}))
    deep = "[" * 100_000
    yield "metadata nested", with_declared(data, lambda header: header.update(__metadata__={"s2ap": deep}))
    yield "header nested", joined(deep.encode())
    yield "header not JSON", joined(b"{" + bytes(20))
    yield "header not UTF-8", joined(b'{"\xff\xfe": 1}')
    yield "header twice", joined(data[8 : 8 + length] * 2, data[8 + length :])
    yield "no tensors", joined(b"{}")
    yield "no tensors but bytes", joined(b"{}", data[8 + length :])
    renamed = json.dumps({("a\n\x1b[31m[/b]" if k == name else k): v for k, v in declared.items()}).encode()
    yield "a name with a line break", joined(renamed, data[8 + length :])


def dtype_and_shape_faults(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """State dicts whose tensors are of wrong shapes, types or values, are missing or are too many."""
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        others: dict[str, Tensor] = {
            "empty": tensor.new_zeros(0),
            "a scalar": tensor.new_zeros(()),
            "flat": tensor.reshape(-1),
            "longer": torch.cat([tensor.reshape(-1), tensor.new_zeros(1)]),
            "with an axis more": tensor[None],
        }
        if tensor.is_floating_point():
            others |= {f"of {value}": torch.full_like(tensor, value) for value in (float("nan"), float("inf"), 3e38)}
            others |= {
                f"as {dtype}": tensor.to(dtype)
                for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.complex64)
            }
        yield from ((f"{last} {how}", {**tensors, name: other}) for how, other in others.items())
        yield f"without {last}", {key: t for key, t in tensors.items() if key != name}
    yield "an extra tensor", {**tensors, "conv9.weight": torch.ones(2, 2, 3, 3)}
    yield "an extra layer's scores", {**tensors, "conv9.scores": torch.ones(2, 2, 3, 3)}
    yield "nothing", {}


def header_faults(header: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Headers that say what cannot be, or what would take terabytes."""
    network = dict(header["network"])
    for key in ("width", "input_size", "classes", "input_channels"):
        for value in (0, -1, 5, 10**5, 10**9, 10**12, 2**62, 2.5, "4", [4], True, None):
            if value != network[key]:
                yield f"{key} {value}", {**header, "network": {**network, key: value}}
    for value in ("no-such", 7, None, ["tiny"], "resnet18"):
        yield f"network's name {value}", {**header, "network": {**network, "name": value}}
    for value in (None, "tiny", [], {}, 3, {"name": "tiny", "depth": 10**9}):
        yield f"network {value}", {**header, "network": value}
    for value in (None, "much", 0, -0.1, 1.5, 1e-12, float("nan"), float("inf"), [0.3], {}):
        yield f"keep {value}", {**header, "keep": value}
    objectives = ("trades", [], 7, {"name": "no-such"}, {"eps": "1/0"}, {"eps": "x"}, {"eps": "1e999999999"})
    for value in (*objectives, {"eps": -1}, {"eps": None}, {"eps": float("nan")}, {"steps": 10**9, "depth": 3}):
        yield f"objective {value}", {**header, "objective": value}
    for key, value in (
        ("dataset", "no-such"),
        ("dataset", 7),
        ("dataset", ["digits"]),
        ("dataset", None),
        ("epoch", "three"),
        ("epoch", -1),
        ("epoch", [1]),
        ("method", "no-such"),
        ("method", ["hydra"]),
        ("method", "[/bold]"),
        ("method", "\ud800"),
        ("minimizer", {}),
        ("stage", 3),
        ("stage", "finetune"),
        ("seed", "zero"),
    ):
        yield f"{key} {value!a}", {**header, key: value}
    for key in ("network", "keep", "dataset", "objective", "epoch", "stage", "seed"):
        yield f"no {key}", {k: v for k, v in header.items() if k != key}


def shapes_faults(header: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mask files' headers with shapes that do not fit the packed bits."""
    name = next(iter(header["shapes"]))
    for shape in (
        [HUGE],
        [10**5, 10**5],
        [2**32, 2**32],
        [-1, 8],
        [0],
        [],
        [1],
        ["8"],
        "8",
        None,
        8,
        [1.5],
        [[3]],
        [True],
        {"a": 1},
    ):
        yield f"shape {shape}", {**header, "shapes": {**header["shapes"], name: shape}}
    yield "no shapes", {**header, "shapes": {}}
    yield "shapes of another layer", {**header, "shapes": {"other": [8], **header["shapes"]}}
    yield "shapes a list", {**header, "shapes": [[8]]}


def foreign_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file without our header."""
    return save({name: t.contiguous() for name, t in tensors.items()})


# --- numpy ---


def npy(header: bytes, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy file of this header."""
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + body


def npy_header(descr: object, shape: object, fortran: object = False) -> bytes:
    """The header that describes an array."""
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n"


def array_bytes(array: Any) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_faults() -> Faults:
    """Headers of .npy files that declare terabytes, no numbers, or nonsense."""
    body = b"\1" * 64
    for descr in ("|b1", "<f8", "<c16", "<U100", "|V100000"):
        for shape in ((HUGE,), (2**31, 2**31), (2**62, 2**62), (600_000_000,), (-1,), (-4, -16)):
            yield f"{descr} {shape}", npy(npy_header(descr, shape), body)
    for descr, shape in (
        ("|O", (8,)),
        ("<M8[s]", (8,)),
        ("<m8[s]", (8,)),
        ("|S8", (8,)),
        ("<U2", (8,)),
        ("<f2", (32,)),
        ("<c8", (8,)),
        ([("a", "<f4"), ("b", "<f4")], (8,)),
        ([("a", "|O")], (8,)),
        ("|V8", (8,)),
        ("<f3", (8,)),
        ("no type", (8,)),
        ({"names": 3}, (8,)),
        (None, (8,)),
        ("|b1", 64),
        ("|b1", ("a",)),
        ("|b1", (8.0,)),
        ("|b1", ()),
        ("|b1", (0, 4)),
        ("|b1", (1,) * 64),
        ("|b1", (1,) * 65),
    ):
        yield f"{descr} {shape}", npy(npy_header(descr, shape), body)
    yield "header no Python", npy(b"{'descr': \n", body)
    yield "header calls", npy(b"{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (8,)}\n", body)
    yield "header nested", npy(b"(" * 9000, body)
    yield "header empty", npy(b"", body)
    yield "header too long", b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + body
    yield "version 9", npy(npy_header("|b1", (8,)), body, b"\x09\0")
    yield "objects", array_bytes(np.array([{"a": 1}], dtype=object))


def zipped(members: Mapping[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, held in members.items():
            archive.writestr(zipfile.ZipInfo(name), held, how)
    return buffer.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """The members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def patched_directory(data: bytes, offset: int, value: bytes) -> bytes:
    """A zip archive with a field of its first central directory entry overwritten."""
    at = data.index(b"PK\1\2") + offset
    return data[:at] + value + data[at + len(value) :]


CHUNK = bytes(1 << 22)
BOMB = 5 << 28
"""Bytes that a bomb unpacks to: more than a command may add to the process."""


@lru_cache(maxsize=8)
def packed_zeros(size: int, start: bytes) -> tuple[bytes, int]:
    """``size`` zero bytes (whole chunks) behind ``start``, deflated, and the CRC-32 of it all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    begun = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    one = packer.compress(CHUNK) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.crc32(start)
    for _ in range(size // len(CHUNK) - 1):
        checksum = zlib.crc32(CHUNK, checksum)
    checksum = zlib.crc32(CHUNK, checksum)
    return begun + one * (size // len(CHUNK)) + packer.flush(), checksum


def bomb(name: str, size: int, start: bytes = b"") -> bytes:
    """A zip archive of one member of ``size`` zero bytes behind ``start``, a thousandth as large."""
    packed, checksum = packed_zeros(size, start)
    fields = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, checksum, len(packed), size + len(start))
    names = struct.pack("<HH", len(name), 0)
    local = b"PK\3\4" + fields + names + name.encode()
    central = b"PK\1\2" + struct.pack("<H", 20) + fields + names + bytes(14) + name.encode()
    central = central[: 46 - 4] + struct.pack("<I", 0) + central[46:]
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


def npz_faults(data: bytes) -> Faults:
    """Archives of arrays that are damaged, declare too much, or hold what is no array."""
    members = unzipped(data)
    first = next(iter(members))
    yield "nested in itself", zipped({"a.npz": data})
    yield "no arrays", zipped({"readme.txt": b"hello"})
    yield "a name without .npy", zipped({"weight": members[first]})
    yield "a name out of the folder", zipped({"../../x.npy": members[first]})
    yield "the same name in another folder", zipped({"a/weight.npy": members[first], "weight.npy": members[first]})
    yield "a name with a line break", zipped({"a\nb.npy": array_bytes(np.full(3, 0.5))})
    yield "bomb of zeros", bomb("weight.npy", BOMB, npy(npy_header("|b1", (BOMB,))))
    yield "bomb no array", bomb("weight.npy", BOMB)
    for offset, value, what in (
        (8, b"\1\0", "encrypted"),
        (10, b"\x63\0", "compression 99"),
        (24, b"\xff\xff\xff\xfe", "size 4 GB"),
        (20, b"\xff\xff\xff\xfe", "compressed size 4 GB"),
        (42, b"\xff\xff\xff\x7f", "offset behind the end"),
        (16, b"\0\0\0\0", "checksum"),
    ):
        yield what, patched_directory(data, offset, value)
    for kind, held in npy_faults():
        yield kind, zipped({**members, first: held})


# --- torch ---


def saved(content: object, legacy: bool = False) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def torch_faults(tensors: Mapping[str, Tensor]) -> Faults:
    """Archives of torch.save with tensors that are none, repeat their storage, or are far too large."""
    name = next(key for key in tensors if key.endswith("scores"))
    tensor = tensors[name]
    indices = torch.tensor([[0], [0]])
    unusual: dict[str, object] = {
        "repeated a billion times": torch.zeros(1).expand(10**5, 10**5),
        "repeated": tensor[:1].expand_as(tensor),
        "sparse": torch.sparse_coo_tensor(indices, torch.ones(1), (8, 4)),
        "sparse of terabytes": torch.sparse_coo_tensor(indices, torch.ones(1), (10**6, 10**6)),
        "sparse rows": torch.eye(4).to_sparse_csr(),
        "meta": torch.empty(10**6, 10**6, device="meta"),
        "meta of its shape": torch.empty_like(tensor, device="meta"),
        "quantized": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "complex": tensor.to(torch.complex64),
        "float8": tensor.to(torch.float8_e4m3fn),
        "a list": tensor.tolist(),
        "a number": 3,
        "None": None,
        "itself": {"state_dict": tensor},
    }
    for what, value in unusual.items():
        yield what, saved({**tensors, name: value})
    yield "a key that is a number", saved({**tensors, 3: tensor})
    yield "a key with a line break", saved({**tensors, "a\nb.popup_scores": tensor})
    yield "a key of dots", saved({**tensors, "...popup_scores": tensor})
    yield "a weight alone", saved({"conv1.weight": tensor})
    yield "keys without a layer", saved({"weight": tensor, "popup_scores": tensor})
    yield "nothing", saved({})
    yield "a module's metadata", saved({"state_dict": None})
    good = saved(dict(tensors))
    members = unzipped(good)
    pickled = next(key for key in members if key.endswith("data.pkl"))
    yield "compressed", zipped(members)
    yield "without data.pkl", zipped({k: v for k, v in members.items() if k != pickled})
    yield "without a storage", zipped({k: v for k, v in members.items() if not k.endswith("data/0")})
    yield "a storage of other size", zipped({k: v[:4] if k.endswith("data/0") else v for k, v in members.items()})
    yield "byte order", zipped({k: b"middle" if k.endswith("byteorder") else v for k, v in members.items()})
    yield "version", zipped({k: b"99999999999\n" if k.endswith("version") else v for k, v in members.items()})
    yield "pickle nested", zipped({**members, pickled: b"\x80\2" + b"(" * 200_000 + b"t" * 200_000 + b"."})
    yield "pickle of a long string", zipped({**members, pickled: b"\x80\2X\xff\xff\xff\x7f."})
    yield "pickle of a long number", zipped({**members, pickled: b"\x80\2\x8b\xff\xff\xff\x7f."})
    yield "memo", zipped({**members, pickled: b"\x80\2}r\xff\xff\xff\xff."})
    yield "bomb", bomb("archive/data.pkl", BOMB, b"\x80\2")
    storage = _storage_pickle(BOMB // 4)
    bombed = bomb("archive/data/0", BOMB)
    yield "bomb of a storage", with_member(bombed, "archive/data.pkl", storage)


def _storage_pickle(entries: int) -> bytes:
    """The data.pkl of a state dict of one float32 vector of so many entries, in storage 0."""
    count = b"\x8a\x08" + struct.pack("<q", entries)
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpu" + count + b"tQ"
    rest = b"K\0" + count + b"\x85K\1\x85\x89ccollections\nOrderedDict\n)R"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"
    return b"\x80\2}X\x0c\0\0\0conv1.weight" + rebuilt + b"s."


def with_member(data: bytes, name: str, held: bytes) -> bytes:
    """A zip archive with a member more."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), held)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return buffer.getvalue()


# --- configs ---


def toml_faults(text: str) -> Faults:
    """Configs that are no TOML, or set what cannot be."""
    lines = {
        "deep array": "x = " + "[" * 5000,
        "deep closed array": "x = " + "[" * 5000 + "]" * 5000,
        "deep table": "x = " + "{a=" * 5000,
        "deep keys": ".".join("a" * 3000) + " = 1",
        "a number of 9,999 digits": "seed = " + "9" * 9999,
        "a hexadecimal number of 9,999 digits": "seed = 0x" + "f" * 9999,
        "a negative one": "title = 0x" + "f" * 9999,
        "a huge float": "prune.lr = 1e999",
        "NaN": "prune.lr = nan",
        "minus infinity": "prune.weight_decay = -inf",
        "a date": "seed = 1979-05-27",
        "no date": "seed = 1979-99-99",
        "eps of a billion digits": 'objective.eps = "1e999999999"',
        "tiny eps of a billion digits": 'objective.eps = "1e-999999999"',
        "eps 1/0": 'objective.eps = "1/0"',
        "eps of digits": f'objective.eps = "{"9" * 5000}/7"',
        "eps in words": 'objective.eps = "eight"',
        "eps a list": "objective.eps = [8, 255]",
        "a key twice": "seed = 1\nseed = 2",
        "an unknown key": "method.keeep = 0.1",
        "a line break in a key": '"a\\nb" = 1',
        "a surrogate": 'title = "\\ud800"',
        "a null byte": "title = 'a\0b'",
        "a null byte in a path": 'data.root = "a\\u0000b"',
        "a null byte in a name": 'data.name = "a\\u0000b"',
        "a long path": f'data = {{ name = "cifar10", root = "{"x" * 9999}" }}',
        "a null byte in a checkpoint": 'pretrain.checkpoint = "a\\u0000b"',
        "a folder as checkpoint": 'pretrain.checkpoint = "/"',
        "a device as checkpoint": 'pretrain.checkpoint = "/dev/zero"',
        "keep 0": "method.keep = 0",
        "keep 2": "method.keep = 2.0",
        "keep a string": 'method.keep = "x"',
        "no such method": 'method.name = "no-such"',
        "no such data": 'data.name = "no-such"',
        "no such option": "data.options.size = 3",
        "no such network": 'network.name = "no-such"',
        "no such objective": 'objective.name = "no-such"',
        "no such metric": 'tracking = { every = 1, metrics = ["no-such"] }',
        "a negative seed": "seed = -1",
        "no epochs": "prune.epochs = 0",
        "epochs a fraction": "prune.epochs = 1.5",
        "batches of none": "prune.batch_size = 0",
        "width 0": "network.width = 0",
        "width too large for memory": "network.width = 1000000000000",
        "a section that is none": "method = 3",
        "a list of sections": "[[method]]\nname = 1",
        "a stage that is none": 'evaluation.stages = ["pretraining"]',
    }
    for what, line in lines.items():
        yield what, f"{line}\n".encode()
    yield "a byte order mark", "\ufeff".encode() + text.encode()
    yield "latin-1", b'title = "\xe9"\n' + text.encode()
    yield "null bytes", text.encode() + bytes(100)
    yield "old line ends", text.replace("\n", "\r").encode()
    yield "one long line", b"#" + b"x" * 10**6


# --- .mat ---


def mat_bomb() -> bytes:
    """A .mat file whose X is of a gigabyte of zero bytes, packed into a thousandth."""
    images = BOMB // 3072
    head = struct.pack("<IIII", 6, 8, 9, 0)  # flags: an array of class uint8
    head += struct.pack("<IIiiii", 5, 16, 32, 32, 3, images)
    head += struct.pack("<HH4s", 1, 1, b"X") + struct.pack("<II", 2, 3072 * images)
    packer = zlib.compressobj(9)
    packed = packer.compress(struct.pack("<II", 14, len(head) + 3072 * images) + head)
    packed += packer.flush(zlib.Z_FULL_FLUSH)
    one = packer.compress(CHUNK) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += one * (BOMB // len(CHUNK))  # without the end, which holds a checksum of it all
    start = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    return start + struct.pack("<II", 15, len(packed)) + packed
