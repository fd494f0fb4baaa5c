"""`diastole admin`: look at a coordinator and steer it."""

from diastole.cli import config, support
from diastole.cli.admin import access, audit, checkpoints, devices, health, login, logs, profiles, rounds, runs, schema
from diastole.cli.admin.verb import group
from diastole.cli.doctor.app import doctor

app = group("Look at a running coordinator and steer it.")
for name, noun in {
    "runs": runs.app,
    "devices": devices.app,
    "rounds": rounds.app,
    "checkpoints": checkpoints.app,
    "operators": access.operators,
    "profiles": profiles.app,
}.items():
    app.add_typer(noun, name=name)
app.command()(doctor)
app.command("support-bundle")(support.support)
app.add_typer(config.app, name="config")
for each in (access.app, login.app, audit.app, logs.app, health.app, schema.app):
    app.add_typer(each)
