"""An example worker, example clients and a demo. The controller does not import them, nor they the controller."""
