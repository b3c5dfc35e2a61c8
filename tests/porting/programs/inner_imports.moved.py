"""Imports inside functions, and local variables with the names of modules."""


def build():
    import qserve as serve

    @serve.deployment
    class Inner:
        def __call__(self, ray):
            # a parameter, and no module
            serve = {"run": ray}
            return serve["run"] + ray.get("more", 0) if hasattr(ray, "get") else ray

    return serve, Inner.bind()


def ask(handle, value):
    import qserve

    def inner():
        return qserve.get(handle.remote(value))

    return inner()


def shadow(ray, serve=None):
    return [ray.get(serve) for serve in ray]


def main():
    serve, app = build()
    return ask(serve.run(app), 7)

# main() returns 7
