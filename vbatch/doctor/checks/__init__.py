"""The checks, one file per group of findings: the entries of the findings, then the functions that look."""
