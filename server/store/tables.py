"""The tables of a coordinator's database."""

import sqlalchemy as sa

VERSION = 2
"""Of the tables."""

TABLES = sa.MetaData()
_NAME = sa.String(64)
VERSIONS = sa.Table("diastole_version", TABLES, sa.Column("version", sa.Integer, primary_key=True))
RUNS = sa.Table(
    "diastole_runs",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", _NAME, unique=True, nullable=False),
    sa.Column("place", _NAME, nullable=False, index=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("closed", sa.Integer, nullable=False),
)
QUEUES = sa.Table(
    "diastole_queues",
    TABLES,
    sa.Column("place", _NAME, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("run_id", _NAME, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("over", sa.Boolean, nullable=False),
)
ROUNDS = sa.Table(
    "diastole_rounds",
    TABLES,
    sa.Column("run_id", _NAME, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # NULL once the round is closed.
    sa.Column("planner", sa.Text),
    sa.Column("updates", sa.Integer),
    sa.Column("abandoned", sa.Text),
)
ASSIGNMENTS = sa.Table(
    "diastole_assignments",
    TABLES,
    sa.Column("run_id", _NAME, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("device", _NAME, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("levers", sa.Text, nullable=False),
    sa.Column("profile", sa.Text, nullable=False),
    # Empty while the device owes its update.
    sa.Column("outcome", sa.String(16), nullable=False, default=""),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("why", sa.String(16), nullable=False, default=""),
    sa.Column("sha256", sa.String(64), nullable=False, default=""),
    sa.Column("size", sa.BigInteger, nullable=False, default=0),
    sa.Column("report", sa.Text, nullable=False, default=""),
)
DEVICES = sa.Table(
    "diastole_devices",
    TABLES,
    sa.Column("place", _NAME, primary_key=True),
    sa.Column("device", _NAME, primary_key=True),
    sa.Column("profile", sa.Text, nullable=False),
    # Digest of the key by which the device may take its name over.
    sa.Column("secret", sa.String(64), nullable=False),
)
SUSPENDED = sa.Table(
    "diastole_suspended",
    TABLES,
    sa.Column("place", _NAME, primary_key=True),
    sa.Column("device", _NAME, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
)
AUDIT = sa.Table(
    "diastole_audit",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("place", _NAME, nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("call", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
)
NOTES = sa.Table(
    "diastole_notes",
    TABLES,
    sa.Column("place", _NAME, primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)
HISTORY = sa.Table(
    "diastole_history",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", _NAME, nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("closed", sa.Text, nullable=False),
    # Compressed; NULL once it is dropped.
    sa.Column("devices", sa.LargeBinary),
    sa.Column("undone", sa.Boolean, nullable=False),
)
