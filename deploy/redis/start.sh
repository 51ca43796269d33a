#!/bin/sh
# Starts Redis, or a Sentinel, for the controllers. Passwords are drawn at the first start and stay in a volume: one for
# the controllers, one for operators, replicas and Sentinels. The users may do what the files that REDIS_USERS names allow,
# and nobody else may do anything. For images on Debian, as redis:8 is.
set -eu
HERE=/etc/redis-controller
SECRET=/run/controller # shared with the controllers, who read their password in it and nothing else
DATA=/data

trap 'exit 143' TERM # as process 1 it could not be ended while it waits
umask 077
draw() { # of several that start at once, the first has drawn
  [ -s "$1" ] && return
  drawn=$(mktemp "$1.XXXXXX")
  head -c 32 /dev/urandom | base64 | tr -d '/+=\n' >"$drawn"
  ln "$drawn" "$1" 2>/dev/null || true
  rm -f "$drawn"
}
draw "$SECRET/password"
draw "$SECRET/operator-password"
chgrp 10001 "$SECRET" "$SECRET/password" # the controllers' group
chmod 750 "$SECRET"
chmod 640 "$SECRET/password"
password=$(cat "$SECRET/password")
operator=$(cat "$SECRET/operator-password")
if [ -z "$password" ] || [ -z "$operator" ]; then
  echo "A password in $SECRET is empty. Remove it, and start again." >&2
  exit 1
fi

run() {
  find "$DATA" /tmp/redis ! -user redis -exec chown redis: {} +
  exec setpriv --reuid=redis --regid=redis --clear-groups "$@"
}

keep() { # the lines of a file, if it is there, that match
  if [ -s "$1" ]; then grep -E "$2" "$1" || true; fi
}

address() {
  found=$(timeout 2 getent hosts "$1") && echo "${found%% *}"
}

now() { date +%s; }

admin() { # what the Redis at an address answers
  asked=$1
  shift
  REDISCLI_AUTH=$operator timeout 1 redis-cli -e -h "$asked" --user admin "$@" 2>/dev/null
}

sentinels_are_there() { # or will be in a moment: they have an address
  for name in ${REDIS_SENTINELS:-}; do
    if address "$name" >/dev/null; then return; fi
  done
  return 1
}

named() { # the address that two Sentinels or more give as the master's
  for name in $REDIS_SENTINELS; do
    timeout 1 redis-cli -e -h "$name" -p 26379 sentinel get-master-addr-by-name main 2>/dev/null | head -n 1
  done | sort | uniq -c | awk '$1 > 1 { print $2 }'
}

# Redis and Sentinel write into their configuration. It is made anew at each start, so that changes of the files here
# arrive, and of what they wrote only that is kept which must outlive a restart.
mkdir -p /tmp/redis
if [ "${1:-}" = sentinel ]; then
  # Addresses may be others after a restart, so the master's is looked up by its name, which moved.sh has written down.
  # They cannot go by names all the time: the name of a container that has died is nobody's.
  master=$(cat "$DATA/master" 2>/dev/null || echo redis)
  # It waits for the others, too: a replica that nobody had named to it, and that dials an old address, it would not find.
  deadline=$(($(now) + 10))
  while true; do
    main="" others="" missing=""
    for name in $REDIS_NODES; do
      if ! there=$(address "$name"); then
        missing=$name
      elif [ "$name" = "$master" ]; then
        main=$there
      else
        others="$others $there"
      fi
    done
    if [ -z "$missing" ]; then break; fi
    if [ "$(now)" -ge "$deadline" ] && [ -n "$main$others" ]; then break; fi
    sleep 0.2
  done
  {
    # When it is not there, this one is down too, and the Sentinels make another the master.
    sed "s|MASTER|${main:-127.0.0.2}|; s|PASSWORD|$operator|" "$HERE/sentinel.conf"
    for other in $others; do echo "sentinel known-replica main $other 6379"; done
    keep "$DATA/sentinel.conf" '^sentinel (myid|current-epoch|config-epoch|leader-epoch) '
  } >"$DATA/sentinel.conf.new"
  mv "$DATA/sentinel.conf.new" "$DATA/sentinel.conf"
  run redis-server "$DATA/sentinel.conf" --sentinel
fi

if [ -s "$DATA/nodes.conf" ]; then
  # A node of a Cluster. The addresses that it remembers may be other nodes' by now, and a replica that dialled another
  # master would take that one's data for its own. So it forgets all but those of the nodes that answer; the others will
  # tell it theirs.
  known=""
  for there in $(getent ahostsv4 "$REDIS_NODES" | awk '{ print $1 }' | sort -u); do
    if id=$(admin "$there" cluster myid); then known="$known $id $there"; fi
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

# Whose replica it is, the Sentinels know. What it remembers may be wrong: another may lead by now, and addresses may be
# others; and of a master that comes back at another address they would never hear. While they name one that does not
# lead, they are about to name another. If they cannot tell, or are not there, it goes on as what it was.
mine=$(hostname -i)
master=""
deadline=$(($(now) + 20))
while sentinels_are_there && [ "$(now)" -lt "$deadline" ]; do
  master=$(named)
  if [ -n "$master" ]; then
    case " $mine " in *" $master "*) break ;; esac
    if [ "$(admin "$master" role | head -n 1)" = master ]; then break; fi
  fi
  master=""
  sleep 0.2
done

for users in ${REDIS_USERS:-users.acl}; do
  sed "s|>PASSWORD|>$password|; s|>OPERATOR|>$operator|" "$HERE/$users"
done >/tmp/redis/users.acl
{
  printf 'include %s/redis.conf\nmasteruser replication\nmasterauth %s\n' "$HERE" "$operator"
  echo "cluster-announce-ip ${mine%% *}" # in a Cluster it would go by the one that it had
  printf '%s\n' "$@" | grep -v '^replicaof ' || true
  if [ -n "$master" ]; then
    case " $mine " in *" $master "*) ;; *) echo "replicaof $master 6379" ;; esac
  elif [ -s "$DATA/redis.conf" ]; then
    keep "$DATA/redis.conf" '^replicaof '
  else
    printf '%s\n' "$@" | grep '^replicaof ' || true
  fi
} >"$DATA/redis.conf.new"
mv "$DATA/redis.conf.new" "$DATA/redis.conf"
run redis-server "$DATA/redis.conf"
