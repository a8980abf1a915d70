"""Modules as torch.export programs and ONNX files, compared with the module before anything is written."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import UserError

from alliance.errors import InputError
from alliance.files import naming, new_file, replace_file, sync
from finetune.export.graphs import Exportable, Sides

TOLERANCE = 1e-4
CONTRACT_FILE = "contract.json"  # of a torch.export program
CONTRACT_KEY = "contract"  # of the metadata of an ONNX file
OPSET, NEWEST = 18, 25  # of the operators: default and oldest; newest that the exporter and onnxruntime both know
LARGEST = 2**31 - 2**20  # bytes of weights in one ONNX file; the format's limit is 2 GiB
Run = Callable[..., Sequence[Tensor]]


class Compared(NamedTuple):
    """How far a file is from its module, for images of one size."""

    batch: int
    sides: Sides
    largest: float

    def __str__(self) -> str:
        return f"{self.batch} x {self.sides[0]} x {self.sides[1]}: {self.largest:.1e}"


def make_program(wanted: Exportable, sides: Sides | None) -> torch.export.ExportedProgram:
    """The graph of a module for images of one size, or of any.

    Any batch, whatever the size. Nothing in it names a place on this machine.

    Raises:
        InputError: it cannot be for any size.
    """
    batch = torch.export.Dim("batch", min=1)
    free: dict[int, Any] = {0: batch}
    if sides is None:
        for axis, name in ((2, "rows"), (3, "columns")):
            free[axis] = wanted.multiple * torch.export.Dim(name, min=2)  # a size of 1 would be a graph of its own
    # Sizes that are no numbers of the network, so that none of these is taken for one of them.
    images = stored_images(wanted, 3, sides or (5 * wanted.multiple, 7 * wanted.multiple))
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(wanted.module, images, dynamic_shapes=((free,) * len(images),))
        except UserError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"no graph for images of any size can be made ({reason:.200}); give --size") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write_torch(
    program: torch.export.ExportedProgram, path: Path, wanted: Exportable, sides: Sides | None
) -> list[Compared]:
    """Write a .pt2 file; how far it is from the module.

    Raises:
        InputError: farther than it may be.
    """
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={CONTRACT_FILE: json.dumps(wanted.contract, indent=1)})
    content.seek(0)
    run = torch.export.load(content).module()
    found = compare(wanted, lambda *images: _as_list(run(*images)), sides)
    replace_file(path, content.getvalue())
    return found


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, wanted: Exportable, sides: Sides | None, opset: int = OPSET
) -> list[Compared]:
    """Write an ONNX file; how far it is from the module, as onnxruntime evaluates it.

    Raises:
        InputError: a package is not installed, the weights are too many for the format, or the file is farther from
            the module than it may be.
    """
    ort = require_onnx()
    size = sum(value.numel() * value.element_size() for value in wanted.module.state_dict().values())
    if size > LARGEST:
        raise InputError(f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX file; take --format torch")
    given, made_names = list(wanted.images), list(wanted.outputs)
    try:
        with _quiet():
            made = torch.onnx.export(
                program, opset_version=opset, input_names=given, output_names=made_names, dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[-200:]
        raise InputError(f"the network cannot be written as ONNX (... {reason}); take --format torch") from error
    assert made is not None, "an ONNX program"
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # places in the code of this machine
    made.model.metadata_props[CONTRACT_KEY] = json.dumps(wanted.contract)
    with naming(path), new_file(path) as part:
        made.save(part)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(part, options, providers=["CPUExecutionProvider"])

        def run(*images: Tensor) -> list[Tensor]:
            given = {name: image.numpy() for name, image in zip(wanted.images, images, strict=True)}
            return [torch.from_numpy(output) for output in session.run(None, given)]

        found = compare(wanted, run, sides)
        sync(part)
    return found


def require_onnx() -> Any:
    """onnxruntime, with all else that ONNX needs.

    Raises:
        InputError: a package is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'alliance-rs[export]'") from error
    return onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own steps."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def compare(wanted: Exportable, run: Run, sides: Sides | None) -> list[Compared]:
    """The largest differences between a file and its module, three times: sizes of images, or of batches where one is left.

    Args:
        run: of the file, images in, outputs as they are listed.
        sides: the only size; None: any.
    Raises:
        InputError: one is above `TOLERANCE`.
    """
    step = wanted.multiple
    cases = [(2, (2 * step, 3 * step)), (1, (4 * step, 2 * step)), (3, (6 * step, 6 * step))]
    found = []
    for batch, free in cases:
        images = stored_images(wanted, batch, sides or free)
        with torch.inference_mode():
            expected = _as_list(wanted.module(*images))
            gaps = [(one - other).abs().max() for one, other in zip(run(*images), expected, strict=True)]
        found.append(Compared(batch, sides or free, torch.stack(gaps).max().item()))
        if not found[-1].largest <= TOLERANCE:
            raise InputError(
                f"the exported graph differs from the network by {found[-1].largest:.2g} on {batch} x {found[-1].sides}, "
                f"allowed is {TOLERANCE:g}; nothing was written. Try --format {{torch, onnx}}, whichever this is not, "
                f"and report it with this line"
            )
    return found


def stored_images(wanted: Exportable, batch: int, sides: Sides) -> tuple[Tensor, ...]:
    """Made-up stored numbers of all images, (b, c, h, w) each; the same for the same sizes."""
    generator = torch.Generator().manual_seed(batch)
    shapes = ((batch, channels, *sides) for channels in wanted.images.values())
    return tuple(wanted.typical[name].draw(shape, generator) for name, shape in zip(wanted.images, shapes, strict=True))


def _as_list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
