"""The `qserve` command: one module for each subcommand.

It may import qserve, and qserve_workers and qserve_gateway for the commands that these add as entry points.
Open first: main.py.
"""
