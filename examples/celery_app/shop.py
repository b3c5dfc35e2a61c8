"""A stock Celery application. It imports nothing of qserve, and knows the deployment by its name alone."""

from celery import Celery

BROKER = "redis://127.0.0.1:6379/0"
app = Celery("shop", broker=BROKER, backend=BROKER)


@app.task
def receipt(price: float, item: str) -> str:
    """Write a receipt; this runs in the worker of this application."""
    return f"{item}: {price:.2f}"


if __name__ == "__main__":
    price = app.signature("qserve.default.Prices.of", ["tea", 3], queue="qserve")  # this runs in a replica
    print(price.delay().get(timeout=60))

    priced_receipt = price | app.signature("shop.receipt", ["tea"], queue="celery")
    print(priced_receipt.delay().get(timeout=60))

    try:
        app.signature("qserve.default.Prices.of", ["gold", 1], queue="qserve").delay().get(timeout=60)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
