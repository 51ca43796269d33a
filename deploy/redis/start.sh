#!/bin/sh
# Starts Redis, or a Sentinel, for the controllers. Passwords are drawn at the first start and stay in a volume: one for
# the controllers, one for operators, replicas and Sentinels. The users may do what the files that REDIS_USERS names allow,
# and nobody else may do anything. For images on Debian, as redis:8 is.
set -eu
HERE=/etc/redis-controller
SECRET=/run/controller # shared with the controllers, who read their password in it and nothing else
DATA=/data

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

mkdir -p /tmp/redis
# What Sentinels and Redis write into their configuration when a master has changed must outlive a restart: it is made
# once, and theirs from then on.
if [ "${1:-}" = sentinel ]; then
  if [ ! -s "$DATA/sentinel.conf" ]; then
    # It goes by the address, not the name: the name of a container that has died cannot be resolved.
    until master=$(getent hosts redis); do sleep 0.2; done
    sed "s|MASTER|${master%% *}|; s|PASSWORD|$operator|" "$HERE/sentinel.conf" >"$DATA/sentinel.conf"
  fi
  run redis-server "$DATA/sentinel.conf" --sentinel
fi
for users in ${REDIS_USERS:-users.acl}; do
  sed "s|>PASSWORD|>$password|; s|>OPERATOR|>$operator|" "$HERE/$users"
done >/tmp/redis/users.acl
if [ ! -s "$DATA/redis.conf" ]; then
  {
    printf 'include %s/redis.conf\nmasteruser replication\nmasterauth %s\n' "$HERE" "$operator"
    printf '%s\n' "$@"
  } >"$DATA/redis.conf"
fi
run redis-server "$DATA/redis.conf"
