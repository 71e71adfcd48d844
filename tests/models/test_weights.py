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


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "old.pth"])
def test_read_checkpoint_returns_the_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name != "old.pth")
    assert same(read_checkpoint(path), TENSORS)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("content", [0.5, None, b"<html>"], ids=str)
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: float | bytes | None) -> None:
    """Truncated, missing and foreign files."""
    path, big = tmp_path / f"bad{suffix}", {"weight": torch.randn(300, 300)}
    if isinstance(content, float):
        save_file(big, path) if suffix == ".safetensors" else torch.save(big, path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * content)])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"bad\{suffix}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "list"),
        ({"state_dict": TENSORS, "x": defaultdict(list, {"a": [1]})}, r"code.*\.safetensors"),
        (nn.Linear(3, 2), r"torchscript.*\.safetensors"),
    ],
)
def test_unsuitable_archives_are_named(tmp_path: Path, content: Any, message: str) -> None:
    if isinstance(content, nn.Module):
        torch.jit.trace(content, torch.ones(1, 3)).save(str(tmp_path / "odd.pth"))
    else:
        torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=rf"odd\.pth.*{message}"):
        read_checkpoint(tmp_path / "odd.pth")


class Payload:
    """Unpickling it creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["new", "old", "bare"])
def test_pickled_code_does_not_run(tmp_path: Path, kind: str) -> None:
    path, proof = tmp_path / "evil.ckpt", tmp_path / "pwned"
    content = {"state_dict": TENSORS, "x": Payload(proof)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(Payload(proof)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "new")
    # torch may also refuse the file
    with suppress(WeightsError):
        assert same(tensors_of(read_checkpoint(path)), TENSORS)
    assert not proof.exists()
    pickle.loads(pickle.dumps(content))
    assert proof.exists()  # the payload works


def foreign(name: str, attributes: dict[str, Any]) -> type:
    """A class of a package that is missing when the file is read."""
    module = sys.modules.setdefault("gone_package", types.ModuleType("gone_package"))
    made = type(name, (), attributes | {"__module__": "gone_package", "__qualname__": name})
    setattr(module, name, made)
    return made


def test_checkpoints_with_foreign_objects_are_read(tmp_path: Path) -> None:
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
    assert not any("gone_package" in str(item) for item in torch.serialization.get_safe_globals())


WRAPPERS = [lambda t: t, lambda t: {"state_dict": t, "epoch": 1}, lambda t: {"model": t},
            lambda t: {"state_dict": {"model": t}}]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_tensors_under_wrapper_keys(wrap: Any) -> None:
    assert same(tensors_of(wrap(TENSORS | {"version": "1"})), TENSORS)


def test_load_exactly_keeps_dtype_of_parameters() -> None:
    module = nn.Linear(3, 2)
    tensors = {name: tensor.half() for name, tensor in TENSORS.items()} | {"position_ids": torch.ones(1)}
    load_exactly(module, tensors, "file", ignore=("position_ids", "never"))
    assert same(dict(module.state_dict()), TENSORS)


@pytest.mark.parametrize(("change", "message"), [
    ({"bias": None}, "1 missing .bias."),
    ({f"x{i}": torch.ones(1) for i in range(9)}, r"9 unexpected \(x0, x1, x2, x3, \.\.\.\)"),
    ({"weight": torch.ones(3, 2)}, r"weight: \(3, 2\) in the file, \(2, 3\) in the model"),
])  # fmt: skip
def test_mismatching_tensors_are_named(change: dict[str, Any], message: str) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    tensors = {n: t for n, t in (TENSORS | change).items() if t is not None}
    with pytest.raises(WeightsError, match=rf"some\.ckpt does not fit Linear: .*{message}"):
        load_exactly(module, tensors, "some.ckpt")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_non_finite_values_are_named(dtype: torch.dtype) -> None:
    value = torch.zeros(1000, 100)
    other = {"count": torch.ones(1, dtype=torch.int64), "empty": torch.ones(0), "text": "nan"}
    require_finite(other | {"some.weight": value.to(dtype)}, "file")
    for bad in (float("nan"), *(() if dtype.itemsize == 1 else (float("inf"), -float("inf")))):
        value[-1, -1] = bad
        with pytest.raises(WeightsError, match=r"file: some\.weight"):
            require_finite(other | {"some.weight": value.to(dtype)}, "file")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([0.0, 1e300], dtype=torch.float64),
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
    ],
    ids=lambda value: f"{value.dtype} {value.layout} {value.device}",
)
def test_unusable_tensors_are_named(value: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match=r"file: some\.weight"):
        require_finite({"some.weight": value}, "file")
    require_finite({"some.weight": torch.tensor([1e38, 1e-300], dtype=torch.float64)}, "file")
