"""A deployment that a Celery application calls; nothing in it is about Celery."""

import qserve

PRICES = {"tea": 2.5, "honey": 4.0}


@qserve.deployment
class Prices:
    """Stands for a model that says what something costs."""

    def of(self, item: str, count: int) -> float:
        return count * PRICES[item]


app = Prices.bind()
