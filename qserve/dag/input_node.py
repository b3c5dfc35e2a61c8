"""Import path of the input node in programs written for Ray."""

from qserve.graph.nodes import InputAttributeNode as InputAttributeNode
from qserve.graph.nodes import InputNode as InputNode
