import pytest
import qserve
from starlette.exceptions import HTTPException

from digits import app
from models import TRAINED_ON, sample

reader = qserve.run(app, local=True)


def test_it_reads_digits_that_it_has_not_seen() -> None:
    images = [sample(number) for number in range(TRAINED_ON, TRAINED_ON + 50)]

    readings = qserve.get([reader.predict.remote(png) for png, _ in images])

    right = [reading["digit"] == digit for reading, (_, digit) in zip(readings, images, strict=True)]
    assert sum(right) >= 45


def test_it_refuses_what_is_not_an_image() -> None:
    with pytest.raises(HTTPException) as refused:
        qserve.get(reader.predict.remote(b"not an image"))

    assert refused.value.status_code == 422
