"""Run by Alembic: applies migrations in the transaction that `backend.schema` has begun.

A new one is begun with the line below; then write its `upgrade`, and set `backend.schema.HEAD`.

    python -c "from alembic import command; from backend import schema; \
        command.revision(schema.alembic_config(), 'what it changes', rev_id='0003')"
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
