"""Connecting to a cluster."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Sequence
from types import TracebackType

from nokv.client.arguments import checked
from nokv.client.core import ClientConfig, Core, FaultPoint, own_caller
from nokv.client.fs import AsyncClient
from nokv.client.options import Options
from nokv.client.routing import Router, parse_cluster
from nokv.errors import ConfigError
from nokv.objects.port import ObjectStore
from nokv.types.values import Caller
from nokv.wire.tls import TlsFiles, connect_context


class Connecting:
    """A client that is being connected: enter it with `async with`, or await it and close it."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        config: ClientConfig,
        caller: Caller,
        cluster_id: str,
        tls: TlsFiles | None,
        token: str,
        store: ObjectStore | None,
        fault_point: FaultPoint | None,
        rng: random.Random | None,
    ) -> None:
        self._addresses = addresses
        self._config = config
        self._caller = caller
        self._cluster_id = cluster_id
        self._tls = tls
        self._token = token
        self._store = store
        self._fault_point = fault_point
        self._rng = rng
        self._client: AsyncClient | None = None

    async def _connect(self) -> AsyncClient:
        router = Router(
            self._addresses,
            cluster=self._cluster_id,
            agent=self._config.agent,
            rng=self._rng,
            tls=connect_context(self._tls),
            token=self._token.encode(),
        )
        core = Core(
            router,
            self._config,
            self._caller,
            store=self._store,
            fault_point=self._fault_point,
            rng=self._rng,
        )
        try:
            await core.start()
        except BaseException:
            await core.close()
            raise
        return AsyncClient(core, Options(self._config.deadline_s))

    def __await__(self) -> Generator[object, None, AsyncClient]:
        """Connect; the caller closes the client."""
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncClient:
        """Connect for the length of a block."""
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client."""
        assert self._client is not None
        await self._client.close()


@checked
def connect(
    cluster: str | Sequence[str] | None = None,
    *,
    config: ClientConfig | None = None,
    caller: Caller | None = None,
    cluster_id: str = "",
    tls: TlsFiles | None = None,
    token: str = "",
    store: ObjectStore | None = None,
    fault_point: FaultPoint | None = None,
    rng: random.Random | None = None,
) -> Connecting:
    """Connect to a cluster: `async with nokv.connect("127.0.0.1:7101,...") as fs:`.

    Args:
        cluster: addresses `host:port` of some of its nodes, separated by commas, or as a sequence;
            None takes them from NOKV_CLUSTER.
        config: deadlines and bounds.
        caller: on whose behalf everything runs; None for this process's user and groups.
        cluster_id: refuse nodes of any other cluster.
        tls: the client's certificate, its key and whom to trust; None takes them from NOKV_TLS_CA,
            NOKV_TLS_CERT and NOKV_TLS_KEY, and speaks no TLS where these are not set.
        token: the cluster's, of an operator's tool that makes or ends backups; else empty.
        store: the object store; None makes it from what the volume says, with the credentials of
            this process.
        fault_point: called at named points (`nokv.client.core.FaultPoint`), for tests.
        rng: for the jitter of retries.

    Raises:
        ConfigError: at once, for addresses that are none; when it is entered, for TLS files.
        InvalidArgument: at once, for another argument that is none.
        Unavailable: when it is entered or awaited, if no node answers in time.
    """
    addresses = addresses_of(cluster)
    config = ClientConfig() if config is None else config
    who = caller or own_caller()
    return Connecting(addresses, config, who, cluster_id, tls, token, store, fault_point, rng)


def addresses_of(cluster: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the node addresses that a caller or NOKV_CLUSTER names.

    Raises:
        ConfigError: there are none, or one is no address.
    """
    if cluster is None:
        cluster = os.environ.get("NOKV_CLUSTER", "")
        if not cluster:
            message = "no cluster is named"
            raise ConfigError(message, hint="pass its addresses, or set NOKV_CLUSTER")
    return parse_cluster(cluster if isinstance(cluster, str) else ",".join(cluster))
