"""The settings of the watch's Faust app: every one that decides what Faust does to the cluster or to this process."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from faust.auth import SASLCredentials, SSLCredentials
from faust.types.auth import CredentialsT
from yarl import URL

from sagalog.engine.watch import limits
from sagalog.engine.watch.compat import WholeGroupAssignor
from sagalog.topics.kafka import KafkaSecurity


def app_settings(bootstrap: str, group: str, data_dir: Path, security: KafkaSecurity) -> dict[str, Any]:
    """Arguments of `faust.App`."""
    return {
        "broker": [URL(f"kafka://{address}") for address in bootstrap.split(",")],
        "broker_credentials": credentials(security),
        "broker_client_id": group,
        # Settings come from here alone: Faust would also read variables as common as APP_DEBUG and NODE_HOSTNAME.
        "env": {},
        "datadir": data_dir,
        "store": "memory://",
        "autodiscover": False,
        # Nothing on the cluster but the group.
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "reply_create_topic": False,
        # No server, no port.
        "web_enabled": False,
        # One member has it all; Faust uses this assignor only while standbys are asked for, though there are no tables.
        "PartitionAssignor": WholeGroupAssignor,
        "table_standby_replicas": 1,
        "consumer_auto_offset_reset": "latest",
        "key_serializer": "raw",
        "value_serializer": "raw",
        # What is still queued at a stop is read again by the next: stopping must not wait for it.
        "stream_wait_empty": False,
        "stream_buffer_maxsize": limits.STREAM_RECORDS_MAX,
        "broker_session_timeout": limits.SESSION_TIMEOUT_S,
        "broker_heartbeat_interval": limits.HEARTBEAT_S,
        "broker_rebalance_timeout": limits.REBALANCE_TIMEOUT_S,
        "broker_request_timeout": limits.REQUEST_TIMEOUT_S,
        "broker_commit_interval": limits.COMMIT_INTERVAL_S,
        "producer_request_timeout": limits.REQUEST_TIMEOUT_S,
    }


def credentials(security: KafkaSecurity) -> CredentialsT | None:
    """The same security as the rest of the project uses, in Faust's words; None is plain text."""
    context = ssl.create_default_context(cafile=security.cafile) if "SSL" in security.protocol.split("_") else None
    match security.protocol:
        case "PLAINTEXT":
            return None
        case "SSL":
            return SSLCredentials(context)
        case "SASL_PLAINTEXT" | "SASL_SSL":
            return SASLCredentials(
                mechanism=security.mechanism,
                username=security.username,
                password=security.password,
                ssl_context=context,
            )
        case other:
            raise ValueError(f"security protocol: {other!r} is not one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL")
