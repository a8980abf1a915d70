"""Prepare public data sets:  python launch/prepare.py whu-opt-sar downloads/whu-opt-sar data/whu-opt-sar"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the clone's root, where our packages are

    from datasets.releases.command import main

    main()
