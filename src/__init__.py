"""A small service that owns user accounts. `uvicorn src.api.app:app` runs it."""
