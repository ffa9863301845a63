"""Saved states and shared weights: each side reads the other's file, and misfits are named."""

import io
import os
import pickle
import stat
import zipfile

import numpy as np
import pytest
import torch

import impl
from fixtures import states, weights
from fixtures.data.base import DataError, DataMissing


class Plain:
    """A network of a stranger's: two dicts and nothing else."""

    def __init__(self, hidden: int = 4, dtype=np.float32):
        self.params = {
            "0.weight": np.zeros((hidden, 3), dtype),
            "0.bias": np.zeros(hidden, dtype),
            "1.weight": np.ones(hidden, dtype),
            "1.bias": np.zeros(hidden, dtype),
        }
        self.buffers = {
            "1.running_mean": np.zeros(hidden, dtype),
            "1.running_var": np.ones(hidden, dtype),
            "1.num_batches_tracked": np.array(0),
        }


def torch_net(hidden: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, hidden), torch.nn.BatchNorm1d(hidden))


FORMS = {
    "npz": (states.save_npz, states.load_npz),
    "safetensors": (states.save_safetensors, states.load_safetensors),
    "safetensors-torch": (
        states.save_safetensors,
        lambda path: states.load_safetensors(path, framework="torch"),
    ),
    "pt": (states.save_torch, states.load_torch),
}


@pytest.fixture(params=FORMS)
def form(request):
    if request.param.startswith("safetensors"):
        pytest.importorskip("safetensors", reason="pip install safetensors")
    return FORMS[request.param]


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        np.asarray(left[name]).dtype == np.asarray(right[name]).dtype
        and np.array_equal(np.asarray(left[name]), np.asarray(right[name]))
        for name in left
    )


def test_torch_writes_and_ours_reads(form, tmp_path):
    save, load = form
    net = weights.seeded(torch_net(), 3)
    save(tmp_path / "state", net)
    ours = Plain()
    states.load_into(ours, load(tmp_path / "state"))
    assert equal(states.state_of(ours), states.state_of(net))
    assert int(ours.buffers["1.num_batches_tracked"]) > 0


def test_ours_writes_and_torch_reads(form, tmp_path):
    save, load = form
    ours = weights.share(weights.seeded(torch_net(), 4), Plain())
    save(tmp_path / "state", ours)
    net = torch_net()
    states.load_into(net, load(tmp_path / "state"))
    assert equal(states.state_of(net), states.state_of(ours))


def test_our_modules_and_torch_exchange(form, tmp_path):
    class Layer(impl.Module):
        def __init__(self, **arrays):
            self.params.update({k: v for k, v in arrays.items() if not k.startswith("r")})
            self.buffers.update({k: v for k, v in arrays.items() if k.startswith("r")})

    class Net(impl.Module):
        def __init__(self):
            self.first = Layer(weight=np.zeros((2, 3)), bias=np.zeros(2), running=np.ones(2))
            self.again = self.first

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 2, dtype=torch.float64)
            self.first.register_buffer("running", torch.ones(2, dtype=torch.float64))
            self.again = self.first

    save, load = form
    ours, theirs = Net(), weights.seeded(Twin(), 1)
    weights.share(theirs, ours)
    assert equal(states.state_of(ours), states.state_of(theirs))
    save(tmp_path / "state", ours)
    fresh = Twin()
    states.load_into(fresh, load(tmp_path / "state"))
    assert equal(states.state_of(fresh), states.state_of(theirs))
    assert np.array_equal(ours.first.params["weight"], theirs.first.weight.detach().numpy())


def convolution_net(side):
    return side.Sequential(
        side.Conv2d(1, 4, 3),
        side.BatchNorm2d(4),
        side.ReLU(),
        side.AvgPool2d(2),
        side.Flatten(),
        side.Linear(4, 2),
    )


def test_a_trained_net_answers_the_same_after_its_journey(form, tmp_path):
    save, load = form
    theirs, ours = weights.seeded(convolution_net(torch.nn), 2), convolution_net(impl)
    save(tmp_path / "theirs", theirs)
    states.load_into(ours, load(tmp_path / "theirs"))
    save(tmp_path / "ours", ours)
    back = convolution_net(torch.nn)
    states.load_into(back, load(tmp_path / "ours"))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 5, 5))).float()
    assert torch.equal(back.eval()(x), theirs.eval()(x))
    assert equal(states.state_of(ours), states.state_of(theirs))
    with pytest.raises(DataError, match=r"unexpected: 5.*; wrongly shaped: 0\.weight"):
        states.load_into(torch_net(), load(tmp_path / "ours"))


def test_a_state_dict_saved_by_torch_alone_is_read(tmp_path):
    net = torch_net()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert equal(states.load_torch(tmp_path / "net.pt"), net.state_dict())


def test_strict_readers_of_others_read_our_files(tmp_path):
    state = {
        "file": np.arange(6.0).reshape(2, 3).T,
        "a.b": np.float32(2),
        "empty": np.zeros((0, 2)),
    }
    states.save_npz(tmp_path / "s.npz", state)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as read:
        assert equal(dict(read), state)
    np.savez_compressed(tmp_path / "theirs.npz", **{"a.b": np.arange(3), "x": np.array(1.5)})
    assert equal(
        states.load_npz(tmp_path / "theirs.npz"), {"a.b": np.arange(3), "x": np.array(1.5)}
    )


def test_odd_layouts_survive(form, tmp_path):
    save, load = form
    state = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10, dtype=np.float32)[::-2],
        "scalar": np.array(3, dtype=np.int64),
        "empty": np.zeros((0, 3)),
        "bool": np.array([True, False]),
    }
    save(tmp_path / "state", state)
    assert equal(load(tmp_path / "state"), state)


@pytest.mark.parametrize("make", [Plain, torch_net], ids=["ours", "torch"])
def test_a_misfit_names_every_entry_and_changes_nothing(make):
    model = make(4)
    before = states.state_of(model)
    state = states.state_of(make(5))
    state["2.weight"] = np.zeros(1)
    del state["1.running_mean"]
    with pytest.raises(DataError) as misfit:
        states.load_into(model, state)
    line = str(misfit.value)
    assert "missing: 1.running_mean; unexpected: 2.weight; wrongly shaped: 0.bias (has (5,)" in line
    assert "0.weight (has (5, 3), the model wants (4, 3))" in line
    assert "\n" not in line
    assert equal(states.state_of(model), before)


def test_a_misfit_of_type_is_named():
    state = states.state_of(Plain())
    state["1.num_batches_tracked"] = np.array(0.5)
    with pytest.raises(
        DataError, match=r"num_batches_tracked \(has float64, the model wants int64"
    ):
        states.load_into(Plain(), state)


def test_long_lists_are_shortened():
    with pytest.raises(DataError, match=r"unexpected: n0, .*, n19 and 30 more;"):
        states.load_into(Plain(), {**states.state_of(Plain()), **{f"n{i}": 1.0 for i in range(50)}})


def test_a_name_with_line_breaks_stays_on_one_line():
    with pytest.raises(DataError) as misfit:
        states.load_into(Plain(), {**states.state_of(Plain()), "odd\nname": 1.0})
    assert r"unexpected: odd\nname;" in str(misfit.value)
    assert "\n" not in str(misfit.value)


@pytest.mark.parametrize("what", [3, None, object()])
def test_what_is_no_model_is_refused(what):
    with pytest.raises(DataError, match="neither params nor state_dict"):
        states.load_into(what, {})


@pytest.mark.parametrize("value", ["text", None, [[1], [1, 2]], object(), np.array([None])])
def test_what_is_no_number_is_not_saved(form, tmp_path, value):
    with pytest.raises(DataError, match="'bad'"):
        form[0](tmp_path / "state", {"good": np.ones(2), "bad": value})
    assert os.listdir(tmp_path) == []


def test_writing_is_all_or_nothing(form, tmp_path, monkeypatch):
    save, load = form
    path = tmp_path / "state"
    save(path, {"a": np.ones(2)})
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device; nothing"):
        save(path, {"a": np.zeros(2)})
    assert os.listdir(tmp_path) == ["state"]
    assert np.asarray(load(path)["a"]).tolist() == [1, 1]


def test_missing_folder_and_file(form, tmp_path):
    save, load = form
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        save(tmp_path / "nowhere" / "state", {"a": np.ones(1)})
    with pytest.raises(DataMissing, match="is not a file; check the path"):
        load(tmp_path / "nothing")
    with pytest.raises(DataMissing, match="is not a file"):
        load(tmp_path)


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([{}, None], dtype=object))
    with pytest.raises(DataError, match="only arrays of numbers are read"):
        states.load_npz(tmp_path / "o.npz")


def npz_with(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy_with(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not start as an npy file"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 8, "claims a header of 4,294,967,295 bytes"),
        (npy_with("__import__('os').getcwd()"), "not a plain array's"),
        (npy_with("(" * 3000), "not a plain array's"),
        (
            npy_with(
                "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999), }"
            ),
            "but holds 0 bytes",
        ),
        (npy_with("{'descr': '<U9', 'fortran_order': False, 'shape': (1,), }"), "only arrays of"),
        (npy_with("{'descr': '<f7', 'fortran_order': False, 'shape': (1,), }"), "unreadable"),
    ],
)
def test_npz_claims_are_checked(tmp_path, content, says):
    path = tmp_path / "bad.npz"
    path.write_bytes(npz_with(a=content))
    with pytest.raises(DataError, match=says):
        states.load_npz(path)


def test_zip_bombs_are_bounded(tmp_path):
    path = tmp_path / "bomb.npz"
    path.write_bytes(npz_with(a=bytes(5_000_000)))
    with pytest.raises(DataError, match="beyond the limit of 1,000,000"):
        states.load_npz(path, limit=1_000_000)
    with pytest.raises(DataError, match="beyond the limit of 1,000,000"):
        states.load_torch(path, limit=1_000_000)


class Evil:
    def __reduce__(self):
        return os.system, ("echo run > ran",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before-1.6"])
def test_torch_files_with_code_are_refused(tmp_path, monkeypatch, old):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "evil.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(DataError, match="before torch 1.6" if old else "more than weights"):
        states.load_torch("evil.pt")
    assert not (tmp_path / "ran").exists()


def test_torch_files_that_are_no_state(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds a list; expected a state dict"):
        states.load_torch(tmp_path / "list.pt")
    torch.save({"model": torch_net().state_dict(), "epoch": 3}, tmp_path / "run.pt")
    with pytest.raises(DataError, match=r"entry 'model' is a OrderedDict; save model.state_dict"):
        states.load_torch(tmp_path / "run.pt")


def test_torch_file_that_claims_more_than_it_holds(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    path = tmp_path / "long.pt"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"K\x03t", b"J\x00\x65\xcd\x1dt")
            new.writestr(name, content)
    with pytest.raises(DataError, match="storage '0' claims 500000000 'Float' values"):
        states.load_torch(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex128])
def test_torch_dtypes(tmp_path, dtype):
    state = {"a": torch.ones(3, dtype=dtype)}
    torch.save(state, tmp_path / "a.pt")
    assert states.load_torch(tmp_path / "a.pt")["a"].dtype == dtype
    states.save_npz(tmp_path / "a.npz", state)
    assert states.load_npz(tmp_path / "a.npz")["a"].tolist() == [1, 1, 1]


def test_bfloat16_safetensors_say_how_to_read_them(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    library.save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match="framework='torch'"):
        states.load_safetensors(tmp_path / "b.safetensors")
    loaded = states.load_safetensors(tmp_path / "b.safetensors", framework="torch")
    assert loaded["a"].dtype == torch.bfloat16
    with pytest.raises(DataError, match="give 'numpy' or 'torch'"):
        states.load_safetensors(tmp_path / "b.safetensors", framework="jax")


def test_seeded_weights():
    first, again = weights.seeded(torch_net(), 1), weights.seeded(torch_net(), 1)
    other = weights.seeded(torch_net(), 2)
    assert equal(states.state_of(first), states.state_of(again))
    assert not equal(states.state_of(first), states.state_of(other))
    drawn = states.state_of(first)
    assert len(set(drawn["1.weight"].tolist())) == 4
    assert (drawn["1.running_var"] > 0).all()
    assert drawn["1.num_batches_tracked"].dtype == np.int64
    # A float64 module gets full mantissas, which a cast to float32 would change.
    double = weights.seeded(torch_net().double(), 1)[0].weight.detach().numpy()
    assert (double != double.astype(np.float32)).all()
    assert np.array_equal(double.astype(np.float32), drawn["0.weight"])
    with pytest.raises(DataError, match=r"it wants a torch\.nn\.Module"):
        weights.seeded(Plain())


def test_shared_weights_are_copies():
    net, ours = weights.seeded(torch_net(), 1), Plain()
    assert weights.share(net, ours) is ours
    before = ours.params["0.weight"].copy()
    with torch.no_grad():
        net[0].weight.add_(1)
    assert np.array_equal(ours.params["0.weight"], before)
    assert weights.share(net, Plain(dtype=np.float64)).params["0.bias"].dtype == np.float64


def test_a_missing_partner_is_named():
    ours = Plain()
    del ours.params["0.bias"]
    ours.params["0.b"] = np.zeros(4)
    with pytest.raises(DataError) as error:
        weights.share(torch_net(), ours)
    assert "weights of Sequential cannot be shared" in str(error.value)
    assert "missing: 0.b; unexpected: 0.bias" in str(error.value)


def test_pickled_states_are_not_a_format(tmp_path):
    (tmp_path / "s").write_bytes(pickle.dumps({"a": np.ones(2)}))
    for _, load in FORMS.values():
        with pytest.raises(DataError):
            load(tmp_path / "s")
