"""Ask hello.py for a greeting; set PORT=8001 to use another port than 8000."""

import json
import os
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"
body = {"language": "spanish", "name": "Dora"}

with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=10) as response:
    print(response.read().decode())
