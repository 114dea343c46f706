"""The tables of the first release, which kept no note of its revision."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("command", sa.JSON(), nullable=False),
        sa.Column("env", sa.JSON(), nullable=False),
        sa.Column("timeout_seconds", sa.Float(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("requested", sa.String(32)),
        sa.Column("created_at", sa.DateTime()),
        sa.Column("queued_at", sa.DateTime()),
        sa.Column("started_at", sa.DateTime()),
        sa.Column("finished_at", sa.DateTime()),
        sa.Column("parent_id", sa.Integer(), sa.ForeignKey("job.id")),
        sa.Column("pid", sa.Integer()),
        sa.Column("process_start", sa.String()),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("error", sa.String()),
        sa.Column("failure_kind", sa.String(32)),
        sa.Column("checkpoint", sa.String()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_job_recipe", "job", ["recipe"])
    op.create_index("ix_job_status_queued", "job", ["status", "queued_at"])

    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), sa.ForeignKey("job.id"), nullable=False),
        sa.Column("at", sa.DateTime()),
        sa.Column("from_status", sa.String(32)),
        sa.Column("to_status", sa.String(32)),
        sa.Column("message", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_event_job_id", "event", ["job_id"])

    op.create_table(
        "failure",
        sa.Column("job_id", sa.Integer(), sa.ForeignKey("job.id"), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("seconds_without_progress", sa.Float()),
        sa.Column("last_step", sa.Integer()),
        sa.Column("log_tail", sa.String(), nullable=False),
        sa.Column("stacks", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime()),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("ix_failure_kind", "failure", ["kind"])
    op.create_index("ix_failure_at", "failure", ["at"])

    op.create_table(
        "cleanup",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), sa.ForeignKey("job.id")),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("baseline_bytes", sa.Integer()),
        sa.Column("before_bytes", sa.Integer()),
        sa.Column("peak_bytes", sa.Integer()),
        sa.Column("after_bytes", sa.Integer()),
        sa.Column("settle_seconds", sa.Float()),
        sa.Column("released", sa.Boolean()),
        sa.Column("holders", sa.JSON(), nullable=False),
        sa.Column("cache_freed_bytes", sa.Integer()),
        sa.Column("created_at", sa.DateTime()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_cleanup_job_id", "cleanup", ["job_id"])
