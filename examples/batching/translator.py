"""Models of several languages in one replica, each of which translates the words of several requests at once."""

from starlette.requests import Request

import qserve

Model = dict[str, str]
MODELS: dict[str, Model] = {  # in reality: files, of which only some fit into memory
    "spanish": {"bread": "pan", "milk": "leche", "tea": "té", "honey": "miel"},
    "french": {"bread": "pain", "milk": "lait", "tea": "thé", "honey": "miel"},
}


@qserve.deployment
class Translator:
    """Translates a word; the header `serve_multiplexed_model_id` names the model."""

    @qserve.multiplexed(max_num_models_per_replica=2)
    async def load(self, language: str) -> Model:
        """Load a model; it stays until another one needs its place."""
        print(f"loading {language}")
        return MODELS[language]

    @qserve.batch(max_batch_size=4, batch_wait_timeout_s=2)
    async def translate(self, words: list[str]) -> list[str]:
        """Translate the words of up to four requests for one model; the first waits two seconds for others at most."""
        model = await self.load(qserve.get_multiplexed_model_id())
        return [f"{model[word]} (one of {len(words)} in a batch)" for word in words]

    async def __call__(self, request: Request) -> str:
        return await self.translate(request.query_params["word"])


app = Translator.bind()
