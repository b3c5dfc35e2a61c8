"""Send eight requests at the same time: four words, each of them to two models."""

from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen


def ask(question: tuple[str, str]) -> str:
    """Have a word translated."""
    language, word = question
    url = f"http://127.0.0.1:8000/?word={word}"
    with urlopen(Request(url, headers={"serve_multiplexed_model_id": language}), timeout=30) as response:
        return f"{language}: {word} is {response.read().decode()}"


questions = [(language, word) for language in ("spanish", "french") for word in ("bread", "milk", "tea", "honey")]
with ThreadPoolExecutor(len(questions)) as clients:
    print(*clients.map(ask, questions), sep="\n")
