"""Pictures of graphs: SVG, DOT, Mermaid and JSON.

It may import qserve.graph and qserve.define.
Open first: picture.py, which collects what every format shows.
"""
