"""Tables in and out, row by row: csv, tsv, JSON Lines, Parquet and lines of text; no store."""
