"""Virtual rasters and files under false suffixes: nothing but images below the root is opened, nothing is fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from datasets.imagery.rasters import describe_raster
from datasets.imagery.scenes import Unreadable
from tests.helpers.rasters import counts, write_tiff

SOURCE = "<SimpleSource><SourceFilename{}>{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
RELATIVE = ' relativeToVRT="1"'
BAND = '<VRTRasterBand dataType="UInt16" band="1">{}</VRTRasterBand>'
VRT = '<VRTDataset rasterXSize="8" rasterYSize="8">{}</VRTDataset>'
WMS = '<GDAL_WMS><Service name="TMS"><ServerUrl>{}</ServerUrl></Service><DataWindow/></GDAL_WMS>'


def vrt(name: str, attributes: str = RELATIVE) -> str:
    return VRT.format(BAND.format(SOURCE.format(attributes, name)))


@contextmanager
def counting() -> Iterator[tuple[str, list[str]]]:
    """Address of a server, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret.tif", asked
        server.shutdown()


def test_a_stack_of_files_below_the_root_is_read(tmp_path: Path) -> None:
    pixels = write_tiff(tmp_path / "src" / "a.tif", counts((1, 8, 8)), nodata=7)
    pixels[0, 0, :4] = 7
    write_tiff(tmp_path / "src" / "a.tif", pixels, nodata=7)
    other = write_tiff(tmp_path / "src" / "b.tif", counts((1, 8, 8), seed=1))
    bands = BAND.format("<NoDataValue>7</NoDataValue>" + SOURCE.format(RELATIVE, "src/a.tif"))
    bands += BAND.format(SOURCE.format(RELATIVE, "inner.vrt")).replace('band="1"', 'band="2"')
    (tmp_path / "inner.vrt").write_text(vrt("src/b.tif"))
    (tmp_path / "stack.vrt").write_text(VRT.format(bands))
    scene = describe_raster(tmp_path / "stack.vrt", tmp_path)
    assert (scene.shape, scene.nodata) == ((2, 8, 8), (7, None))
    with scene.open([1, 0]) as read:
        window = read(0, 0, 8, 8)
    np.testing.assert_array_equal(window.stored, np.concatenate([other, pixels]))
    assert window.missing is not None
    np.testing.assert_array_equal(window.missing[1], pixels[0] == 7)
    assert not window.missing[0].any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (vrt("../outside.tif"), "outside of the folder that was given"),
        (vrt("link.tif"), "outside of the folder"),
        (vrt("/etc/hostname", ""), "outside of the folder"),
        (vrt("missing.tif"), "is not there"),
        (vrt("/vsicurl/{url}"), "no file beside it"),
        (vrt("{url}", ""), "no file beside it"),
        (vrt("GTIFF_DIR:1:inside.tif"), "no file beside it"),
        (vrt(" inside.tif"), "no file beside it"),
        (vrt("wms.tif"), "first bytes are of none of"),
        (vrt("secret.txt"), "first bytes are of none of"),
        (vrt("loop.vrt"), "nested more than"),
        (vrt("bad_inner.vrt"), "outside of the folder"),
        (vrt("inside.tif").replace("SimpleSource>", "KernelFilteredSource>").replace("SourceBand", "X"), "holds X"),
        (vrt("inside.tif").replace("<SourceBand>1", "<OpenOptions/><SourceBand>1"), "holds OpenOptions"),
        (VRT.format(BAND.format(f'<SimpleSource SourceFilename="{"/etc/hostname"}"/>')), "holds SourceFilename"),
        (vrt("inside.tif").replace("<VRTDataset", '<VRTDataset subClass="VRTWarpedDataset"'), "is a VRTWarpedDataset"),
        (vrt("inside.tif").replace("<VRTDataset", '<VRTDataset subclass="VRTWarpedDataset"'), "is a VRTWarpedDataset"),
        (
            VRT.format(BAND.format("<PixelFunctionCode>import os</PixelFunctionCode>")),
            "holds PixelFunctionCode, more than a mosaic",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + vrt("inside.tif"), "XML declarations"),
        (vrt("inside.tif").replace("<VRTDataset", "<VRTDataset <"), "is no XML"),
        (WMS, "is a GDAL_WMS"),
    ],
)
def test_virtual_rasters_reach_no_further(tmp_path: Path, text: str, reason: str) -> None:
    root = tmp_path / "root"
    write_tiff(tmp_path / "outside.tif", counts((1, 8, 8)))
    write_tiff(root / "inside.tif", counts((1, 8, 8)))
    (root / "link.tif").symlink_to(tmp_path / "outside.tif")
    (root / "secret.txt").write_text("a password")
    (root / "loop.vrt").write_text(vrt("loop.vrt"))
    (root / "bad_inner.vrt").write_text(vrt("../outside.tif"))
    with counting() as (url, asked):
        (root / "wms.tif").write_text(WMS.format(url))
        (root / "a.vrt").write_text(text.replace("{url}", url).replace("{}", url))
        with pytest.raises(Unreadable, match=reason):
            describe_raster(root / "a.vrt", root)
    assert asked == []


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (suffix, form)
        for form in ("wms", "vrt", "png")
        for suffix in (".tif", ".png", ".jpg", ".jp2", ".img", ".dat", "")
        if suffix != f".{form}"
    ],
)
def test_a_file_is_opened_as_what_its_suffix_says_only(tmp_path: Path, suffix: str, form: str) -> None:
    write_tiff(tmp_path / "good.tif", counts((1, 8, 8)))
    with counting() as (url, asked):
        Image.fromarray(np.full((8, 8), 7, dtype=np.uint8)).save(tmp_path / "picture.png")
        content = {"wms": WMS.format(url), "vrt": vrt("good.tif"), "png": ""}[form].encode()
        (tmp_path / f"a{suffix}").write_bytes(content or (tmp_path / "picture.png").read_bytes())
        with pytest.raises(Unreadable, match="cannot be read"):
            describe_raster(tmp_path / f"a{suffix}", tmp_path)
    assert asked == []


def test_a_mask_or_overview_beside_a_file_is_a_tiff(tmp_path: Path) -> None:
    with counting() as (url, asked):
        for suffix in (".msk", ".ovr"):
            write_tiff(tmp_path / "a.tif", counts((1, 8, 8)))
            (tmp_path / f"a.tif{suffix}").write_text(WMS.format(url))
            with pytest.raises(Unreadable, match=f"has a.tif{suffix} beside it, which is no TIFF"):
                describe_raster(tmp_path / "a.tif", tmp_path)
            (tmp_path / f"a.tif{suffix}").unlink()
    assert asked == []


def test_metadata_beside_a_file_fetch_nothing(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", counts((1, 8, 8)))
    with counting() as (url, asked):
        (tmp_path / "a.tif.aux.xml").write_text(
            f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{url}</MDI></Metadata>'
            f"</PAMDataset>"
        )
        scene = describe_raster(tmp_path / "a.tif", tmp_path)
        with scene.open([0]) as read:
            read(0, 0, 8, 8)
    assert asked == []
