"""A program: DeepSpeed's converter of a checkpoint's parts, that reads them without calling anything they name.

Started by `engine.elastic` with `python -P`; its options are those of `deepspeed.checkpoint.ds_to_universal`.
"""

import multiprocessing
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # -P has put no folder there
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whatever a call of torch.load says itself
    multiprocessing.set_start_method("fork")  # its workers know the classes below

    from deepspeed.checkpoint.ds_to_universal import main, parse_arguments
    from torch.serialization import add_safe_globals

    from engine.deepspeed_internals import saved_classes

    add_safe_globals(list(saved_classes()))
    main(parse_arguments())
