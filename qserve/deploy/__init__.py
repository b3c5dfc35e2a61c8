"""From a compiled application to running replicas: records, code, rollouts, status, dead letters.

It may import the rooms below, from engine down.
Open first: rollout.py, then records.py.
"""
