"""A worker, a load and a demo, to try a controller with. Nothing else imports them, and they import nothing of it."""
