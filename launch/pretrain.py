"""Pretrain Alliance:  deepspeed --num_gpus 2 launch/pretrain.py --config configs/pretrain/nano.yaml --run.dir runs/first"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the clone's root, where our packages are

    from pretrain.run import main

    main()
