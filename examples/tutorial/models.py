"""Two classifiers of handwritten digits, and images to try them with. Nothing here knows qserve."""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

Numbers = NDArray[np.float64]
TRAINED_ON = 1000  # of 1,797 images: the others are for trying


class Classifier:
    """A model of that kind, "forest" or "linear", trained when it is made."""

    def __init__(self, kind: str) -> None:
        digits = bundled()
        forest, linear = RandomForestClassifier(random_state=0), LogisticRegression(max_iter=1000)
        self._model: Any = forest if kind == "forest" else linear
        self._model.fit(digits.data[:TRAINED_ON], digits.target[:TRAINED_ON])

    def probabilities(self, images: Sequence[Numbers]) -> list[Numbers]:
        """Return for each image how likely it shows a 0, a 1, and so on up to 9."""
        return list(self._model.predict_proba(np.stack(images)))


def pixels_of(png: bytes) -> Numbers:
    """Return an image of any size as the 64 shades of grey that the classifiers know; OSError if it is not an image."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel() / 255 * 16


def sample(number: int) -> tuple[bytes, int]:
    """Return one of the images as a PNG of 256 by 256 pixels, and the digit that it shows."""
    digits = bundled()
    shades = (digits.images[number] / 16 * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(shades).resize((256, 256), Image.Resampling.NEAREST).save(out, format="PNG")
    return out.getvalue(), int(digits.target[number])


@cache
def bundled() -> Any:
    """Return the images that come with scikit-learn, which has no type annotations."""
    return load_digits()
