"""An example worker, example clients and a demo. They do not import the controller, and it does not import them."""
