"""Spans of OpenTelemetry for requests, sends, steps and batches: made only if it is installed and somebody asks for it.

It may import qserve.exceptions, qserve.base, qserve.graph and qserve.wire.
Open first: switch.py, which everybody asks, then spans.py, the only module that needs OpenTelemetry.
"""
