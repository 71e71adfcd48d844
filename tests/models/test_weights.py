from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from odise_pl.models.weights import WeightsError, load_exactly, read_checkpoint, require_finite, tensors_of

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".bin", ".safetensors"])
def test_tensors_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path)
    assert same(read_checkpoint(path), TENSORS)
    assert same(read_checkpoint(str(path)), TENSORS)


def test_archives_of_old_torch_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path), TENSORS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights file not found: .*nowhere\.ckpt"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    with pytest.raises(WeightsError, match="weights file not found"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"half{suffix}"
    big = {"weight": torch.randn(100, 100)}
    if suffix == ".safetensors":
        save_file(big, path)
    else:
        torch.save(big, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=rf"half\{suffix}"):
        read_checkpoint(path)


def test_the_first_bytes_of_an_archive_are_damaged_and_not_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "start.ckpt"
    torch.save({"weight": torch.randn(300, 300)}, path)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(WeightsError, match=r"start\.ckpt is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>Not Found</html>", b"\x00" * 100, b"version https://git-lfs"]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"page\{suffix}"):
        read_checkpoint(path)


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.ones(1)], path)
    with pytest.raises(WeightsError, match=r"list\.pth.*holds a list, not a dictionary"):
        read_checkpoint(path)


class Payload:
    """Unpickled with pickle, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


class System(Payload):
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"mkdir {self.folder}",)


class Evaluate(Payload):
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"__import__('os').mkdir({str(self.folder)!r})",)


@pytest.mark.parametrize("payload", [Payload, System, Evaluate])
@pytest.mark.parametrize("new", [True, False])
def test_pickled_code_does_not_run(tmp_path: Path, payload: type[Payload], new: bool) -> None:
    path, proof = tmp_path / "evil.ckpt", tmp_path / "pwned"
    torch.save({"state_dict": TENSORS, "x": payload(proof)}, path, _use_new_zipfile_serialization=new)
    # modules that torch blocks cannot be stood in for, and old archives have no stand-ins
    with suppress(WeightsError):
        assert same(tensors_of(read_checkpoint(path)), TENSORS)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # so the payload is one


def test_a_bare_pickle_does_not_run_either(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "pwned"
    path.write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        read_checkpoint(path)
    assert not proof.exists()


def foreign(name: str, attributes: dict[str, Any]) -> type:
    """A class of a package that is gone when the file is read."""
    module = sys.modules.setdefault("gone_package", types.ModuleType("gone_package"))
    made = type(name, (), attributes | {"__module__": "gone_package", "__qualname__": name})
    setattr(module, name, made)
    return made


def test_training_checkpoints_with_callback_objects_are_read(tmp_path: Path) -> None:
    callback = foreign("ModelCheckpoint", {})
    function = foreign("Schedule", {"__reduce__": lambda self: (callback, (1, 2))})
    state = foreign(
        "State", {"__getstate__": lambda self: {"a": 1}, "__setstate__": lambda self, state: None}
    )
    one = callback()
    one.best = torch.ones(1)
    path = tmp_path / "sd.ckpt"
    torch.save({
        "epoch": 3, "state_dict": OrderedDict(TENSORS), "callbacks": {callback: {"monitor": None}},
        "lr_schedulers": [function()], "more": (one, state()),
    }, path)  # fmt: skip
    del sys.modules["gone_package"]
    checkpoint = read_checkpoint(path)
    assert checkpoint["epoch"] == 3
    assert same(tensors_of(checkpoint), TENSORS)


def test_inert_placeholders_do_not_stay_allowed(tmp_path: Path) -> None:
    one = foreign("Other", {})()
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": TENSORS, "x": one}, path)
    del sys.modules["gone_package"]
    read_checkpoint(path)
    assert not any("gone_package" in str(item) for item in torch.serialization.get_safe_globals())


def test_objects_that_cannot_be_stood_in_for_are_said_to_be_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save({"state_dict": TENSORS, "x": defaultdict(list, {"a": [1]})}, path)
    with pytest.raises(WeightsError, match=r"odd\.ckpt holds objects .* \.safetensors"):
        read_checkpoint(path)


WRAPPERS = [lambda t: t, lambda t: {"state_dict": t, "epoch": 1}, lambda t: {"model": t},
            lambda t: {"state_dict": {"model": t}}]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_tensors_are_found_where_they_stand(wrap: Any) -> None:
    assert same(tensors_of(wrap(TENSORS | {"version": "1"})), TENSORS)


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


def test_loading_fills_every_parameter() -> None:
    module = linear()
    load_exactly(module, TENSORS, "file")
    assert same(dict(module.state_dict()), TENSORS)


def test_loading_keeps_the_modules_precision() -> None:
    module = linear()
    load_exactly(module, {n: t.half() for n, t in TENSORS.items()}, "file")
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize(("change", "message"), [
    ({"bias": None}, "1 missing .bias."),
    ({"extra": torch.ones(1)}, "1 unexpected .extra."),
    ({"weight": torch.ones(3, 2)}, r"1 shape .weight: \(3, 2\) in the file, \(2, 3\) in the model."),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(
    change: dict[str, Any], message: str
) -> None:
    module = linear()
    before = module.weight.clone()
    tensors = {n: t for n, t in (TENSORS | change).items() if t is not None}
    with pytest.raises(WeightsError, match=rf"some\.ckpt does not fit Linear: .*{message}"):
        load_exactly(module, tensors, "some.ckpt")
    assert torch.equal(module.weight, before)


def test_long_lists_of_names_are_cut() -> None:
    with pytest.raises(WeightsError, match=r"9 unexpected \(x0, x1, x2, x3, \.\.\.\)"):
        load_exactly(linear(), TENSORS | {f"x{i}": torch.ones(1) for i in range(9)}, "file")


def test_names_may_be_left_over_if_asked_for() -> None:
    module = linear()
    load_exactly(module, TENSORS | {"position_ids": torch.ones(1)}, "file", ignore=("position_ids", "never"))
    assert same(dict(module.state_dict()), TENSORS)


def test_torchscript_is_named_for_what_it_is_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ViT-L-14-336px.pt"
    torch.jit.trace(linear(), torch.ones(1, 3)).save(str(path))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    for name in (path.name, "sd.safetensors"):
        path = path.rename(tmp_path / name)
        with pytest.raises(WeightsError, match=rf"{name} is a TorchScript archive(?s:.*)hf download"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("place", [0, 5000, 99_999])
def test_a_number_that_is_none_is_found_wherever_it_is(dtype: torch.dtype, place: int) -> None:
    value = torch.zeros(1000, 100)
    require_finite({"some.weight": value.to(dtype), "count": torch.ones(1, dtype=torch.int64)}, "file")
    for bad in (float("nan"), *(() if dtype.itemsize == 1 else (float("inf"), -float("inf")))):
        value.view(-1)[place] = bad
        with pytest.raises(WeightsError, match=r"file: some\.weight holds NaN or infinity"):
            require_finite({"fine": torch.ones(2), "some.weight": value.to(dtype)}, "file")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([0.0, 1e300], dtype=torch.float64),
        torch.tensor([0.0, -1e39], dtype=torch.float64),
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
    ],
    ids=lambda value: f"{value.dtype} {value.layout} {value.device}",
)
def test_what_cannot_be_a_weight_is_named(value: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match=r"file: some\.weight"):
        require_finite({"some.weight": value}, "file")
    require_finite({"some.weight": torch.tensor([1e38, 1e-300], dtype=torch.float64)}, "file")


def test_tensors_without_numbers_are_finite() -> None:
    require_finite({"empty": torch.ones(0), "flags": torch.ones(2, dtype=torch.bool), "text": "nan"}, "file")
