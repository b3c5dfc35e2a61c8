"""The worker image: Celery replicas, and the supervisor that keeps them alive."""
