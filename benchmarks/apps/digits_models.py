"""Two models of handwritten digits, which the pipelines of all systems share, for the images of examples/tutorial."""

from __future__ import annotations

from typing import Any

from models import TRAINED_ON, bundled, pixels_of, sample
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

__all__ = ["TRAINED_ON", "pixels_of", "sample", "trained"]


def trained(kind: str) -> Any:
    """Train the model of that kind, "forest" or "linear", which is the same each time."""
    digits = bundled()
    model = RandomForestClassifier(40, random_state=0) if kind == "forest" else LogisticRegression(max_iter=1000)
    return model.fit(digits.data[:TRAINED_ON], digits.target[:TRAINED_ON])
