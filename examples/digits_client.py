"""Post ten images of digits that digits.py has not been trained on, and print what it reads beside what they show."""

import json
import os
import urllib.request

from digits_models import TRAINED_ON, png_of

url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"
for number in range(TRAINED_ON, TRAINED_ON + 10):
    png, digit = png_of(number)
    with urllib.request.urlopen(urllib.request.Request(url, png, {"Content-Type": "image/png"})) as response:
        print(f"shows {digit}, read as {json.load(response)['digit']}")
