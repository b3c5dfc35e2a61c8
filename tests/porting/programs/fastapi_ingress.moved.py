"""A FastAPI application as ingress, with a model behind it."""

from fastapi import FastAPI
from pydantic import BaseModel
import qserve as serve
from qserve.handle import DeploymentHandle

api = FastAPI(title="prices")


class Order(BaseModel):
    amount: int
    article: str


@serve.deployment(name="prices")
class Prices:
    def of(self, article: str) -> float:
        return {"pen": 1.5, "book": 12.0}.get(article, 0.0)


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
@serve.ingress(api)
class Shop:
    def __init__(self, prices: DeploymentHandle) -> None:
        self.prices = prices

    @api.post("/order")
    async def order(self, order: Order) -> float:
        return await self.total(order.article, order.amount)

    async def total(self, article: str, amount: int) -> float:
        return amount * await self.prices.of.remote(article)


shop = Shop.bind(Prices.bind())


def main():
    handle = serve.run(shop, route_prefix="/shop", name="shop")
    return handle.options(method_name="total", use_new_handle_api=True).remote("book", 2).result()

# main() returns 24.0
