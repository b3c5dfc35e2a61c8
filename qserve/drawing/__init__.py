"""Pictures of graphs: SVG, DOT, Mermaid and JSON.

It may import the rooms below, from deploy down.
Open first: picture.py, which collects what every format shows.
"""
