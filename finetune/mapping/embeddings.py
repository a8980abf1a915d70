"""What an encoder says of every patch of a scene, as a georeferenced product on the grid of the patches.

The scene is read in overlapping windows, whose features are averaged with weights that fall linearly to the windows' edges.
Features also tell where in its window a patch stands; what the encoder says there of an empty image is taken from them, or
the windows would show. Memory grows with the width of the scene, not with its height.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from torch import Tensor

from alliance.checkpoint import load_encoder
from alliance.encoder import AllianceEncoder, shift_patches
from alliance.errors import InputError
from alliance.model import patch_validity
from alliance.ranges import MANY, SEEDS, Ranged, ranged
from alliance.sensors import Sensor
from datasets.cluster import refuse_unseen, stamped
from datasets.contents import Stamp
from datasets.imagery.feature_maps import Dtype, feature_map, row_of_blocks
from datasets.imagery.images import SensorSource
from datasets.imagery.maps import Grid
from datasets.imagery.rasters import open_quietly
from datasets.labelled.normalise import Preprocessing
from finetune.mapping.blending import Cover, Strip, cover
from finetune.mapping.centroids import centroid_table
from finetune.mapping.components import Components, fit_components
from finetune.mapping.images import ImageFile, SceneImages, opened_images
from finetune.mapping.pieces import (
    Piece,
    Run,
    Seen,
    blended,
    cache_size,
    contents_of,
    pieces_of,
    refuse_other_contents,
    run_here,
    usable_device,
)
from finetune.mapping.scene import check_targets
from finetune.model_files import ImageInput

USUAL_WINDOW = 256  # pixels, about
SAMPLED = 64  # windows that principal components are fitted to
PCA_TAG = "PRINCIPAL_COMPONENTS"
Groups = Literal["mean", "keep"]
Positions = Literal["remove", "keep"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(Ranged):
    """How a scene is taken apart, and what is written."""

    window: int | None = ranged(None, 1, 65536)
    """Side of a window, pixels, a multiple of the encoder's patch; None: about 256."""
    overlap: int | None = ranged(None, 0, 65536)
    """Pixels that neighbouring windows share, a multiple of the patch; None: a quarter of a window."""
    batch: int = ranged(4, 1, MANY)
    """Windows at once."""
    groups: Groups = "mean"
    """Average the features of the band groups, or keep them as bands side by side."""
    positions: Positions = "remove"
    """Take from the features what the encoder says at the same place of a window without content, but for its mean, or not."""
    dtype: Dtype = "float16"
    """How features are stored."""
    pca: int | Path | None = ranged(None, 1, MANY)
    """Principal components: how many, or a file written earlier whose axes are used; None: the features themselves."""
    seed: int = ranged(0, 0, SEEDS)
    """Of the windows that principal components are fitted to."""
    force: bool = False
    """Take images whose numbers do not look like those of training."""
    progress: bool = True
    """Show a bar where there is a terminal."""

    def in_patches(self, patch: int) -> tuple[int, int]:
        """Window and overlap in patches.

        Raises:
            InputError: they are no multiples of the patch, or no window and overlap.
        """
        window = max(USUAL_WINDOW // patch, 1) * patch if self.window is None else self.window
        overlap = window // patch // 4 * patch if self.overlap is None else self.overlap
        if window % patch or overlap % patch or 2 * overlap > window:
            raise InputError(
                f"window {window}, overlap {overlap}: window and overlap are multiples of the patch of {patch} pixels, the "
                f"overlap at most half the window; leave them out for usual ones"
            )
        return window // patch, overlap // patch


STANDARD = EmbeddingOptions()


class Embedded(NamedTuple):
    """What was written."""

    bands: int
    grid: Grid
    components: Components | None
    points: int  # of the table of centroids


class Windows(NamedTuple):
    """A scene as an encoder goes over it: windows of patches, down and along."""

    encoder: AllianceEncoder
    sensor: Sensor
    scene: SceneImages
    rows: Cover
    cols: Cover
    groups: Groups
    places: Tensor  # (f, h, w), of a window: what is taken from the features

    @property
    def bands(self) -> int:
        """Numbers per patch."""
        return self.encoder.embed_dim * (1 if self.groups == "mean" else len(self.sensor.group_indices))

    @property
    def side(self) -> int:
        """Of a window, pixels."""
        return self.rows.size * self.encoder.patch_size

    def at(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Features of windows: (b, f, h, w), and where a patch is missing, (b, h, w) bool.

        Raises:
            InputError: the encoder gives numbers that are not finite.
        """
        encoder, patch = self.encoder, self.encoder.patch_size
        device = encoder.norm.weight.device
        images = torch.stack([torch.from_numpy(self._read(piece.row, col)) for col in piece.cols]).to(device)
        values, valid = self.sensor.standardise(images)
        shape = (len(images), self.rows.size, self.cols.size)
        present = patch_validity(shift_patches(valid.float(), encoder.config.patch_offset), patch).reshape(shape)
        found = torch.zeros(len(images), self.bands, *shape[1:], device=device)
        seen = present.any((1, 2))
        if seen.any():
            found[seen] = encode(encoder, self.sensor, values[seen], self.groups) - self.places
        if not found.isfinite().all():
            raise InputError("the encoder gives numbers that are not finite; its weights do not fit the image")
        return found, ~present

    def _read(self, row: int, col: int) -> NDArray[np.float32]:
        """Numbers (c, h, w) of a window, NaN where the scene has no pixel."""
        patch, grid = self.encoder.patch_size, self.scene.grid
        top, left = self.rows.starts[row] * patch, self.cols.starts[col] * patch
        height, width = self.rows.size * patch, self.cols.size * patch
        inside = min(height, grid.height - top), min(width, grid.width - left)
        (numbers,) = self.scene.read(top, left, *inside).values()
        margin = ((0, 0), (0, height - inside[0]), (0, width - inside[1]))
        return np.pad(numbers, margin, constant_values=np.nan)


@contextmanager
def opened_windows(
    encoder: AllianceEncoder, sensor: Sensor, file: ImageFile, options: EmbeddingOptions = STANDARD
) -> Iterator[Windows]:
    """The windows of a scene, until the block ends.

    Raises:
        InputError: see `embed_scene`.
    """
    patch = encoder.patch_size
    window, overlap = options.in_patches(patch)
    with opened_images({sensor.name: file}, {sensor.name: _input(sensor)}, force=options.force) as scene:
        grid = patch_grid(scene.grid, patch, encoder.config.patch_offset)
        rows, cols = (cover(side, window, overlap) for side in (grid.height, grid.width))
        shape = (1, len(sensor.bands), rows.size * patch, cols.size * patch)
        response = encode(encoder, sensor, torch.zeros(shape, device=encoder.norm.weight.device), options.groups)[0]
        places = response - response.mean((1, 2), keepdim=True) if options.positions == "remove" else response * 0
        yield Windows(encoder, sensor, scene, rows, cols, options.groups, places)


@dataclass(frozen=True, kw_only=True)
class EmbeddingRecipe:
    """How a worker opens the windows of a scene."""

    folder: Path
    """Of the encoder."""
    contents: str
    """Checksum of that folder."""
    device: str
    """For the encoder."""
    sensor: Sensor
    """With the bands that are read."""
    file: ImageFile
    """The scene."""
    stamps: dict[Path, Stamp]
    """Of this file and what belongs to it, as the command sees them."""
    options: EmbeddingOptions
    """As of the command, which has looked at the numbers."""

    @classmethod
    def of(
        cls, folder: Path, device: str, sensor: Sensor, file: ImageFile, options: EmbeddingOptions
    ) -> "EmbeddingRecipe":
        """With absolute paths."""
        folder, file = folder.absolute(), file._replace(path=file.path.absolute())
        return cls(
            folder=folder,
            contents=contents_of(folder),
            device=device,
            sensor=sensor,
            file=file,
            stamps=stamped([file.path]),
            options=replace(options, force=True, pca=None),
        )

    @contextmanager
    def opened(self) -> Iterator[Windows]:
        """On a worker."""
        refuse_unseen(self.stamps)
        encoder = _encoder(self.folder, self.contents, self.device)
        with opened_windows(encoder, self.sensor, self.file, self.options) as windows:
            yield windows


@lru_cache(maxsize=1)
def _encoder(folder: Path, contents: str, device: str) -> AllianceEncoder:
    refuse_other_contents(folder, contents)
    return load_encoder(folder, device=usable_device(device))


def embed_scene(
    encoder: AllianceEncoder,
    sensor: Sensor,
    file: ImageFile,
    out: Path,
    options: EmbeddingOptions = STANDARD,
    *,
    table: Path | None = None,
    digest: str = "",
    run: Run = run_here,
) -> Embedded:
    """Write the features of a scene of any size; `datasets.imagery.feature_maps` says how they are stored.

    A pixel of the product is a patch. One of which less than half of the pixels are there is missing; patches at the
    lower and right edge that go beyond the scene are counted so too.

    Args:
        encoder: in evaluation mode, on its device.
        sensor: with statistics, of the bands that the file has.
        table: GeoParquet file of the patches' centres and features, if wanted.
        digest: of the encoder's weights, kept in the file.
        run: what puts the windows through the encoder.
    Raises:
        InputError: the image cannot be read or is not of the sensor, also by its numbers, files to write are no such
            ones, components of another encoder, or features that are not finite.
    """
    patch = encoder.patch_size
    options.in_patches(patch)
    check_targets([out], [file.path, *([options.pca] if isinstance(options.pca, Path) else [])])
    tags = {"ENCODER": digest, "SENSOR": sensor.name, "BANDS": ",".join(sensor.band_names)}
    tags |= {"GROUPS": options.groups, "POSITIONS": options.positions}
    components = read_components(options.pca, tags) if isinstance(options.pca, Path) else None
    with ExitStack() as stack:
        windows = stack.enter_context(opened_windows(encoder, sensor, file, options))
        grid = patch_grid(windows.scene.grid, patch, encoder.config.patch_offset)
        if isinstance(options.pca, int):
            components = fit_components(_sampled(windows, options.seed, run), options.pca)
        kept = windows.bands if components is None else len(components.axes)
        tags |= {PCA_TAG: components.to_text()} if components else {}
        kind = "feature" if components is None else "component"
        names = [f"{kind} {index}" for index in range(1, kept + 1)]
        written = row_of_blocks(grid, kept)
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=cache_size(windows.scene, windows.side, written)))
        points = stack.enter_context(centroid_table(table, grid, kept)) if table else None
        target = stack.enter_context(feature_map(out, grid, names, options.dtype, tags | {"PATCH": str(patch)}))
        writers = [target.write, *([points.write] if points else [])]
        for values, top in _blended(windows, components, kept, options, run):
            for left in range(0, grid.width, windows.cols.size):
                for write in writers:
                    write(values[:, :, left : left + windows.cols.size], top, left)
    return Embedded(kept, grid, components, points.count if points else 0)


@torch.inference_mode()
def encode(encoder: AllianceEncoder, sensor: Sensor, standardised: Tensor, groups: Groups) -> Tensor:
    """Images (b, c, h, w) in standard deviations -> features (b, f, h / patch, w / patch) float32."""
    (maps,) = encoder.forward_intermediates(standardised, sensor, [-1], "keep", standardised=True)
    return (maps.mean(1) if groups == "mean" else maps.flatten(1, 2)).float()


def patch_grid(grid: Grid, patch: int, offset: int = 0) -> Grid:
    """The grid of the patches of an image; the first one begins `offset` pixels before it."""
    place = grid.transform and grid.transform * Affine.translation(-offset, -offset) * Affine.scale(patch)
    return Grid(math.ceil(grid.height / patch), math.ceil(grid.width / patch), grid.crs, place)


def read_components(path: Path, tags: dict[str, str]) -> Components:
    """The principal components of a file of embeddings.

    Args:
        tags: what must be the same of that file: encoder, sensor, bands, groups.
    Raises:
        InputError: no such file, or its features are others.
    """
    try:
        with open_quietly(path) as file:
            found = file.tags()
    except RasterioError as error:
        raise InputError(f"{path} cannot be read ({error}); give --pca a number, or a file of embeddings") from error
    if PCA_TAG not in found:
        raise InputError(f"{path} holds no principal components; give --pca a number, or a file that was made so")
    for name, value in tags.items():
        if found.get(name, "") != value:
            raise InputError(
                f"{path} has components of {name.lower()} {found.get(name)!r}, here are {value!r}; give --pca a number"
            )
    return Components.from_text(found[PCA_TAG])


def _input(sensor: Sensor) -> ImageInput:
    mean, std = (np.array([getattr(band, field) for band in sensor.bands], float) for field in ("mean", "std"))
    return ImageInput(source=SensorSource(known=sensor), preprocessing=Preprocessing(mean=mean, std=std))


def _sampled(windows: Windows, seed: int, run: Run) -> Iterator[Tensor]:
    """Features (m, f) of the patches of some windows, drawn at random."""
    along = len(windows.cols.starts)
    total = len(windows.rows.starts) * along
    drawn = (divmod(number, along) for number in np.random.default_rng(seed).permutation(total)[:SAMPLED].tolist())
    for _, (found, missing) in run(windows, (Piece(row, range(col, col + 1)) for row, col in drawn)):
        yield found.movedim(1, -1)[~missing]


def _blended(
    windows: Windows, components: Components | None, bands: int, options: EmbeddingOptions, run: Run
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Finished rows (f, h, w) from the top of the scene to its end, NaN where missing, and the first of them."""
    strip = Strip(bands, windows.rows, windows.cols, windows.encoder.norm.weight.device)

    def kept() -> Iterator[tuple[Piece, list[Seen]]]:
        for piece, (found, missing) in run(windows, pieces_of(windows.rows, windows.cols, options.batch)):
            found = found if components is None else components.apply(found)
            yield piece, list(map(Seen, found, missing.cpu()))

    for top, count in blended(kept(), strip, title="embedding", progress=options.progress):
        values = strip.values[:, :count].cpu()
        yield values.masked_fill(strip.missing[:count], math.nan).numpy(), top
