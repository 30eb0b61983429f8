"""`ddpo rewards serve`: offer a reward to trainers in other processes and on other machines."""

from typing import Annotated

import typer

from ddpo_cli import completion
from ddpo_cli.ui.console import foreign_output, say
from ddpo_cli.ui.progress import loading

EPILOG = """
[bold]Examples[/bold]

  ddpo rewards serve vqascore

  ddpo train --reward http://127.0.0.1:8085     [dim]on the same machine[/dim]

  DDPO_SERVE_TOKEN=secret ddpo rewards serve vqascore --host 0.0.0.0

  DDPO_ENDPOINT_TOKEN=secret DDPO_ENDPOINT_HOST=gpu:8085 \\
    ddpo train --reward "http://gpu:8085?concurrency=8"

Images go as lossless PNG in JSON, to POST /score; GET /health says what is
served, GET /metrics counts in Prometheus' format. Requests of all clients are
scored together; who comes when too many wait is asked to come again. Over a
network that others can listen to, put a proxy with TLS before it.
"""


def serve(
    reward: Annotated[
        str, typer.Argument(metavar="REF", help="A reward, as for ddpo score.", autocompletion=completion.rewards)
    ],
    *,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine only with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="The port.")] = 8085,
    max_body: Annotated[int, typer.Option(metavar="MB", min=1, help="Most megabytes of a request.")] = 64,
    max_waiting: Annotated[int, typer.Option(metavar="N", min=1, help="Images that may wait to be scored.")] = 512,
) -> None:
    """Serve a reward over HTTP until Ctrl-C; what others score with is http://ADDRESS:PORT as a reference."""
    from ddpo_cli.setup import build_reward
    from ddpo_rewards import serve as server

    with foreign_output():
        server.token_for(host)  # before anything is loaded
        with loading(f"loading {reward}"):
            built = build_reward([reward])
        say(f"Serving {reward}: use it as http://{host}:{port}. Ctrl-C ends it.")
        server.serve(built, host=host, port=port, max_bytes=max_body * 1_000_000, max_waiting=max_waiting)
