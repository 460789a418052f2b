"""What the options of a step may say: sizes, times, rates, bounds and caches, read into numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

OPTIONS = {
    "batch", "effects", "on_error", "default", "max_errors", "retries", "in_flight", "name", "workers", "memory",
    "timeout", "cache", "rate_limit", "resources",
}  # fmt: skip
_CACHE = {"tier", "key", "ttl", "max_size", "connection"}


#: Bytes of a value, by the beginning of its type.
_WIDTHS = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "date": 4,
    "int64": 8, "uint64": 8, "float64": 8, "timestamp": 8, "time": 8,
}  # fmt: skip


def column_rows(types: Iterable[str]) -> int | None:
    """Rows that a function over columns is given where nothing is said: so many that calling it costs little beside its
    work, where rows are of one size and so many of them stay small; None where that is not known."""
    widths = [_WIDTHS.get(kind.partition("(")[0]) for kind in types]
    if not widths or None in widths:
        return None
    return max(1 << 14, min(1 << 18, (4 << 20) // sum(width or 0 for width in widths)))


def size_bytes(size: str | int | None) -> int | None:
    """`"2GB"` in bytes."""
    if size is None or isinstance(size, int):
        return size
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    text = size.strip().lower()
    digits = text.rstrip("kmgib ")
    unit = text[len(digits):].strip()
    try:
        return int(float(digits) * units[unit])
    except (ValueError, KeyError):
        raise ValueError(f"{size!r} is no size; write 500MB or 2GB") from None


def time_s(time: str | float) -> float:
    """`"250ms"`, `"5s"`, `"2m"`, `"1h"` or `"7d"` in seconds; a number is seconds."""
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    if isinstance(time, str):
        digits = time.strip().rstrip("abcdefghijklmnopqrstuvwxyz ")
        try:
            seconds = float(digits) * units[time.strip()[len(digits):].strip()]
        except (ValueError, KeyError):
            raise ValueError(f"{time!r} is no time; write 250ms, 5s, 2m, 1h or 7d") from None
    else:
        seconds = float(getattr(time, "total_seconds", lambda: time)())
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{time!r} is no time; it is more than nothing")
    return seconds


def rate_per_s(said: str | float | None) -> float | None:
    """`"100/s"` or `"3000/min"` as calls in a second; a number is just that."""
    if said is None:
        return None
    units = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
    try:
        count, _, unit = said.partition("/") if isinstance(said, str) else (said, "", "s")
        rate = float(count) / units[unit.strip()]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{said!r} is no rate; write 100, \"100/s\" or \"3000/min\"") from None
    if not 0 < rate < float("inf"):
        raise ValueError(f"{said!r} is no rate; it is a number above 0")
    return rate


def whole_rate(rate: float) -> tuple[int, int]:
    """A rate as whole calls in a time of so many seconds, as the text of a workflow says it."""
    for seconds in (1, 60, 3600):
        calls = rate * seconds
        if calls >= 1 and abs(calls - round(calls)) < 1e-9 * calls:
            return round(calls), seconds
    if rate * 3600 < 1:
        raise ValueError("rate_limit is less than one call in an hour, which the text of a workflow cannot say")
    return int(rate * 3600), 3600


def max_errors(said: int | float | str | None) -> tuple[float, bool] | None:
    """`100` rows, or a share such as `"1%"` or `0.01`: the number, and whether it is a share."""
    if said is None:
        return None
    try:
        if isinstance(said, str):
            share = float(said.strip().removesuffix("%")) / 100 if said.strip().endswith("%") else None
        else:
            share = said if isinstance(said, float) else None
        number = float(said) if share is None else share
    except (ValueError, TypeError):
        number, share = -1.0, None
    if number < 0 or (share is not None and share > 1) or isinstance(said, bool):
        raise ValueError(f"max_errors={said!r} is neither a number of rows nor a share such as \"1%\"")
    return (number, share is not None)


def cache_policy(said: Any, name: str, effects: str, parameters: Collection[str]) -> dict[str, Any] | None:
    """What `cache=` says of the step `name`; None where it keeps no answers."""
    if said is None or said is False:
        return None
    if isinstance(said, str):
        said = {"tier": said}
    elif said is True:
        said = {}
    if not isinstance(said, dict):
        raise TypeError('cache is True, "memory", "disk", or a mapping such as {"tier": "disk", "ttl": "1h"}')
    unknown = set(said) - _CACHE
    if unknown:
        raise TypeError(f"a cache has no `{sorted(unknown)[0]}`; it has {', '.join(sorted(_CACHE))}")
    if effects == "once":
        raise ValueError(
            f"`{name}` has effects \"once\", so its answers cannot be kept instead; "
            "say effects=\"idempotent\" (or \"pure\") if leaving calls out does no harm"
        )
    key = said.get("key")
    key = [key] if isinstance(key, str) else None if key is None else list(key)
    for column in key or ():
        if column not in parameters:
            raise ValueError(f"`{name}` has no parameter `{column}` to cache by; it has {', '.join(parameters)}")
    ttl = said.get("ttl")
    return {
        "tier": said.get("tier", "memory"), "key": key, "ttl_s": None if ttl is None else time_s(ttl),
        "max_size": size_bytes(said.get("max_size")), "connection": said.get("connection"),
    }  # fmt: skip
