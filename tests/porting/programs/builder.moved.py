"""An application builder with typed arguments, for a config file."""

from pydantic import BaseModel
import qserve as serve
from qserve import Application


class Arguments(BaseModel):
    greeting: str = "Hello"
    replicas: int = 1


@serve.deployment(user_config={"mark": "!"})
class Greeter:
    def __init__(self, greeting: str):
        self.greeting = greeting
        self.mark = ""

    def reconfigure(self, config: dict) -> None:
        self.mark = config["mark"]

    def __call__(self, name: str) -> str:
        return f"{self.greeting} {name}{self.mark}"


def build_app(args: Arguments) -> Application:
    return Greeter.options(num_replicas=args.replicas).bind(args.greeting)


def main():
    handle = serve.run(build_app(Arguments(greeting="Hi")))
    return handle.remote("Eve").result()

# main() returns 'Hi Eve!'
