"""A place for pauses, for retries by themselves, and for what else is known of a failure."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    job: list[sa.Column[Any]] = [
        sa.Column("paused_at", sa.DateTime()),
        sa.Column("resumed_at", sa.DateTime()),
        sa.Column("paused_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("continues_id", sa.Integer()),
        sa.Column("max_retries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("retry_number", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("starts_after", sa.DateTime()),
        sa.Column("notice", sa.String()),
    ]
    for column in job:
        op.add_column("job", column)
    op.create_index("ix_job_parent_id", "job", ["parent_id"])
    op.add_column("failure", sa.Column("detail", sa.JSON(), nullable=False, server_default="{}"))
