"""`diastole admin`: look at a coordinator and steer it."""

from diastole.cli import config
from diastole.cli.admin import access, audit, checkpoints, devices, health, login, profiles, rounds, runs, schema
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
app.add_typer(config.app, name="config")
for each in (access.app, login.app, audit.app, health.app, schema.app):
    app.add_typer(each)
