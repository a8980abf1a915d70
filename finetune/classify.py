"""Classify pixels of HSI or MSI with LiDAR or SAR:  python finetune/classify.py --config configs/finetune/classify_augsburg.yaml"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the clone's root, where our packages are

    from finetune.tasks.classification_seeds import main

    main()
