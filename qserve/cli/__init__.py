"""The commands of `qserve`, one module for each, and the options that several of them share.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.broker, qserve.payloads, qserve.define,
qserve.appfile, qserve.deploy, qserve.machine, qserve.stacks, qserve.drawing, qserve.overview,
qserve.porting and qserve.
Open first: run.py, then options.py.
"""
