"""What ``kills.py`` is made of: the contenders, the load, the faults, the figures."""
