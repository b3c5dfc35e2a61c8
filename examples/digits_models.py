"""Two models of handwritten digits, trained in a second on images that scikit-learn ships; digits.py serves them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

TRAINED_ON = 1500
"""How many of the 1,797 images the models have seen; the others are for trying them."""


def trained(kind: str) -> Any:
    """Train the model of that kind, "forest" or "linear", which is the same each time."""
    digits: Any = load_digits()
    model = RandomForestClassifier(40, random_state=0) if kind == "forest" else LogisticRegression(max_iter=1000)
    return model.fit(digits.data[:TRAINED_ON], digits.target[:TRAINED_ON])


def pixels_of(png: bytes) -> np.ndarray:
    """Return an image as the 64 shades of grey that the models know, whatever its size and colours."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel() / 255 * 16


def png_of(number: int) -> tuple[bytes, int]:
    """Return one of the images as a PNG of 256 x 256, and the digit that it shows."""
    digits: Any = load_digits()
    image = Image.fromarray((digits.images[number] / 16 * 255).astype(np.uint8))
    out = io.BytesIO()
    image.resize((256, 256), Image.Resampling.NEAREST).save(out, format="PNG")
    return out.getvalue(), int(digits.target[number])
