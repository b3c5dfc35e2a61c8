import qserve as serve
from qserve.context import _serve_request_context as current


@serve.deployment(health_check_period_s=5, graceful_shutdown_timeout_s=3)
class Checked:
    def __init__(self) -> None:
        self.is_well = True

    def check_health(self) -> None:
        if not self.is_well:
            raise RuntimeError("ill")

    def __call__(self, _: object) -> str:
        replica = serve.get_replica_context()
        return f"{replica.app_name}/{replica.deployment} {bool(current.get().request_id)}"


def main() -> str:
    return serve.run(Checked.bind()).remote(None).result()

# main() returns 'default/Checked True'
