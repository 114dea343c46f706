"""A place for what was measured of a job's memory, and for the verdict that it is ended for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("job", sa.Column("memory", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("job", sa.Column("ending", sa.JSON()))
