"""What a function's signature says: its parameters, which of them are columns and as what, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from .warm import Warm

_MODULES = {"pyarrow": "arrow", "numpy": "numpy", "pandas": "pandas", "polars": "polars"}
_SHORT = {"pa": "pyarrow", "np": "numpy", "pd": "pandas", "pl": "polars"}


def hints_of(function: Any) -> dict[str, Any]:
    """Annotations, resolved where that is possible."""
    import typing

    target = function.made if isinstance(function, Warm) else function
    if isinstance(target, type):
        target = target.__call__
    elif not (inspect.isfunction(target) or inspect.ismethod(target) or inspect.isbuiltin(target)):
        target = getattr(type(target), "__call__", target)
    target = inspect.unwrap(target)
    try:
        return typing.get_type_hints(target)
    except Exception:  # An annotation may name what is not there at run time; then only some are known.
        return dict(getattr(target, "__annotations__", {}))


def parameters_of(function: Any) -> dict[str, inspect.Parameter]:
    """Parameters that can be given by position, in order."""
    target = function.made if isinstance(function, Warm) else function
    if isinstance(target, type):
        found = dict(inspect.signature(target.__call__).parameters)
        found.pop(next(iter(found)), None)
    else:
        try:
            found = dict(inspect.signature(target).parameters)
        except (TypeError, ValueError):
            return {}
    return {
        name: parameter
        for name, parameter in found.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def target_of(function: Any) -> Any:
    """The plain function behind a class, a partial, a wrapper or an object with `__call__`."""
    import functools

    target = function.made if isinstance(function, Warm) else function
    target = target.__call__ if isinstance(target, type) else target
    target = target.func if isinstance(target, functools.partial) else inspect.unwrap(target)
    if not (inspect.isfunction(target) or inspect.ismethod(target)) and not inspect.isbuiltin(target):
        target = getattr(type(target), "__call__", target)
    return target


def flavors_of(hints: dict[str, Any], parameters: Iterable[str]) -> dict[str, str]:
    """Parameters that are columns, and as what, by their annotations."""
    import typing

    flavors = {}
    for name in parameters:
        hint = hints.get(name)
        module = getattr(hint, "__module__", "") if isinstance(hint, type) or typing.get_origin(hint) else ""
        if isinstance(hint, str):
            module = _SHORT.get(hint.partition(".")[0], hint)
        flavor = _MODULES.get(module.partition(".")[0])
        if flavor is not None and not (flavor == "numpy" and isinstance(hint, type) and hint.__name__ != "ndarray"):
            flavors[name] = flavor
    return flavors


def kind_of(function: Any, batches: bool) -> str:
    """How a function is called; `batches` says that one that is called plainly is given columns."""
    target = target_of(function)
    if inspect.isasyncgenfunction(target):
        return "async_generator"
    if inspect.iscoroutinefunction(target):
        return "async"
    if inspect.isgeneratorfunction(target):
        return "generator"
    return "batch" if batches else "row"


def asked(function: Any, arguments: list[str], given: str | None, fan_out: bool, what: str) -> tuple[str, list[str]]:
    """What a workflow's text leaves to the function: how it is called, and as what it takes each argument.

    Raises TypeError where the text and the function do not fit together.
    """
    parameters = parameters_of(function)
    ordered = [name for name, of in parameters.items() if of.kind is not of.KEYWORD_ONLY]
    try:
        target = function.made.__call__ if isinstance(function, Warm) else function
        bare = [*inspect.signature(target).parameters.values()]
    except (TypeError, ValueError):
        bare = []
    open_ended = not bare or any(of.kind is of.VAR_POSITIONAL for of in bare)
    needed = [name for name, of in parameters.items() if of.default is of.empty]
    shown = f"`reads` gives it {len(arguments)} ({', '.join(arguments)})"
    if len(arguments) > len(ordered) and not open_ended:
        raise TypeError(f"`{what}` takes {len(ordered)} arguments, and {shown}")
    if len(needed) > len(arguments):
        raise TypeError(f"`{what}` needs {len(needed)} arguments ({', '.join(needed)}), and {shown}")
    named = flavors_of(hints_of(function), ordered)
    kind = kind_of(function, bool(named) if given is None else given != "values")
    if given in (None, "values"):
        flavors = [named.get(name, "arrow") for name in ordered[: len(arguments)]]
        flavors += ["arrow"] * (len(arguments) - len(flavors))
    else:
        flavors = [given] * len(arguments)
    if kind != "batch" and given not in (None, "values"):
        raise TypeError(f"`{what}` is called for each item, so it is given values, not columns (`given: {given}`)")
    if kind != "batch" and named and given is None:
        raise TypeError(f"`{what}` is called for each item, so it is given values, not {next(iter(named.values()))} columns")
    if kind.endswith("generator") and not fan_out:
        raise TypeError(f"`{what}` is a generator, which gives any number of rows for an item; say `fan_out: true`")
    if fan_out and not kind.endswith("generator"):
        raise TypeError(f"`{what}` gives one row for each item; `fan_out: true` is for generators")
    return kind, flavors
