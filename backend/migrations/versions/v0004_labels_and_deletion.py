"""A place for what a reader writes beside a job, and for jobs that were deleted."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    job: list[sa.Column[Any]] = [
        sa.Column("tags", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("note", sa.String()),
        sa.Column("starred", sa.Boolean(), nullable=False, server_default="0"),
        sa.Column("deleted_at", sa.DateTime()),
    ]
    for column in job:
        op.add_column("job", column)
    op.create_index("ix_job_deleted_status", "job", ["deleted_at", "status"])
    op.create_table("gone", sa.Column("job_id", sa.Integer(), primary_key=True))
