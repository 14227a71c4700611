"""The profile as a table, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec

from gradwell.records.numbers import to_json
from gradwell.records.verdict import Diagnosis, ProfileRow


def profile_csv(diagnosis: Diagnosis) -> str:
    """The depth profile as CSV: a header, then one line for each site and step, the columns of `ProfileRow`.

    Empty cells were not measured; non-finite numbers are nan, inf and -inf (`log10_gain`: -inf is an exact zero).
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(ProfileRow.__struct_fields__)
    writer.writerows([_cell(value) for value in msgspec.structs.astuple(row)] for row in diagnosis.profile)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else to_json(value)
