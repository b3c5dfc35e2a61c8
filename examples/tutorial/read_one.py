from pathlib import Path

import qserve

reader = qserve.get_app_handle("default")
call = reader.predict.remote(Path("digit.png").read_bytes())
print(call.result(timeout_s=30))
