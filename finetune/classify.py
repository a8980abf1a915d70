"""Classify pixels of HSI or MSI with LiDAR or SAR:  python finetune/classify.py --config configs/finetune/classify_augsburg.yaml"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root
    os.environ["PYTHONSAFEPATH"] = "1"  # nothing of the current folder is run by processes that this one starts

    from datasets.interrupts import end_at_once

    end_at_once()  # at Ctrl-C, without a traceback, while libraries are imported

    from finetune.tasks.classification_seeds import main

    main()
