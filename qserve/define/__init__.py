"""What users declare: deployments, options, batches, multiplexed models, and the graph compiled from them.

It may import the rooms below, from http down.
Open first: deployments.py, then compile.py.
"""
