"""Compare optical and SAR images:  python launch/spectra.py --optical rgb/ --sar sar/ --out spectra/"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the clone's root, where our packages are

    from finetune.studies.spectra import main

    main()
