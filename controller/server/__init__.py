"""The processes of `controller serve`: sockets, signals, replicas and their supervisor."""
