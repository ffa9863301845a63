"""Every loader against broken and hostile files: each is read or refused, and runs nothing."""

import gzip
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fixtures import states
from fixtures.data import cifar, fashion, idx, pickles
from fixtures.data.base import DataError
from fixtures.data.pickles import restricted_loads
from fixtures.fuzz import mutations, problem
from fixtures.fuzz_targets import LOADERS, TARGETS

pytest.importorskip("hypothesis", reason="pip install 'torch-parity[dev]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MEGABYTE = 1 << 20
FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Loader:
    """One kind of file: `good` bytes, and `read` for any others; short in a failure's text."""

    def __init__(self, kind: str, folder: Path):
        target = LOADERS[kind]
        self.kind, self.good, self.target, self.folder = kind, target.good[0](), target, folder

    def __repr__(self) -> str:
        return self.kind

    def read(self, data: bytes):
        return self.target.read(data, self.folder)


@pytest.fixture(params=LOADERS)
def loader(request, tmp_path):
    return Loader(request.param, tmp_path)


def survives(read, data: bytes) -> bool:
    """Return whether the bytes were read; the only other outcome is one clear line."""
    try:
        read(data)
    except DataError as error:
        line = str(error)
    else:
        return True
    assert line
    assert "\n" not in line
    return False


def test_good_files_are_read(loader):
    good, read = loader.good, loader.read
    assert survives(read, good)


SLOW = ("bundle", "bundle-arrays", "sweep")  # each input is a whole replay, or a synced folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TARGETS],
)
def test_every_parser_reads_or_refuses(name):
    """Some inputs of what `python -m fixtures.fuzz` draws for as long as it is asked to."""
    if name.startswith(("safetensors", "bundle")):
        pytest.importorskip("safetensors", reason="pip install safetensors")
    changed = mutations(TARGETS[name], number=0)
    assert [text for _ in range(20) if (text := problem(TARGETS[name], next(changed)))] == []


def test_truncations(loader):
    good, read = loader.good, loader.read
    cuts = {*range(min(len(good), 40)), *np.linspace(0, len(good) - 1, 40).astype(int).tolist()}
    read_whole = [cut for cut in sorted(cuts) if survives(read, good[:cut])]
    if good.startswith(b"label,"):
        # Text does not know its end: what is left are whole rows, or one cut in its last number.
        assert all(good[:cut].count(b",") % 784 == 0 for cut in read_whole)
    else:
        # Beyond a tar's last member there is only padding.
        assert all(cut > len(good) // 2 and not good[cut:].strip(b"\0") for cut in read_whole)


def test_wrong_beginnings(loader):
    good, read = loader.good, loader.read
    beginnings = [b"", b"\0", b"\x1f\x8b", b"PK\x03\x04", b"\x93NUMPY", b"label,", b"\x81"]
    for beginning in [*beginnings, b"\0\0\x08\xff", b"\xff" * 8, b"\xff" * 600, b"\0" * 2048]:
        for rest in (b"", bytes(64), good[len(beginning) :]):
            data = beginning + rest
            if data != good and not good.startswith(beginning):
                assert not survives(read, data)


PLACES = st.integers(0, 1 << 16)


@FUZZ
@given(flips=st.lists(st.tuples(PLACES, st.integers(0, 7), st.booleans()), min_size=1, max_size=4))
def test_flipped_bits(loader, flips):
    good, read = loader.good, loader.read
    data = bytearray(good)
    for place, bit, early in flips:  # headers matter most: half of the flips go there
        data[place % (min(200, len(data)) if early else len(data))] ^= 1 << bit
    survives(read, bytes(data))


@FUZZ
@given(places=st.tuples(PLACES, PLACES), between=st.binary(max_size=12))
def test_spliced_bytes(loader, places, between):
    good, read = loader.good, loader.read
    start, stop = sorted(place % (len(good) + 1) for place in places)
    survives(read, good[:start] + between + good[stop:])


@settings(FUZZ, max_examples=200)
@given(data=st.binary(max_size=80))
def test_random_pickles(data):
    survives(restricted_loads, data)
    survives(restricted_loads, b"\x80\x02" + data + b".")


OPCODES = "()]}tsabeu012\x85\x86\x87\x88\x89NRb\x81\x93q\x00h\x00K\x01U\x01xX\x01\0\0\0y\x94."
NAMES = [
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"c_codecs\nencode\n",
    b"cbuiltins\nbytes\n",
    b"cos\nsystem\n",
    b"X\x02\0\0\0u1",
    b"J\xff\xff\xff\x7f",
]


@settings(FUZZ, max_examples=200)
@given(parts=st.lists(st.sampled_from([*(c.encode("latin-1") for c in OPCODES), *NAMES])))
def test_random_programs(parts):
    survives(restricted_loads, b"\x80\x02" + b"".join(parts) + b".")


class Call:
    """Pickles as a call of a function that its module and name tell."""

    def __init__(self, name: str, *arguments):
        self.name, self.arguments = name, arguments

    def text(self, protocol: int) -> bytes:
        module, _, name = self.name.rpartition(":")
        arguments = pickle.dumps(self.arguments, protocol=2)[2:-1]
        if protocol >= 4:
            short = [bytes([0x8C, len(part)]) + part.encode() for part in (module, name)]
            return b"\x80\x04" + short[0] + short[1] + b"\x93" + arguments + b"R."
        return b"\x80\x02" + f"c{module}\n{name}\n".encode() + arguments + b"R."


HOSTILE = [
    Call("os:system", "touch ran"),
    Call("posix:system", "touch ran"),
    Call("nt:system", "touch ran"),
    Call("subprocess:Popen", ["touch", "ran"]),
    Call("subprocess:check_output", ["touch", "ran"]),
    Call("builtins:eval", "open('ran', 'w')"),
    Call("builtins:exec", "open('ran', 'w')"),
    Call("__builtin__:eval", "open('ran', 'w')"),
    Call("builtins:open", "ran", "w"),
    Call("builtins:getattr", "", "join"),
    Call("builtins:__import__", "os"),
    Call("builtins:breakpoint"),
    Call("builtins:input"),
    Call("io:open", "ran", "w"),
    Call("pathlib:Path", "ran"),
    Call("functools:partial", print),
    Call("operator:attrgetter", "system"),
    Call("operator:methodcaller", "touch"),
    Call("importlib:import_module", "os"),
    Call("runpy:run_path", "ran"),
    Call("pty:spawn", "sh"),
    Call("webbrowser:open", "file:///"),
    Call("shutil:rmtree", "."),
    Call("pickle:loads", b"cos\nsystem\n(S'touch ran'\ntR."),
    Call("_pickle:loads", b"cos\nsystem\n(S'touch ran'\ntR."),
    Call("codecs:decode", "ran", "rot13"),
    Call("_codecs:encode", "ran", "rot13"),
    Call("_codecs:decode", b"ran"),
    Call("builtins:bytes", 1 << 40),
    Call("builtins:bytearray", 1 << 40),
    Call("numpy:load", "ran.npy"),
    Call("numpy:fromfile", "ran"),
    Call("numpy:memmap", "ran"),
    Call("numpy:zeros", (1 << 40,)),
    Call("numpy:DataSource", "."),
    Call("numpy.lib.npyio:load", "ran.npy"),
    Call("numpy.testing._private.utils:runstring", "open('ran', 'w')", {}),
    Call("numpy.core.multiarray:fromfile", "ran"),
    Call("numpy.core.multiarray:_reconstruct.__globals__"),
    Call("numpy:ndarray.tofile", "ran"),
    Call("numpy:dtype.__class__"),
    Call("numpy:dtype", "O"),
    Call("numpy:dtype", "V1000000000"),
    Call("numpy:dtype", "U1000000000"),
    Call("torch:load", "ran"),
    Call("collections:OrderedDict", [("a", 1)]),
    Call("copyreg:_reconstructor", print),
    Call("", ""),
]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("call", HOSTILE, ids=lambda call: f"{call.name}{len(call.arguments)}")
def test_hostile_pickles(call, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = call.text(protocol)
    with pytest.raises(DataError) as refusal:
        restricted_loads(data, "train")
    assert str(refusal.value).startswith("train is ")
    assert "\n" not in str(refusal.value)
    # The same inside an archive, as a state's pickle and as a torch file's.
    folder = cifar.write_small_archive(tmp_path / "cifar", each=2)
    (folder / "test").write_bytes(data)
    with pytest.raises(DataError):
        cifar.cifar100(folder)
    assert os.listdir(tmp_path) == ["cifar"]
    with zipfile.ZipFile("state.pt", "w") as archive:
        archive.writestr("state/data.pkl", data)
        archive.writestr("state/version", "3")
        archive.writestr("state/byteorder", "little")
    with pytest.raises(DataError):
        states.load_torch("state.pt")
    with zipfile.ZipFile("state.npz", "w") as archive:
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        archive.writestr("a.npy", start + data)
    with pytest.raises(DataError):
        states.load_npz("state.npz")
    assert sorted(os.listdir(tmp_path)) == ["cifar", "state.npz", "state.pt"]


def test_hostile_names_stay_on_one_line():
    for module, name in (("os\n", "system"), ("o" * 200, "\x1b[31m"), ("", "\n")):
        text = pickle.dumps((module, name), protocol=2)[2:].replace(b"\x86q\x02.", b"\x93.")
        with pytest.raises(DataError, match="only NumPy arrays and plain containers") as refusal:
            restricted_loads(b"\x80\x04" + text)
        assert str(refusal.value).isprintable()


def test_the_hostile_calls_are_real(tmp_path, monkeypatch):
    """The battery would do harm in an ordinary unpickler: else it would prove nothing."""
    monkeypatch.chdir(tmp_path)
    for call in (HOSTILE[0], HOSTILE[1]):
        pickle.loads(call.text(2))
        assert Path("ran").exists()
        Path("ran").unlink()


HUGE = {
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "bytes beyond all": b"\x80\x04\x8e" + b"\xff" * 8 + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "old text": b"\x80\x02T" + struct.pack("<i", (1 << 31) - 1) + b"x.",
    "negative text": b"\x80\x02T" + struct.pack("<i", -1) + b"x.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"x.",
    "get": b"\x80\x02j\xff\xff\xff\x7f.",
    "array": pickle.dumps(np.zeros(3), 2).replace(b"K\x03\x85", b"\x8a\x04\x7f\x7f\x7f\x7f\x85"),
    "nested key": b"\x80\x02}" + b"K\x01" + b"2\x86" * 80 + b"K\x01s.",
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_huge_claims_take_no_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            restricted_loads(HUGE[name])
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()


def test_a_huge_memo_number_is_only_a_number():
    # In CPython's own machine this one byte string takes 32 GB.
    tracemalloc.start()
    try:
        assert restricted_loads(b"\x80\x02K\x07r\xff\xff\xff\x7f.") == 7
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()


def test_odd_escapes_are_no_warning():
    assert restricted_loads(b"S'a\\]'\n.") == b"a\\]"


def test_the_number_of_steps_is_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_OPCODES", 1000)
    with pytest.raises(DataError, match="more than 1,000 steps"):
        restricted_loads(b"\x80\x02" + b"]" * 2000 + b".")
    with pytest.raises(DataError, match="at most 100 are read"):
        restricted_loads(bytes(200), limit=100)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\0\0\x08\x03" + b"\xff" * 12, "cannot hold that"),
        (b"\0\0\x08\x01" + struct.pack(">I", 1 << 31), "cannot hold that"),
        (b"\0\0\x0e\x02" + struct.pack(">II", 1 << 31, 0), None),
        (b"\0\0\x07\x01" + bytes(4), "idx type code 07; known are 08"),
        (b"\0\0\x08\x00", "claims 0 axes"),
        (b"\0\0\x08\xff" + bytes(2000), "claims 255 axes"),
        (b"\0\1\x08\x01" + bytes(8), "an idx file starts with 00 00"),
        (b"\0\0\x08\x01" + struct.pack(">I", 3) + b"abcd", "goes on after the 3 bytes"),
        (b"\0\0\x08\x01" + struct.pack(">I", 4) + b"abc", "cannot hold that|needs 4"),
        (b"\0\0\x08\x03\0\0", "ends inside its header of 3 axes"),
        (b"", "starts with nothing"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_headers(tmp_path, data, says, zipped):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    tracemalloc.start()
    try:
        if says is None:
            assert idx.read_idx(path).shape == (1 << 31, 0)
        else:
            with pytest.raises(DataError, match=says):
                idx.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()


def test_idx_gzip_bomb_is_bounded(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 9) + bytes(8_000_000)))
    with pytest.raises(DataError, match="goes on after the 9 bytes"):
        idx.read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 8_000_000) + bytes(10)))
    with pytest.raises(DataError, match="beyond the limit of 1,000"):
        idx.read_idx(path, limit=1000)


@pytest.mark.parametrize("length", [(1 << 63) + 1, 1 << 40, 200_000_000, 9])
def test_safetensors_headers(tmp_path, length):
    pytest.importorskip("safetensors", reason="pip install safetensors")
    path = tmp_path / "s.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
    with pytest.raises(DataError, match="no readable safetensors file"):
        states.load_safetensors(path)


def test_a_damaged_fashion_folder_says_which_file(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match=r"incomplete or damaged: .*train-images"):
        fashion.find_fashion(tmp_path)
