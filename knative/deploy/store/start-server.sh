# Starts this pod's server as the sentinels say: as the primary, or as a replica of it.
. "${0%/*}/servers.sh"
me=$(own_name)
primary=$(named_primary || true)

if [ "$primary" = "$me" ] && [ ! -d "$DATA/appendonlydir" ]; then
  # A primary that lost its disk would empty its replicas: one of them takes over first.
  while [ "$primary" = "$me" ] && [ "$(known_replicas || true)" -gt 0 ]; do
    echo "torpor: the disk is empty and the sentinels name this server the primary: waiting for a failover"
    sleep 1
    primary=$(named_primary || true)
  done
fi

if [ -z "$primary" ]; then
  # Most sentinels do not answer: as before the restart. At the very first start the first server is the primary.
  if [ -f "$DATA/server.conf" ]; then
    primary=$(awk '$1 == "replicaof" || $1 == "primaryof" {print $2}' "$DATA/server.conf")
  else
    primary=${HOSTS%% *}
  fi
fi

{
  echo "include $CONFIG/valkey.conf"
  echo "bind $BIND"
  echo "port $SERVER_PORT"
  echo "replica-announce-ip $me"
  echo "primaryauth $PASSWORD"
  echo "repl-timeout 10"
  # A server that no replica hears takes no write: the others may have another primary by then.
  echo "min-replicas-to-write 1"
  echo "min-replicas-max-lag 5"
  if [ -n "$primary" ] && [ "$primary" != "$me" ]; then echo "replicaof $primary $SERVER_PORT"; fi
} > "$DATA/server.conf.new"
mv "$DATA/server.conf.new" "$DATA/server.conf"
exec valkey-server "$DATA/server.conf"
