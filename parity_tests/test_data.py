"""The data sets: the published facts of each, and what is said where one is missing or wrong."""

import gzip
import io
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch

from fixtures import data
from fixtures.data import cifar, fashion, idx, tar, toy
from fixtures.data.base import DataError, DataMissing, Part, content_hash


@pytest.fixture
def clothing():
    try:
        return data.fashion_mnist()
    except DataMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def sklearn():
    try:
        return toy.sklearn_datasets()
    except DataMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty machine: no variable set, no data folder of the system in sight."""
    for name in (fashion.VARIABLE, cifar.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "shared"))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    return tmp_path


def same(left: Part, right: Part) -> bool:
    return np.array_equal(left.x, right.x) and np.array_equal(left.y, right.y)


def test_line_images_as_drawn():
    pixels = data.line_pixels()
    assert pixels.shape == (4, 1, 5, 5)
    assert pixels[1, 0].tolist()[0] == [0, 0, 220, 40, 0]
    assert pixels[1, 0].tolist()[3:] == [[0, 10, 250, 0, 0], [0, 40, 220, 0, 0]]
    assert pixels[3, 0].tolist()[1:4] == [
        [0, 0, 0, 0, 20],
        [220, 250, 250, 250, 200],
        [10, 0, 0, 0, 0],
    ]
    assert pixels[0].sum() == pixels[2].sum() == 1250
    # The two plain lines are each other's transpose.
    assert np.array_equal(pixels[0, 0], pixels[2, 0].T)


def test_line_images_normalised():
    x, y = data.line_images()
    assert (x.dtype, y.dtype, y.tolist()) == (np.float64, np.int64, [0, 0, 1, 1])
    assert abs(x.mean()) < np.finfo(np.float64).eps
    # Unbiased: the squares sum to one less than the 100 pixels.
    assert round(float((x**2).sum()), 9) == 99.0


SHAPES = {
    "blobs": ((1024, 2), (1024,)),
    "circles": ((1024, 2), (1024,)),
    "thin_circles": ((1000, 2), (1000,)),
    "moons": ((1000, 2), (1000,)),
    "thin_moons": ((1000, 2), (1000,)),
    "xor": ((1000, 2), (1000,)),
    "universal": ((500, 1), (500, 1)),
    "line": ((100, 1), (100, 1)),
    "curve": ((100, 1), (100, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_toy_sets(name, request):
    if name not in ("xor", "universal", "line", "curve"):
        request.getfixturevalue("sklearn")
    make = getattr(data, name)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first, again, other = make(), make(), make(seed=7)
    assert (first.x.shape, first.y.shape) == SHAPES[name]
    assert first.x.dtype == np.float64
    assert first.y.dtype == (np.int64 if first.y.ndim == 1 else np.float64)
    assert same(first, again)
    assert not same(first, other)
    assert np.array_equal(before, np.random.get_state()[1]), "the global generator moved"


def test_blobs_are_the_published_ones(sklearn):
    x, y = sklearn.make_blobs(1024, 2, centers=2, cluster_std=[1.0, 2.5], random_state=42)
    assert same(data.blobs(), Part(x, y))


def test_xor_labels():
    x, y = data.xor()
    corners = np.rint(x).astype(int)
    assert np.array_equal(y, corners[:, 0] ^ corners[:, 1])
    assert set(map(tuple, corners.tolist())) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_universal_grid():
    x, y = data.universal()
    values, counts = np.unique(x, return_counts=True)
    assert np.array_equal(values, np.arange(100) / 100 - 0.5)
    assert set(counts.tolist()) == {5}
    assert 0.0 in values
    noise = y - 1 / (1 + np.exp(-10 * x))
    assert round(float(noise.std()), 2) == 0.05


def fit_line(*widths: tuple[int, int]) -> tuple[float, float]:
    """Return the loss at the 100th step, and R² after it, of the published run of D2."""
    x, y = (torch.from_numpy(array).float() for array in data.line())
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(*width) for width in widths))
    for _ in range(100):
        model.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():  # SGD, without the second its import takes
                parameter.add_(parameter.grad, alpha=-1e-2)
    with torch.no_grad():
        rest = ((model(x) - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return loss.item(), 1 - rest.item()


def test_line_gives_the_published_figures():
    with torch.random.fork_rng():
        assert round(fit_line((1, 1))[0], 4) == 0.2164
        assert round(fit_line((1, 2), (2, 1))[1], 5) == 0.79912


def test_digits_split(sklearn):
    split = data.digits()
    assert [len(part.x) for part in split] == [1197, 300, 300]
    train = split.train.x
    assert train.shape == (1197, 1, 8, 8)
    assert abs(round(float(train.mean()), 12)) == 0.0
    assert round(float(train.std(ddof=1)), 12) == 1.0
    assert same(split.validation, data.digits().validation)
    assert not same(split.validation, data.digits(seed=1).validation)
    # The parts are disjoint and together the whole set: no image twice, no label lost.
    labels = np.concatenate([part.y for part in split])
    whole = data.digit_images().y
    assert np.array_equal(np.bincount(labels), np.bincount(whole))


def test_digits_sizes_are_checked(sklearn):
    assert [len(part.x) for part in data.digits(sizes=(10, 10, 5))] == [10, 10, 5]
    with pytest.raises(DataError, match="three of at least 1 that sum to 1797"):
        data.digits(sizes=(1797, 1, 1))


def test_digit_pixels(sklearn):
    train, test = data.digit_pixels()
    assert (train.x.shape, test.x.shape) == ((1500, 64), (297, 64))
    assert (train.x.min(), train.x.max()) == (0, 16)
    assert train.y[:5].tolist() == [0, 1, 2, 3, 4]


def test_fashion_split(clothing):
    assert [part.x.shape for part in clothing] == [
        (48_000, 28, 28),
        (12_000, 28, 28),
        (10_000, 28, 28),
    ]
    assert clothing.train.x.dtype == np.uint8
    labels = np.concatenate([clothing.train.y, clothing.validation.y])
    assert np.bincount(labels).tolist() == [6000] * 10
    assert np.bincount(clothing.test.y).tolist() == [1000] * 10
    assert clothing.train.y[0] == 9  # an ankle boot is known to come first
    assert fashion.CLASSES[9] == "Ankle boot"
    with pytest.raises(ValueError, match="read-only"):
        clothing.train.x[0] = 0


def test_fashion_is_known_by_content_not_by_name(clothing, tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    _, files = fashion.find_fashion()
    for number, path in enumerate(files.values()):
        (raw / f"part{number}ubyte").symlink_to(path)
    monkeypatch.setenv(fashion.VARIABLE, str(tmp_path))
    form, found = fashion.find_fashion()
    assert form == "idx"
    assert set(found) == {"training images", "training labels", "test images", "test labels"}
    assert all(path.parent == raw for path in found.values())


def test_fashion_content_is_checked(clothing):
    test = Part(clothing.test.x.copy(), clothing.test.y.copy())
    assert fashion._checked(test, "test", "idx").x.shape == (10_000, 28, 28)
    # Another order is the same set (Kaggle's differs); another pixel is not.
    assert content_hash(test.x[::-1], test.y[::-1]) == content_hash(*test)
    test.x[17, 3, 3] ^= 1
    with pytest.raises(DataError, match="not Fashion-MNIST's: content"):
        fashion._checked(test, "test", "idx")
    first = np.flatnonzero(test.y == 0)[0]
    test.y[first] = 1
    with pytest.raises(DataError, match=r"\[999, 1001, 1000"):
        fashion._checked(test, "test", "csv")


def test_fashion_missing_says_how_to_get_it(elsewhere):
    with pytest.raises(DataMissing) as missing:
        data.fashion_mnist()
    line = str(missing.value)
    assert "\n" not in line
    assert "apt-get install dataset-fashion-mnist" in line
    assert fashion.VARIABLE in line
    assert isinstance(missing.value, FileNotFoundError)
    assert isinstance(missing.value, ValueError)
    with pytest.raises(DataMissing, match="holds no Fashion-MNIST"):
        data.fashion_mnist(elsewhere)


def test_fashion_incomplete_names_what_lacks(tmp_path):
    idx.write_idx(tmp_path / "some-file", np.zeros((10_000, 28, 28), np.uint8))
    with pytest.raises(DataError, match="lacks the training images, training labels, test labels"):
        data.fashion_mnist(tmp_path)


def csv_lines(rows: int = 3) -> list[str]:
    header = ",".join(["label", *(f"pixel{n}" for n in range(1, 785))])
    pixels = np.arange(rows * 784).reshape(rows, 784) % 256
    return [header, *(f"{r}," + ",".join(map(str, pixels[r])) for r in range(rows))]


def test_kaggle_csv(tmp_path):
    path = tmp_path / "any name.csv"
    path.write_text("\n".join(csv_lines()) + "\n")
    x, y = fashion.read_csv(path)
    assert y.tolist() == [0, 1, 2]
    assert np.array_equal(x.ravel(), np.arange(3 * 784) % 256)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[:1],
        lambda lines: lines[1:],
        lambda lines: [*lines, "1,2,3"],
        lambda lines: [*lines, lines[1].replace("17", "300", 1)],
        lambda lines: [*lines, lines[1].replace("17", "__import__('os')", 1)],
        lambda lines: [*lines, lines[1].replace("17", "", 1)],
        lambda lines: [*lines, lines[1].replace("17", "-1", 1)],
        lambda lines: ["label,pixel1", "1,2"],
    ],
)
def test_spoilt_csv_is_refused(tmp_path, spoil):
    path = tmp_path / "train.csv"
    path.write_text("\n".join(spoil(csv_lines())))
    with pytest.raises(DataError, match=r"train\.csv"):
        fashion.read_csv(path)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path, dtype, zipped):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "file"
    idx.write_idx(path, array)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    read = idx.read_idx(path)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    assert idx.read_idx_header(path).shape == (2, 3, 4)


@pytest.mark.parametrize("form", ["folder", "cifar.tar.gz"])
def test_cifar_three_classes(tmp_path, form):
    path = data.write_small_archive(tmp_path / form, classes=(58, 0, 55, 7), each=6)
    images = data.cifar100(path, classes=(58, 0, 55))
    assert images.classes == (0, 55, 58)
    assert images.names == ("class_0", "class_55", "class_58")
    assert images.train.x.shape == (18, 32, 32, 3)
    assert images.train.x.dtype == np.uint8
    assert np.bincount(images.train.y).tolist() == [6, 6, 6]
    assert np.bincount(images.test.y).tolist() == [3, 3, 3]


def test_cifar_layout_is_nhwc(tmp_path):
    folder = data.write_small_archive(tmp_path)
    planes = np.zeros((3, 3, 32, 32), np.uint8)
    planes[:, 0, 2, 5] = 200  # red, third row, sixth column
    held = {b"data": planes.reshape(3, -1), b"fine_labels": [58, 0, 55]}
    (folder / "train").write_bytes(pickle.dumps(held, protocol=2))
    images = data.cifar100(folder)
    assert images.train.y.tolist() == [2, 0, 1]
    assert images.train.x[0, 2, 5].tolist() == [200, 0, 0]
    assert images.train.x.sum() == 600


def test_cifar_is_found_by_variable_or_parent(tmp_path, monkeypatch):
    folder = data.write_small_archive(tmp_path)
    monkeypatch.setenv(cifar.VARIABLE, str(tmp_path))
    assert cifar.find_cifar() == folder
    assert data.sources()["cifar100"] == f"present: {folder}"


def test_cifar_refuses(tmp_path, elsewhere):
    with pytest.raises(DataMissing, match="PARITY_CIFAR100"):
        data.cifar100()
    path = data.write_small_archive(tmp_path / "c.tar.gz")
    with pytest.raises(DataError, match="no image with fine label 3; it holds 0, 55, 58"):
        data.cifar100(path, classes=(0, 3, 55))
    for classes in ((0, 0, 1), (0, 100), (1,), "abc", 5, (0.5, 1)):
        with pytest.raises(DataError, match="different fine labels from 0 to 99"):
            data.cifar100(path, classes=classes)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ([1, 2], "holds a list; expected a dict"),
        ({b"data": 1}, "lacks fine_labels"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [100]}, "numbers from 0 to 99"),
        ({b"data": np.zeros((1, 3072)), b"fine_labels": [1]}, "data float64"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1]}, r"expected uint8 \(1"),
        ({b"data": np.array([None]), b"fine_labels": [1]}, "only numbers are admitted"),
    ],
)
def test_cifar_wrong_content(tmp_path, held, says):
    folder = data.write_small_archive(tmp_path)
    (folder / "train").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(DataError, match=says):
        data.cifar100(folder)


@pytest.mark.parametrize("protocol", range(6))
def test_restricted_pickles_of_every_protocol(protocol):
    arrays = [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(4, dtype=">i4"),
        np.array(2),
        np.zeros((0, 3)),
        np.array([True, False]),
    ]
    plain = [(1, 2), [], {}, "é", 1.5, None, True, 10**30, b"", b"\xff", ("a", "b", "c", "d")]
    held = {b"arrays": arrays, b"plain": plain, b"scalar": np.float32(3), b"same": arrays[0]}
    read = data.restricted_loads(pickle.dumps(held, protocol=protocol))
    assert read[b"plain"] == plain
    assert read[b"scalar"] == 3.0
    assert np.array_equal(read[b"same"], arrays[0])
    for got, wanted in zip(read[b"arrays"], arrays, strict=True):
        assert got.dtype == wanted.dtype
        assert np.array_equal(got, wanted)


def test_python_2_strings_come_as_bytes():
    # As cPickle of Python 2 wrote the real archive: SHORT_BINSTRING keys, protocol 2.
    raw = b"\x80\x02}q\x01(U\x0bfine_labelsq\x02]q\x03(K\x13K\x1deu."
    assert data.restricted_loads(raw) == {b"fine_labels": [19, 29]}


def test_python_2_arrays():
    # Written out, because no Python of today writes plain strings (U) where bytes are meant.
    raw = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        b"q\x03(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x01\xfe\xfftb."
    )
    read = data.restricted_loads(raw)
    assert read.dtype == np.uint8
    assert read.tolist() == [[0, 1], [254, 255]]


def archive(*members: tuple[tarfile.TarInfo, bytes], form=tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as out:
        for member, content in members:
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **extra) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in extra.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (member("../train"), "outside of its folder"),
        (member("/etc/train"), "outside of its folder"),
        (member("a/../../train"), "outside of its folder"),
        (member("c/train", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link, a device"),
        (member("c/train", tarfile.LNKTYPE, linkname="meta"), "a link, a device"),
        (member("c/train", tarfile.CHRTYPE), "a link, a device"),
        (member("c/train", tarfile.FIFOTYPE), "a link, a device"),
        (member("c/train", tarfile.GNUTYPE_SPARSE), "a link, a device"),
    ],
)
def test_tar_members_that_are_refused(tmp_path, info, says):
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(gzip.compress(archive((member("c/meta"), b"x"), (info, b""))))
    with pytest.raises(DataError, match=says):
        data.cifar100(path)


def test_tar_that_renames_in_an_extended_header(tmp_path):
    path = tmp_path / "long.tar"
    info = member("c/train", pax_headers={"path": "../../outside"})
    path.write_bytes(archive((info, b"x"), form=tarfile.PAX_FORMAT))
    with pytest.raises(DataError, match="extended header"):
        list(tar.read_tar(path, 10**6, frozenset({"train"})))


def test_tar_made_from_a_folder_by_the_usual_tool(tmp_path):
    folder = data.write_small_archive(tmp_path)
    path = tmp_path / "packed.tgz"
    with tarfile.open(path, "w:gz") as out:
        out.add(folder, arcname=folder.name)  # writes fractional times into extended headers
    assert same(data.cifar100(path).train, data.cifar100(folder).train)


def test_tar_bomb_is_bounded(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(archive((member("c/train"), bytes(4_000_000)))))
    with pytest.raises(DataError, match="4,000,000 bytes: refused"):
        list(tar.read_tar(path, 1_000_000, frozenset()))
    many = [(member(f"c/file{n}"), bytes(100_000)) for n in range(20)]
    path.write_bytes(gzip.compress(archive(*many)))
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        list(tar.read_tar(path, 1_000_000, frozenset()))


def test_sources_say_what_is_here(elsewhere, sklearn):
    told = data.sources()
    assert told["digits"] == "present: scikit-learn, 1,797 images"
    assert told["fashion_mnist"].startswith("missing: ")
    assert told["cifar100"].startswith("missing: ")


def test_without_scikit_learn_the_line_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataMissing, match=r"pip install 'torch-parity\[data\]'"):
        data.moons()
    assert data.sources()["digits"].startswith("missing: scikit-learn is not installed")
