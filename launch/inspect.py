"""Say what images or an encoder hold:  python launch/inspect.py scenes/ [--sensor NAME] [--out histograms.png]"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the clone's root, where our packages are

    from datasets.shards.inspection import main

    main()
