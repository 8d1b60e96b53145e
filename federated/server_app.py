"""The ServerApp: settings from the run-config, then the rounds."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federated.rounds import federate
from federated.settings import read_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A failure is raised, so that Flower ends the run as failed; status.json of the run folder says why in one line."""
    federate(grid, read_settings(context.run_config))
