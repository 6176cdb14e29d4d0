"""Alembic's scripts: how the schema came to be what it is."""
