"""What all benchmarks share: processes, load, percentiles, the machine's name, tables, plots, and their options."""
