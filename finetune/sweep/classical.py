"""Classical references on the same split: support vector machine and random forest on spectra and patch statistics."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from alliance.errors import InputError
from datasets.labelled import Inputs, PatchSet
from datasets.sampling.splits import Split
from finetune.scores import Scores, classification_scores, confusion_matrix

Part = Literal["passive", "active", "passive statistics", "active statistics"]
Model = Literal["svm", "forest"]

REFERENCES: tuple[tuple[Model, tuple[Part, ...]], ...] = (
    ("svm", ("passive",)),
    ("forest", ("active",)),
    ("svm", ("passive", "active")),
    ("forest", ("passive", "active")),
    ("svm", ("passive", "active", "passive statistics")),
    ("forest", ("passive", "active", "passive statistics")),
)
CHUNK = 1024  # patches in memory at once


def reference_scores(
    patches: PatchSet, split: Split, *, seed: int, models: Sequence[Model] = ("svm", "forest")
) -> dict[str, Scores]:
    """Scores on the test pixels of every reference whose images are there, such as "svm: passive + active"."""
    there = {role for role in ("passive", "active") if patches.channels[role]}
    return {
        f"{model}: {' + '.join(parts)}": score(patches, split, model, parts, seed=seed)
        for model, parts in REFERENCES
        if model in models and {part.split()[0] for part in parts} <= there
    }


def score(patches: PatchSet, split: Split, model: Model, parts: Sequence[Part], *, seed: int) -> Scores:
    """Train on the training pixels of a split, score on its test pixels; validation pixels are not used.

    Raises:
        InputError: fewer than two classes to train on, or no test pixels.
    """
    classes = np.unique(patches.label[split.train])
    if len(classes) < 2 or not len(split.test):
        raise InputError(
            f"the split has {len(classes)} classes for training and {len(split.test)} test pixels; "
            "give at least two classes and some test pixels"
        )
    fitted = pipeline(model, seed).fit(features(patches, split.train, parts), patches.label[split.train])
    predicted = fitted.predict(features(patches, split.test, parts))
    truth = torch.from_numpy(patches.label[split.test])
    return classification_scores(confusion_matrix(truth, torch.from_numpy(predicted), len(patches.classes)))


def pipeline(model: Model, seed: int) -> Pipeline:
    """The model with its settings, untrained."""
    if model == "svm":
        return make_pipeline(StandardScaler(), SVC(C=100, kernel="rbf", gamma="scale", random_state=seed))
    return make_pipeline(RandomForestClassifier(n_estimators=300, n_jobs=-1, random_state=seed))


def features(patches: PatchSet, pixels: NDArray, parts: Sequence[Part]) -> NDArray[np.float32]:
    """Features (n, f) of labelled pixels: values of an image at the pixel, or mean and deviation over its patch."""
    chunks = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]
    rows = [torch.cat([_part(patches.batch(chunk)[0], part) for part in parts], dim=1) for chunk in chunks]
    return torch.cat(rows).numpy()


def _part(inputs: Inputs, part: Part) -> Tensor:
    image = inputs.spectral if part.startswith("passive") else inputs.active
    if part.endswith("statistics"):
        return torch.cat([image.mean(dim=(2, 3)), image.std(dim=(2, 3), correction=0)], dim=1)
    centre = image.shape[-1] // 2
    return image[:, :, centre, centre]
