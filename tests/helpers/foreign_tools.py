"""Stand-ins with the documented protocols of terratorch and torchgeo-bench, where these are not installed."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Registry:
    """terratorch's: constructors by their names."""

    def __init__(self) -> None:
        self.constructors: dict[str, Callable[..., Any]] = {}

    def register(self, constructor: Callable[..., Any]) -> Callable[..., Any]:
        self.constructors[constructor.__name__] = constructor
        return constructor

    def build(self, name: str, *arguments: Any, **settings: Any) -> Any:
        return self.constructors[name](*arguments, **settings)


@dataclass(frozen=True)
class BandSpec:
    """torchgeo-bench's: what a data set says of a band."""

    sensor: str
    name: str
    source_name: str
    mean: float
    std: float
    min: float
    max: float
    wavelength_um: float | None = None


class BenchModel(nn.Module, ABC):
    """torchgeo-bench's: `forward` normalises, then asks for features (b, k)."""

    def __init__(self, bands: list[Any], normalization: str = "bandspec_zscore", **_: object) -> None:
        super().__init__()
        self.bands, self.num_channels, self.normalization = list(bands), len(bands), normalization

    def normalize_inputs(self, images: Tensor) -> Tensor:
        return images

    @abstractmethod
    def _forward_patch_features(self, images: Tensor) -> Tensor: ...

    def forward_patch_features(self, images: Tensor) -> Tensor:
        return self._forward_patch_features(self.normalize_inputs(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_patch_features(images)


def stand_in(monkeypatch: pytest.MonkeyPatch, package: str, module: str, **members: Any) -> None:
    """Let `module` of a package be imported; the real one where it is installed."""
    if find_spec(package) is not None:
        return
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        made = ModuleType(".".join(parts[:count]))
        made.__path__ = []
        monkeypatch.setitem(sys.modules, made.__name__, made)
    vars(sys.modules[module]).update(members)


def hooked(model: nn.Module, names: list[str], image: Tensor) -> dict[str, Tensor]:
    """What modules of these names give, as torchgeo-bench's probe of segmentation finds them."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        called = name.removeprefix("backbone.")
        if called in names:
            module.register_forward_hook(lambda _module, _given, output, called=called: found.update({called: output}))
    with torch.no_grad():
        model(image)
    return found
