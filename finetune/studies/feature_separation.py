"""How well the features of PAD's encoders, and those after fusion, tell the classes apart: numbers and a picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import davies_bouldin_score, silhouette_score

from alliance.errors import InputError
from datasets.imagery.labels import IGNORE
from datasets.labelled.tiles import Tiles
from engine.probing import evaluating
from finetune.pad.fusion import STAGES
from finetune.pad.model import Pad
from finetune.studies.report import draw_features, write_rows
from finetune.tasks.evaluate import network_images

STREAM = 5  # keeps these draws apart from those of other modules with the same seed
COMPONENTS = 50  # that PCA leaves
PERPLEXITY = 30.0


class Cells(NamedTuple):
    """Places in feature maps, and the class of the pixel in the middle of each; arrays (n,) int64."""

    image: NDArray[np.int64]  # number in the split
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    label: NDArray[np.int64]


class Separation(NamedTuple):
    """How far apart the classes lie."""

    silhouette: float  # -1 to 1, higher is better
    davies_bouldin: float  # from 0, lower is better


class Embedding(NamedTuple):
    """Features of one place in the network."""

    points: NDArray[np.floating]  # (n, 2) t-SNE
    features: Separation  # of the features after PCA, which is what t-SNE gets
    drawn: Separation  # of the points


def feature_figure(
    model: Pad,
    tiles: Tiles,
    path: Path,
    *,
    stage: int = 4,
    per_class: int = 200,
    images: int = 50,
    seed: int = 0,
) -> dict[str, Embedding]:
    """Compare features before fusion (`rgb`, `sar`) and after (`fused`) by class.

    Writes three panels to `path` (PNG) and the separations beside it (CSV).

    Args:
        stage: 1 to 4, of which the maps are taken.
        per_class: how many places of each class at most, drawn at random without repetition.
        images: from how many images at most, drawn at random.
    Raises:
        InputError: a network of one modality, a stage without both maps, or too few labels.
    """
    stages = STAGES[:1] if model.config.early_fusion else STAGES
    if model.config.input != "both" or stage not in stages:
        raise InputError(
            f"features before and after fusion: input is {model.config.input!r}, stage {stage}; they need a network of "
            f"both modalities and a stage of {list(stages)}"
        )
    cells = sample_cells(tiles, stage=stage, per_class=per_class, images=images, seed=seed)
    classes = len(np.unique(cells.label))
    if not 2 <= classes < len(cells.label):
        raise InputError(
            f"{len(cells.label)} labelled places of {classes} classes were drawn, too few to compare; "
            f"take more images, or an earlier stage"
        )
    features = cell_features(model, tiles, cells, stage)
    embeddings = {name: embed(values, cells.label, seed) for name, values in features.items()}
    write_rows(path.with_suffix(".csv"), list(_rows(embeddings, cells, stage)))
    points = {
        f"{name}, stage {stage}\nsilhouette {each.features.silhouette:.3f} (↑), "
        f"Davies-Bouldin {each.features.davies_bouldin:.2f} (↓)": each.points
        for name, each in embeddings.items()
    }
    draw_features(path, points, cells.label, tiles.described.classes)
    return embeddings


def sample_cells(tiles: Tiles, *, stage: int, per_class: int, images: int, seed: int) -> Cells:
    """Draw places of each class, none twice, from some images; a class with fewer gives all it has.

    A cell of a map covers `stride` x `stride` pixels and takes the class of the pixel in its middle; those without a
    label are left out.

    Raises:
        InputError: a label file cannot be read, or holds unknown values.
    """
    rng = np.random.default_rng([STREAM, seed])
    found = [
        _labelled_cells(tiles, int(image), 2 ** (stage + 1)) for image in np.sort(rng.permutation(len(tiles))[:images])
    ]
    every = np.concatenate(found, axis=1)
    labels = every[-1]
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return Cells(*every[:, np.sort(np.concatenate([*drawn, np.empty(0, dtype=np.int64)]))])


def cell_features(model: Pad, tiles: Tiles, cells: Cells, stage: int) -> dict[str, NDArray[np.float32]]:
    """Features (n, c) at the cells, in their order: of each encoder before fusion, and `fused`.

    Args:
        cells: sorted by image, as `sample_cells` gives them.
    Raises:
        InputError: as `evaluate`.
    """
    parameter = next(model.parameters())
    names = [*model.config.in_channels, "fused"]
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    with evaluating(model):
        for image in np.unique(cells.image):
            here = cells.image == image
            rows, columns = (torch.from_numpy(axis[here]) for axis in (cells.row, cells.column))
            shown = network_images(tiles[int(image)], tiles.described, model.config)
            pyramids = model.encode({name: values.to(parameter) for name, values in shown.items()})
            maps = [*(pyramid[stage - 1] for pyramid in pyramids), model.fuse(pyramids)[0][stage - 1]]
            for name, values in zip(names, maps, strict=True):
                parts[name].append(rearrange(values[0].float().cpu()[:, rows, columns], "c n -> n c").numpy())
    return {name: np.concatenate(part) for name, part in parts.items()}


def embed(features: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> Embedding:
    """PCA to 50 dimensions, t-SNE to two (n points, one class each), and how the classes are separated in both."""
    reduced = PCA(min(COMPONENTS, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return Embedding(points, separation(reduced, labels), separation(points, labels))


def separation(points: NDArray[np.floating], labels: NDArray[np.int64]) -> Separation:
    """Silhouette and Davies-Bouldin scores of points (n, d) by class, Euclidean; two classes at least."""
    return Separation(float(silhouette_score(points, labels)), float(davies_bouldin_score(points, labels)))


def _labelled_cells(tiles: Tiles, image: int, stride: int) -> NDArray[np.int64]:
    """Image, row, column and class of every labelled cell: (4, n)."""
    label = tiles.label(image)
    height, width = (side // stride for side in label.shape)
    middle = label[stride // 2 :: stride, stride // 2 :: stride][:height, :width]
    rows, columns = np.nonzero(middle != IGNORE)
    return np.stack([np.full_like(rows, image), rows, columns, middle[rows, columns]])


def _rows(embeddings: Mapping[str, Embedding], cells: Cells, stage: int) -> Iterator[dict[str, object]]:
    for name, each in embeddings.items():
        for space, scores in (("features", each.features), ("t-SNE", each.drawn)):
            row = {"map": name, "stage": stage, "space": space, "points": len(cells.label)}
            yield row | {"classes": len(np.unique(cells.label))} | scores._asdict()
