"""Means and deviations of the bands of a task's images: given, of a sensor, or measured on the images it learns from."""

from collections.abc import Callable, Mapping

from alliance.errors import InputError
from datasets.labelled.description import LabelledSet
from datasets.labelled.survey import survey, with_statistics
from datasets.labelled.tiles import Tiles
from engine.log import logger
from finetune.backbones.alliance_encoder import TransferConfig
from finetune.backbones.standardising import encoder_statistics


def with_statistics_known(described: LabelledSet, measured_on: Callable[[], Tiles]) -> LabelledSet:
    """The set with the mean and deviation of every band.

    Args:
        measured_on: tiles that are measured if an image says `statistics: dataset` and no mean.
    Raises:
        InputError: they are neither known nor to be measured.
    """
    unknown = [role for role, source in described.images.items() if source.statistics == "dataset" and not source.mean]
    if unknown:
        tiles = measured_on()
        surveyed = survey(tiles)
        if not surveyed.tiles:
            raise InputError(
                f"{described.name}: no image of {tiles.split} can be measured; {surveyed.skipped[0].reason}"
            )
        found = with_statistics(described, [surveyed])
        described = described.with_images(**{role: found.images[role] for role in unknown})
        for role in unknown:
            mean, std = ([round(value, 4) for value in column] for column in described.image(role).moments)
            logger.info("%s of %s, measured on %s: mean %s, std %s", role, described.name, tiles.split, mean, std)
    for role, source in described.images.items():
        try:
            source.moments  # noqa: B018 - refused where they are not known
        except InputError:
            raise InputError(
                f"{described.name}: mean and std of {role} are missing in the description; `python launch/prepare.py check` "
                f"prints them, and statistics: dataset has them measured"
            ) from None
    return described


def with_encoder_statistics(
    described: LabelledSet, transfer: TransferConfig, checkpoint: str, names: Mapping[str, str] | None = None
) -> LabelledSet:
    """The set with the means and deviations of the encoder's sensors where `transfer.statistics` says so.

    Args:
        names: role of each image, by the encoder's name for it; None: the same for all of the set.
    Raises:
        InputError: as `encoder_statistics`.
    """
    names = {role: role for role in described.images} if names is None else names
    found = encoder_statistics(transfer, checkpoint, {name: described.image(role) for name, role in names.items()})
    return described.with_images(**{names[name]: source for name, source in found.items()})
