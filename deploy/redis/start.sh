#!/bin/sh
# Starts Redis or a Sentinel for the controllers. Needs an image that is based on Debian, such as redis:8. With
# REDIS_PROGRAM=valkey, it starts Valkey.
#
# The first start generates two random passwords and stores them in a volume: one for the controllers, and one for
# operators, replicas and Sentinels. The files in REDIS_USERS define the users and their rights. There are no other
# users.
set -eu
HERE=/etc/redis-controller
SECRET=/run/controller # shared with the controllers, which can read only their own password
DATA=/data
PROGRAM=${REDIS_PROGRAM:-redis} # its commands are $PROGRAM-server and $PROGRAM-cli, and its user has this name, too

trap 'exit 143' TERM # process 1 would ignore SIGTERM without a handler
umask 077
create_password() { # if several containers start at the same time, the first password stays
  [ -s "$1" ] && return
  new=$(mktemp "$1.XXXXXX")
  head -c 32 /dev/urandom | base64 | tr -d '/+=\n' >"$new"
  ln "$new" "$1" 2>/dev/null || true
  rm -f "$new"
}
create_password "$SECRET/password"
create_password "$SECRET/operator-password"
chgrp 10001 "$SECRET" "$SECRET/password" # the controllers' group
chmod 750 "$SECRET"
chmod 640 "$SECRET/password"
password=$(cat "$SECRET/password")
operator=$(cat "$SECRET/operator-password")
if [ -z "$password" ] || [ -z "$operator" ]; then
  echo "A password file in $SECRET is empty. Remove it, and start again." >&2
  exit 1
fi

run() {
  find "$DATA" /tmp/redis ! -user "$PROGRAM" -exec chown "$PROGRAM:" {} +
  exec setpriv --reuid="$PROGRAM" --regid="$PROGRAM" --clear-groups "$@"
}

matching_lines() { # prints the matching lines of a file, if the file exists
  if [ -s "$1" ]; then grep -E "$2" "$1" || true; fi
}

address() { # prints the IP address of a name
  found=$(timeout 2 getent hosts "$1") && echo "${found%% *}"
}

now() { date +%s; }

call() { # calls the Redis at an address as the user admin
  host=$1
  shift
  REDISCLI_AUTH=$operator timeout 1 "$PROGRAM-cli" -e -h "$host" --user admin "$@" 2>/dev/null
}

sentinels_exist() { # succeeds if a Sentinel has an address: it runs or is about to
  for name in ${REDIS_SENTINELS:-}; do
    if address "$name" >/dev/null; then return; fi
  done
  return 1
}

elected_master() { # prints the address of the master, if at least two Sentinels agree on it
  for name in $REDIS_SENTINELS; do
    timeout 1 "$PROGRAM-cli" -e -h "$name" -p 26379 sentinel get-master-addr-by-name main 2>/dev/null | head -n 1
  done | sort | uniq -c | awk '$1 > 1 { print $2 }'
}

# Redis and Sentinel write to their configuration files. This script creates these files again at each start, so that
# changes in this directory take effect. It keeps only those lines of Redis and Sentinel that must survive a restart.
mkdir -p /tmp/redis
if [ "${1:-}" = sentinel ]; then
  # Addresses may change at a restart, so look up the master by its name, which moved.sh has stored. Sentinel cannot use
  # names all the time, because the name of a stopped container does not resolve.
  master=$(cat "$DATA/master" 2>/dev/null || echo redis)
  # Wait for the replicas too. A Sentinel would not find a replica that is not in its configuration and that still
  # connects to the old address of the master.
  deadline=$(($(now) + 10))
  while true; do
    main="" others="" missing=""
    for name in $REDIS_NODES; do
      if ! ip=$(address "$name"); then
        missing=$name
      elif [ "$name" = "$master" ]; then
        main=$ip
      else
        others="$others $ip"
      fi
    done
    if [ -z "$missing" ]; then break; fi
    if [ "$(now)" -ge "$deadline" ] && [ -n "$main$others" ]; then break; fi
    sleep 0.2
  done
  {
    # If the master has no address, use one that does not respond. The Sentinels then elect another master.
    sed "s|MASTER|${main:-127.0.0.2}|; s|PASSWORD|$operator|" "$HERE/sentinel.conf"
    for other in $others; do echo "sentinel known-replica main $other 6379"; done
    matching_lines "$DATA/sentinel.conf" '^sentinel (myid|current-epoch|config-epoch|leader-epoch) '
  } >"$DATA/sentinel.conf.new"
  mv "$DATA/sentinel.conf.new" "$DATA/sentinel.conf"
  run "$PROGRAM-server" "$DATA/sentinel.conf" --sentinel
fi

if [ -s "$DATA/nodes.conf" ]; then
  # This is a node of a Cluster. The stored addresses may belong to other nodes by now, and a replica that connects to a
  # wrong master would copy its data. So replace the addresses of the nodes that respond, and remove all others. The
  # other nodes announce their addresses later.
  known=""
  for ip in $(getent ahostsv4 "$REDIS_NODES" | awk '{ print $1 }' | sort -u); do
    if id=$(call "$ip" cluster myid); then known="$known $id $ip"; fi
  done
  awk -v known="$known" '
    BEGIN { n = split(known, words, " "); for (i = 1; i < n; i += 2) at[words[i]] = words[i + 1] }
    $1 == "vars" || $3 ~ /myself/ { print; next }
    {
      $2 = ($1 in at ? at[$1] ":6379@16379" : ":0@0") (index($2, ",") ? substr($2, index($2, ",")) : "")
      gsub(/,noaddr/, "", $3)
      $3 = $3 ($1 in at ? "" : ",noaddr")
      print
    }' "$DATA/nodes.conf" >"$DATA/nodes.conf.new"
  mv "$DATA/nodes.conf.new" "$DATA/nodes.conf"
fi

# Get the master from the Sentinels, because the stored role may be wrong: another node may be the master by now, and
# addresses may have changed. A former master at a new address must register as a replica, or the Sentinels never find
# it. If the Sentinels return a node that is not a master, they are about to elect another one. If they return none in
# time, or there are no Sentinels, keep the stored role.
mine=$(hostname -i)
master=""
deadline=$(($(now) + 20))
while sentinels_exist && [ "$(now)" -lt "$deadline" ]; do
  master=$(elected_master)
  if [ -n "$master" ]; then
    case " $mine " in *" $master "*) break ;; esac
    if [ "$(call "$master" role | head -n 1)" = master ]; then break; fi
  fi
  master=""
  sleep 0.2
done

for users in ${REDIS_USERS:-users.acl}; do
  sed "s|>PASSWORD|>$password|; s|>OPERATOR|>$operator|" "$HERE/$users"
done >/tmp/redis/users.acl
{
  printf 'include %s/redis.conf\nmasteruser replication\nmasterauth %s\n' "$HERE" "$operator"
  echo "cluster-announce-ip ${mine%% *}" # a node of a Cluster would announce its stored address
  printf '%s\n' "$@" | grep -v '^replicaof ' || true
  if [ -n "$master" ]; then
    case " $mine " in *" $master "*) ;; *) echo "replicaof $master 6379" ;; esac
  elif [ -s "$DATA/redis.conf" ]; then
    matching_lines "$DATA/redis.conf" '^replicaof '
  else
    printf '%s\n' "$@" | grep '^replicaof ' || true
  fi
} >"$DATA/redis.conf.new"
mv "$DATA/redis.conf.new" "$DATA/redis.conf"
run "$PROGRAM-server" "$DATA/redis.conf"
