"""Profiles a corpus in shards on the workers of a Dask cluster, and merges what they send back.

python profile_with_dask.py parent.gguf -c corpus -o my.profile.gguf --workers 2
"""

from __future__ import annotations

from pathlib import Path

import click
from distributed import Client, LocalCluster, as_completed

import coe_native as coe


def profile_shard(model: str, corpora: list[str], shard: coe.Shard, threads: int) -> coe.RoutingProfile:
    """Runs on a worker, which must see the same files."""
    with coe.Model(model, n_sequences=16, n_threads=threads) as loaded:
        return coe.profile_corpora(loaded, [coe.read_corpus(path) for path in corpora], shard=shard)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, resolve_path=True))
@click.option(
    "-c", "--corpus", "corpora", multiple=True, required=True, type=click.Path(exists=True, resolve_path=True)
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--workers", default=2, show_default=True, help="Workers to start on this machine.")
@click.option("--threads", default=1, show_default=True, help="Threads of each worker.")
@click.option("--scheduler", help="Address of a running cluster to use instead.")
def main(
    model: str, corpora: tuple[str, ...], output: Path, workers: int, threads: int, scheduler: str | None
) -> None:
    if output.exists():
        raise click.UsageError(f"{output} exists; choose another name")
    # No limit of Dask's own: to it, a mapped model is memory that every worker takes for itself.
    cluster = scheduler or LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None
    )
    with Client(cluster) as client:
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        if count == 0:
            raise click.ClickException(f"{scheduler}: has no workers")
        shards = [coe.Shard(index, count) for index in range(1, count + 1)]
        running = [
            client.submit(profile_shard, model, list(corpora), shard, threads, pure=False) for shard in shards
        ]
        parts = []
        for _, part in as_completed(running, with_results=True):
            parts.append(part)
            click.echo(f"{len(parts)} of {count} shards, {part.n_tokens} tokens", err=True)
    coe.merge(parts).save(output)
    if not scheduler:
        cluster.close()


if __name__ == "__main__":
    main()
