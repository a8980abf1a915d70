"""Small tensors that depend on few plain values: made once, constants of a graph that is compiled, made anew in one that is exported."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def exporting() -> bool:
    """Whether `torch.export` looks on. `torch.compiler.is_exporting` is true of compiling too in older versions of torch."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def constant(function: Function) -> Function:
    """Mark a function of plain values: while a graph is compiled it is called once, and what it gave belongs to the graph.

    It sets what `torch.compiler.assume_constant_result` does, which would import the compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def kept(most: int) -> Callable[[Function], Function]:
    """Remember what a function of hashable values gave, for the `most` values that were used last.

    Inside a graph that is exported it is called each time: sizes are symbols there, and what is made belongs to that graph alone.
    """

    def decorate(function: Function) -> Function:
        @functools.lru_cache(maxsize=most)
        def remembered(*arguments: Any) -> Any:
            with torch.inference_mode(False):
                return function(*arguments)

        @constant
        def table(*arguments: Any) -> Any:
            return remembered(*arguments)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return (function if exporting() else table)(*arguments)

        return cast(Function, call)

    return decorate
