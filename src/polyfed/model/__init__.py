"""Model: named components, assembled from a card."""
