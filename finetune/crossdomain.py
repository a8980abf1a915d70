"""Segment across domains:  deepspeed finetune/crossdomain.py --config configs/finetune/crossdomain_yellow_river.yaml"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root
    os.environ["PYTHONSAFEPATH"] = "1"  # nothing of the current folder is run by processes that this one starts

    from datasets.interrupts import end_at_once

    end_at_once()  # at Ctrl-C, without a traceback, while libraries are imported

    from finetune.tasks.crossdomain import main

    main()
