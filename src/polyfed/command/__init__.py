"""Command: what a person types, and what is shown in return."""
