"""Many small models in one deployment."""

import qserve as serve
from qserve import get_multiplexed_model_id, multiplexed


class Greeter:
    def __init__(self, language: str):
        self.word = {"en": "Hello", "de": "Hallo"}[language]


@serve.deployment
class Greetings:
    @multiplexed(max_num_models_per_replica=2)
    async def load(self, language: str) -> Greeter:
        return Greeter(language)

    async def __call__(self, name: str) -> str:
        model = await self.load(get_multiplexed_model_id())
        return f"{model.word} {name}"


app = Greetings.bind()


def main():
    handle = serve.run(app).options(use_new_handle_api=True)
    return [handle.options(multiplexed_model_id=one).remote("Ann").result() for one in ("en", "de")]

# main() returns ['Hello Ann', 'Hallo Ann']
