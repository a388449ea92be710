#!/bin/sh
# PID 1 of the local PostgreSQL image: what the official image does at a start, with nothing but a shell at hand.
# Takes POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB and POSTGRES_INITDB_ARGS; the arguments are the server's command.
set -eu
umask 077

initialised=/var/lib/postgresql/initialised # in the volume, as the data
if [ ! -f "$initialised" ]; then
    if [ -e "$PGDATA" ]; then
        echo "$PGDATA is there, but its making was interrupted: remove the container with its volume, and start anew." >&2
        exit 2
    fi
    printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password
    # Unquoted: the variable holds several options.
    # shellcheck disable=SC2086
    initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --pgdata="$PGDATA" ${POSTGRES_INITDB_ARGS:-}
    : >/tmp/password # there is no rm in here
    printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    # The single-user server needs no connection, and so none of the client programs.
    printf 'CREATE DATABASE "%s"\n' "$POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
    : >"$initialised"
fi
exec "$@" -c "listen_addresses=*"
