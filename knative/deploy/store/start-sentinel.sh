# Starts this pod's sentinel. What it learnt stays on the disk; who may ask is written anew, so that a changed
# password counts: ours everything, the others of the access list who the primary is.
. "${0%/*}/servers.sh"
me=$(own_name)
conf=$DATA/sentinel.conf
if [ ! -f "$conf" ]; then
  {
    echo "bind $BIND"
    echo "port $SENTINEL_PORT"
    echo "dir $DATA"
    # A pod's Service keeps its name and its address when the pod does not.
    echo "sentinel resolve-hostnames yes"
    echo "sentinel announce-hostnames yes"
    echo "sentinel announce-ip $me"
    echo "sentinel monitor torpor ${HOSTS%% *} $SERVER_PORT 2"
    echo "sentinel down-after-milliseconds torpor 3000"
    echo "sentinel failover-timeout torpor 10000"
    echo "sentinel parallel-syncs torpor 1"
  } > "$conf"
fi
grep -v -E '^(user|requirepass|sentinel (auth-pass|auth-user|sentinel-pass|sentinel-user)) ' "$conf" > "$conf.new"
may="-@all +auth +hello +ping +client +info +role +subscribe +psubscribe +sentinel|get-master-addr-by-name"
may="$may +sentinel|masters +sentinel|master +sentinel|sentinels +sentinel|replicas +sentinel|slaves"
{
  echo "requirepass $PASSWORD"
  echo "sentinel sentinel-pass $PASSWORD"
  echo "sentinel auth-pass torpor $PASSWORD"
  awk -v may="$may" '$1 == "user" && $2 != "default" {print "user", $2, "on", $4, "&*", may}' "$USERS"
} >> "$conf.new"
mv "$conf.new" "$conf"
exec valkey-server "$conf" --sentinel
