"""Public datasets become files of samples for instruction tuning."""
