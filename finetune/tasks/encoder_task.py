"""A task on tiles with an Alliance encoder and a head: what segmentation and change detection have in common."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from alliance.errors import InputError
from datasets.labelled.checks import count_labels
from datasets.labelled.description import LabelledSet
from datasets.labelled.tiles import channels
from engine.job import Config
from engine.ranks import World
from finetune.dense.checkpoint import load_dense, save_dense
from finetune.dense.losses import DenseLossConfig, dense_loss
from finetune.dense.model import DenseConfig, DenseNetwork, Joining
from finetune.model_files import Inputs, image_input
from finetune.tasks.dense import DenseTask, refuse_single


class EncoderTask(DenseTask[Config]):
    """The network of `finetune.dense` on the images of a description.

    Args:
        described: those images, with their statistics.
        model, loss: of the settings, wherever they stand in the tree.
    """

    joining: ClassVar[Joining] = "concat"

    def __init__(
        self,
        config: Config,
        world: World,
        described: LabelledSet,
        *,
        model: DenseConfig,
        loss: DenseLossConfig,
        evaluate_every: int,
    ) -> None:
        if len(described.classes) < 2:
            raise InputError(
                f"{described.name} has the class {' '.join(described.classes)} alone; name at least two classes"
            )
        self.model, self.loss = model.with_sensors(described.images), loss
        self.roles = {role: role for role in described.images}
        super().__init__(config, world, described, evaluate_every=evaluate_every)
        if model.normalises_batches:
            refuse_single(self.batching, world)
        loss.weights({}, len(described.classes))  # as many as classes, or refused

    @cached_property
    def weights(self) -> Tensor | None:
        """Of the classes in the loss."""
        train, classes = self.tiles[self.data.train], len(self.described.classes)
        counted = self.loss.balance != "none"
        table = self.described.label.table(classes)
        return self.loss.weights(count_labels(train).by_class(table) if counted else {}, classes)

    @property
    def inputs(self) -> Inputs:
        images = {role: image_input(source) for role, source in self.described.images.items()}
        return Inputs(classes=self.described.classes, images=images)

    def make_model(self) -> nn.Module:
        return self.make_network()

    def make_network(self) -> DenseNetwork:
        counts = {role: channels(role, self.described) for role in self.roles}
        checkpoint: str = getattr(self.config, "checkpoint")  # noqa: B009 - of every settings tree of such a task
        return DenseNetwork(
            self.model, counts, len(self.described.classes), joining=self.joining, checkpoint=checkpoint
        )

    def losses(self, engine: Any, batch: Any, step: int) -> Mapping[str, Tensor]:
        output = engine(**self.given(batch.images))
        return dense_loss(output.logits, batch.label.to(self.world.device), self.loss, self.weights)

    def save(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        network = self.network(model)
        assert isinstance(network, DenseNetwork), "what make_network makes"
        save_dense(network, weights, folder, self.inputs)

    def load(self, folder: Path) -> nn.Module:
        return load_dense(folder, device=self.world.device)
