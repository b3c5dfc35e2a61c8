"""Send 5 to arithmetic.py or arithmetic_adapter.py; set PORT=8001 to use another port than 8000."""

import json
import os
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"

with urllib.request.urlopen(url, data=json.dumps(5).encode(), timeout=10) as response:
    print(json.load(response))
