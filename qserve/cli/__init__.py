"""The `qserve` command: one module for each subcommand.

It may import every room of qserve; the workers' and gateway's commands come in as entry points.
Open first: main.py.
"""
