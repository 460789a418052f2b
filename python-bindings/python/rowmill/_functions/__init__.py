"""What stands between a batch and a user's function: rows in, the function, rows out.

Used in the process of the query and in worker processes alike, so it needs pyarrow and nothing of Rowmill. An adapter
is called with a batch that holds the columns that the function reads, and answers with a batch of the declared columns.
Where not every row gives exactly one row, a first column `__row` says which row of the input each one belongs to.

Its modules import each other by relative names alone, for `_worker.py` loads this package without the one around it.
"""

from __future__ import annotations

from .batches import batches_adapter
from .column_types import accepts, fields_of, schema_of, type_of
from .failures import raised, trimmed
from .logs import logging_of, start_logging
from .rows import Policy, RowStep
from .signatures import asked, flavors_of, hints_of, kind_of, parameters_of
from .warm import Warm

__all__ = [
    "Policy",
    "RowStep",
    "Warm",
    "accepts",
    "asked",
    "batches_adapter",
    "fields_of",
    "flavors_of",
    "hints_of",
    "kind_of",
    "logging_of",
    "parameters_of",
    "raised",
    "schema_of",
    "start_logging",
    "trimmed",
    "type_of",
]
