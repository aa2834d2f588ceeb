# Writes a snapshot of the store to /snapshot: from a replica where there is one.
. "${0%/*}/servers.sh"
from=${HOSTS%% *}
for host in $HOSTS; do
  if cli -h "$host" -p "$SERVER_PORT" role | head -n 1 | grep -q slave; then from=$host; break; fi
done
echo "torpor: a snapshot of $from"
valkey-cli --no-auth-warning -h "$from" -p "$SERVER_PORT" --rdb "$SNAPSHOT"
