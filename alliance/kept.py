"""Small tensors that depend on few plain values: made once, but anew inside a graph that is compiled or exported."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def kept(most: int) -> Callable[[Function], Function]:
    """Remember what a function of hashable values gave, for the `most` values that were used last.

    Inside a graph it is called each time: sizes are symbols there, and what is made belongs to that graph alone.
    """

    def decorate(function: Function) -> Function:
        @functools.lru_cache(maxsize=most)
        def remembered(*arguments: Any) -> Any:
            with torch.inference_mode(False):
                return function(*arguments)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return (function if torch.compiler.is_compiling() else remembered)(*arguments)

        return cast(Function, call)

    return decorate
