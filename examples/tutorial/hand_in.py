from urllib.request import Request, urlopen

from models import TRAINED_ON, sample

for number in range(TRAINED_ON, TRAINED_ON + 100):
    png, _ = sample(number)
    headers = {"Prefer": "respond-async", "Idempotency-Key": f"scan-{number}"}
    with urlopen(Request("http://127.0.0.1:8000/", png, headers)) as response:
        print(number, response.headers["Location"])
