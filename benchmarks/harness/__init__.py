"""Shared by all benchmarks: processes, load, percentiles, the machine's name, tables, plots, and their options."""
