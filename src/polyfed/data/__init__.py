"""Data: samples with named modalities and named targets."""
