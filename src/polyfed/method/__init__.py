"""Method: the federated algorithms."""
