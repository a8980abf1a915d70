"""Pretrain Alliance on shards: from settings to an exported encoder."""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from alliance.checkpoint import save_encoder
from alliance.errors import InputError
from alliance.losses import measure_spread
from alliance.model import Alliance
from alliance.sensors import Sensor
from alliance.tokens import mask_noise, token_grid_shape
from datasets.shards.loader import ShardLoader
from engine import checkpoints
from engine.build import build_engine
from engine.log import Metrics, WandbMirror, logger, setup_logging
from engine.pictures import band_psnr, draw_reconstruction
from engine.ranks import World, finish, from_main, start
from engine.runs import RunFolder
from engine.settings import parse_settings, to_record
from pretrain.config import PretrainConfig
from pretrain.loop import train

SPREAD_SAMPLES = 256  # on which the frequency increments of a sensor are measured
PROBE_SAMPLES = 8  # of each sensor, drawn in every picture
PROBE_SEED = 1


def main(arguments: list[str] | None = None) -> None:
    """Entry point of launch/pretrain.py: a user's mistake is one line and exit code 2."""
    rank = 0
    try:
        config = parse_settings(PretrainConfig, __doc__, arguments)
        world = start()
        rank = world.rank
        try:
            pretrain(config, world)
        finally:
            finish()
    except InputError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def pretrain(config: PretrainConfig, world: World) -> None:
    """One run on this rank."""
    folder = RunFolder(config.run.dir)
    agree_on_error(lambda: folder.claim(config.run.resume) if world.is_main else None)
    setup_logging(folder if world.is_main else None)
    run = Run(config, folder, world)
    try:
        run.go()
    finally:
        run.close()
