"""A program: makes shards from within a folder, as one who types relative paths there."""

import os
import sys

from datasets.shards.command import main

if __name__ == "__main__":
    os.chdir(sys.argv.pop(1))
    main()
