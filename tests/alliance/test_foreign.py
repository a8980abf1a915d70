"""Checkpoint files of other projects: the weights come out, and nothing in the file is executed."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alliance.errors import InputError
from alliance.foreign import read_weights
from tests.helpers.mmengine_files import mmengine_file


class Command:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def commands(target: Path) -> dict[str, Command]:
    """Objects that would make the file `target` if reading executed anything."""
    write = f"open({str(target)!r}, 'w').close()"
    return {
        "shell": Command(os.system, f"touch {target}"),
        "process": Command(subprocess.check_call, ["touch", str(target)]),
        "builtin": Command(open, str(target), "w"),
        "evaluation": Command(eval, write),
        "execution": Command(exec, write),
        "nested": Command(list, Command(map, Command(eval, "open"), [str(target)], ["w"])),
    }


@pytest.mark.parametrize("name", commands(Path()))
def test_a_hostile_object_beside_the_weights_does_nothing(tmp_path: Path, name: str) -> None:
    target = tmp_path / "executed"
    torch.save({"meta": commands(target)[name], "state_dict": {"weight": torch.ones(2)}}, tmp_path / "file.pth")
    assert read_weights(tmp_path / "file.pth")["weight"].tolist() == [1, 1]
    assert not target.exists()


@pytest.mark.parametrize("name", commands(Path()))
def test_a_hostile_object_among_the_weights_is_refused_and_does_nothing(tmp_path: Path, name: str) -> None:
    target = tmp_path / "executed"
    torch.save({"state_dict": {"weight": commands(target)[name]}}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="'weight' is not a tensor"):
        read_weights(tmp_path / "file.pth")
    assert not target.exists()


@pytest.mark.parametrize("name", ["shell", "process", "evaluation", "execution"])
def test_the_hostile_objects_do_their_harm_where_they_are_let(tmp_path: Path, name: str) -> None:
    target = tmp_path / "executed"
    torch.save({"meta": commands(target)[name]}, tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert target.exists()


def test_a_file_cannot_alter_the_functions_it_names(tmp_path: Path) -> None:
    """Sets an attribute of torch's own function, as the pickle opcode BUILD can."""
    torch.save({"state_dict": {"weight": torch.ones(2)}, "meta": Command(print)}, tmp_path / "file.pth")
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x06\x00\x00\x00markedK\x01sb."
    rewrite_pickle(tmp_path / "file.pth", stream)
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "file.pth")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "marked")


def rewrite_pickle(path: Path, stream: bytes) -> None:
    """Replace the pickle inside a file of torch.save."""
    reader = torch._C.PyTorchFileReader(str(path))
    writer = torch._C.PyTorchFileWriter(str(path.with_suffix(".new")))
    for name in reader.get_all_records():
        content = stream if name == "data.pkl" else reader.get_record(name)
        if name not in (".format_version", ".storage_alignment", ".data/serialization_id", "version"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    path.with_suffix(".new").replace(path)


def test_a_file_of_mmengine_is_read_without_mmengine(tmp_path: Path) -> None:
    weights = {"weight": torch.arange(6.0).reshape(2, 3).T, "steps": torch.tensor(7)}
    weights["bias"] = torch.nn.Parameter(torch.ones(3))
    path = mmengine_file(tmp_path / "file.pth", weights)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    read = read_weights(path)
    assert "mmengine" not in sys.modules
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert not any(value.requires_grad for value in read.values())


def test_plain_weights_are_read_as_well(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "file.pth")
    assert read_weights(tmp_path / "file.pth").keys() == {"weight"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights by name"),
        ([torch.ones(1)], "holds no weights by name"),
        ({"state_dict": 3}, "holds no weights by name"),
        ({"state_dict": {"epoch": 3}}, "'epoch' is not a tensor"),
        ({"state_dict": {3: torch.ones(1)}}, "3 is not a tensor"),
    ],
)
def test_files_without_weights_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "file.pth")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nothing\.pth'; check the name"):
        read_weights(tmp_path / "nothing.pth")
    torch.save({"weight": torch.ones(1000)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is not a checkpoint file"):
        read_weights(tmp_path / "half.pth")
    rewrite_pickle(tmp_path / "whole.pth", b"\x80\x02cos\nsystem\n.")
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "whole.pth")
    rewrite_pickle(tmp_path / "whole.pth", b"\x80\x02(((")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_weights(tmp_path / "whole.pth")
