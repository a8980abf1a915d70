"""The pictures of finished seeds: maps of all scenes, and what the network does to frequencies."""

from pathlib import Path

import torch

from datasets.labelled import PatchSet
from engine.log import logger, report_disk_errors
from finetune.mapping.map_pictures import write_maps
from finetune.s2fin.checkpoint import load_network
from finetune.studies.frequencies import frequencies
from finetune.studies.frequency_pictures import draw_frequencies
from finetune.sweep.runs import draw_split
from finetune.tasks.classification_config import ClassifyConfig


def draw_maps(config: ClassifyConfig, patches: PatchSet, device: torch.device) -> None:
    """Draw the seeds that `config.maps` asks for, but for those that are drawn."""
    chosen = {"none": [], "first": config.seed_list[:1], "all": config.seed_list}[config.maps]
    for seed in chosen:
        folder = Path(config.run.dir) / f"seed_{seed}"
        if (folder / "pictures" / "frequencies.png").is_file():
            continue
        logger.info("mapping the scenes by the network of seed %d; --maps none does without", seed)
        network, split = load_network(folder / "model", device=device), draw_split(patches, config, seed)
        with report_disk_errors("maps and pictures"):
            write_maps(folder / "pictures", network, patches, split=split, device=device)
            found = frequencies(network, patches, split.test, device=device)
            draw_frequencies(folder / "pictures" / "frequencies.png", found, network, patches, title=f"seed {seed}")
