"""The schema's history; Alembic applies it (`models.database.migrate`)."""
