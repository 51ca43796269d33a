"""The command line.

A module such as route.py declares the commands with click. Its counterpart, such as routes.py, does what they say. A
command imports its counterpart when it runs, so that `--help` stays fast.
"""
