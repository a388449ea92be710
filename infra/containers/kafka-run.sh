#!/bin/sh
# PID 1 of the local Kafka image: what the official image does at a start, with nothing but a shell at hand.
# Takes /mnt/shared/config/server.properties, whose log.dirs must be $KAFKA_DATA; a restart keeps the data.
set -eu

config=/mnt/shared/config/server.properties
if [ ! -f "$config" ]; then
    echo "$config is not there: copy Kafka's settings to it before the start, or mount them." >&2
    exit 2
fi
if [ ! -f "$KAFKA_DATA/meta.properties" ]; then
    # It runs for half a second: compiling well does not pay.
    java @/opt/kafka/java.args -XX:TieredStopAtLevel=1 \
        kafka.tools.StorageTool format --cluster-id "$CLUSTER_ID" --config "$config"
fi
exec java @/opt/kafka/java.args -Dlog4j2.configurationFile=file:/opt/kafka/log4j2.properties kafka.Kafka "$config"
