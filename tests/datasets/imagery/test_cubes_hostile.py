"""Files of arrays that lead elsewhere, claim too much or hold code are refused by name."""

import io
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.imagery.cubes import open_arrays
from datasets.imagery.scenes import Unreadable
from tests.helpers.cubes import ramp, seen, write_h5

CUBE = ramp(4, 20, 30)


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def elsewhere(folder: Path, kind: str) -> Path:
    """A file whose only cube lies in another one."""
    (folder / "secret.bin").write_bytes(CUBE.tobytes())
    write_h5(folder / "other.h5", {"cube": CUBE})
    with h5py.File(folder / "a.h5", "w") as file:
        if kind == "external":
            file.create_dataset("cube", CUBE.shape, CUBE.dtype, external=[(str(folder / "secret.bin"), 0, CUBE.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(CUBE.shape, CUBE.dtype)
            layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "cube", CUBE.shape)
            file.create_virtual_dataset("cube", layout)
        else:
            file["cube"] = h5py.ExternalLink(str(folder / "other.h5"), "cube")
    return folder / "a.h5"


@pytest.mark.parametrize("kind", ["external", "virtual", "link"])
@pytest.mark.parametrize("key", [None, "cube"])
def test_values_in_another_file_are_not_read(tmp_path: Path, kind: str, key: str | None) -> None:
    path = elsewhere(tmp_path, kind)
    with pytest.raises(Unreadable, match=r"cube .*(secret\.bin|other\.h5).* not opened"):
        seen(path, key=key, bands=4)
    with pytest.raises((Unreadable, KeyError)), open_arrays(path) as arrays:
        np.asarray(arrays["cube"])


def test_a_soft_link_inside_the_file_is_harmless(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", {"cube": CUBE})
    with h5py.File(path, "a") as file:
        file["again"] = h5py.SoftLink("/cube")
    np.testing.assert_array_equal(seen(path, bands=4)[1].stored, CUBE)


def test_an_array_larger_than_its_file_can_hold_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", (400, 100_000, 100_000), "f4", chunks=(1, 100, 100), compression="gzip")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (400, 9**6, 9**6)})
    (tmp_path / "b.npy").write_bytes(header.getvalue() + bytes(100))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cube.npy", header.getvalue() + bytes(100))
    for name in ("a.h5", "b.npy", "c.npz"):
        with pytest.raises(Unreadable, match="GB in a file of|cannot be read"):
            seen(tmp_path / name, bands=400)


def test_well_compressed_arrays_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", data=np.zeros((4, 1000, 1000), "f4"), compression="gzip", compression_opts=9)
    assert seen(tmp_path / "a.h5")[0].shape == (4, 1000, 1000)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    objects = np.array([Trap(tmp_path / "sprung")] * 8, dtype=object).reshape(2, 2, 2)
    np.savez(tmp_path / "a.npz", cube=objects, allow_pickle=True)
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    for name in ("a.npz", "b.npy"):
        with pytest.raises(Unreadable):
            seen(tmp_path / name)
    np.savez(tmp_path / "c.npz", cube=CUBE, extra=objects, allow_pickle=True)
    np.testing.assert_array_equal(seen(tmp_path / "c.npz", bands=4)[1].stored, CUBE)
    assert not (tmp_path / "sprung").exists()


def test_hdf4_is_named(tmp_path: Path) -> None:
    (tmp_path / "MOD09.hdf").write_bytes(b"\x0e\x03\x13\x01" + bytes(100))
    with pytest.raises(Unreadable, match="HDF4.*h4toh5"):
        seen(tmp_path / "MOD09.hdf")
